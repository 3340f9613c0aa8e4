// SocketGuest: a guest's half of one vhost-user device, over the real socket: its memory in one
// memfd, its rings, its front-end vhost::Frontend. For benches and system tests that need many
// devices without many virtual machines. One thread; blocking only in the front-end's calls.
//
// offer(), poll() and their like are for split rings, one buffer at a time; SplitDriver and
// PackedDriver (bench/ring_driver.hpp) drive a ring at the speed of a native driver.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "vhost/frontend.hpp"
#include "virtio/features.hpp"
#include "virtio/wire/ring.hpp"

namespace millrace::bench {

// One virtqueue inside the guest's memory. Of a packed one `available` is the driver's event
// suppression and `used` the device's.
struct GuestRing {
  std::uint64_t descriptors = 0, available = 0, used = 0;  // guest addresses
  std::uint16_t size = 0, available_next = 0, used_next = 0;
  base::Fd kick, call;
};

struct Completed {
  std::uint32_t id, length;
};

// What a guest is and does until connect() returns. The rest of the negotiation is fixed.
struct GuestConfig {
  unsigned rings = 1;          // queues 0 to rings - 1 are started
  std::uint16_t size = 0;      // of each, a power of two
  std::uint64_t features = 0;  // RING_PACKED too, if it is wished
  std::uint64_t protocol =
      vhost::wire::protocol::mq | vhost::wire::protocol::reply_ack | vhost::wire::protocol::config;
  std::uint64_t memory = 1u << 20;  // bytes
  std::uint64_t base = 0;           // guest address of the first byte
  // The memory in so many regions: the first has the first `first_slot` bytes (whole pages), the
  // others share the rest.
  unsigned slots = 1;
  std::uint64_t first_slot = 0;
  bool same_addresses = false;  // user addresses are guest addresses
  bool polled = false;          // no kick descriptors: the device polls
  bool enable = true;           // false: the rings start disabled
  bool listen = false;          // the back-end connects to us
  // With a region for what is in flight: where the back-end has one, or else it is no back-end.
  enum class Inflight : std::uint8_t { no, if_there, needed } inflight = Inflight::no;
};

// What stock Linux drivers negotiate of the rings, beside what every driver does.
inline constexpr std::uint64_t stock_features =
    virtio::feature::event_idx | virtio::feature::indirect_desc;

class SocketGuest {
 public:
  // Connects (or is connected to), negotiates what both have of `features`, shares memory, starts
  // the queues.
  static base::Result<std::unique_ptr<SocketGuest>> connect(const std::string& socket,
                                                            const GuestConfig& config,
                                                            std::chrono::milliseconds timeout);
  static base::Result<std::unique_ptr<SocketGuest>> connect(const std::string& socket,
                                                            unsigned rings, std::uint16_t size,
                                                            std::uint64_t features,
                                                            std::chrono::milliseconds timeout) {
    return connect(socket, {.rings = rings, .size = size, .features = features}, timeout);
  }

  // A guest that no device serves: memory and rings, and no front-end.
  static base::Result<std::unique_ptr<SocketGuest>> alone(const GuestConfig& config);

  // Room in guest memory; CHECKs that there is some.
  std::uint64_t allocate(std::uint64_t size, std::uint64_t align = 64);
  [[nodiscard]] std::byte* at(std::uint64_t address) { return memory_ + (address - config_.base); }
  // What SET_VRING_ADDR and the memory table call `address`.
  [[nodiscard]] std::uint64_t user_address(std::uint64_t address) const;

  // Lays queue `index` out anew, at its first position and with new descriptors, and sends all that
  // starts it. It must be stopped: GET_VRING_BASE, a reset, or disabled.
  base::Result<void> start_ring(unsigned index);
  [[nodiscard]] GuestRing& ring(unsigned index) { return rings_.at(index); }
  [[nodiscard]] int memory_fd() const { return file_.get(); }
  [[nodiscard]] vhost::Frontend::Region region() const;  // all of the memory

  // Writes descriptor `index` and, with `next`, links it to index + 1.
  void set_descriptor(unsigned ring, std::uint16_t index, std::uint64_t address,
                      std::uint32_t length, bool writable, bool next);
  [[nodiscard]] std::uint64_t descriptor_address(unsigned ring, std::uint32_t index);
  void offer(unsigned ring, std::uint16_t head);  // publishes one chain
  void kick(unsigned ring);
  std::optional<Completed> poll(unsigned ring);
  // Polls until a buffer comes back or `timeout` is over.
  std::optional<Completed> wait(unsigned ring, std::chrono::milliseconds timeout);
  [[nodiscard]] vhost::Frontend& frontend() { return *frontend_; }
  [[nodiscard]] std::uint64_t features() const { return features_; }
  [[nodiscard]] bool packed() const;

 private:
  explicit SocketGuest(const GuestConfig& config) : config_{config}, rings_(config.rings) {}
  base::Result<void> set_up();
  base::Result<void> make_memory();
  base::Result<void> share_memory();
  base::Result<void> share_inflight();
  void lay_out(GuestRing& ring);

  const GuestConfig config_;
  std::unique_ptr<vhost::Frontend> frontend_;
  base::Fd file_;
  std::byte* memory_ = nullptr;
  std::uint64_t next_ = 0, features_ = 0;  // next_: bytes taken
  std::vector<GuestRing> rings_;

 public:
  ~SocketGuest();
  SocketGuest(const SocketGuest&) = delete;
  SocketGuest& operator=(const SocketGuest&) = delete;
};

}  // namespace millrace::bench
