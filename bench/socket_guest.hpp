// SocketGuest: a guest's half of one vhost-user device, over the real socket: its memory in one
// memfd, its rings split, its front-end vhost::Frontend. For benches and system tests that need
// many devices without many virtual machines. One thread; blocking only in the front-end's calls.
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
#include "virtio/wire/ring.hpp"

namespace millrace::bench {

// One split virtqueue inside the guest's memory. Descriptor chains have one or two descriptors.
struct GuestRing {
  std::uint64_t descriptors = 0, available = 0, used = 0;  // guest addresses
  std::uint16_t size = 0, available_next = 0, used_next = 0;
  base::Fd kick, call;
};

struct Completed {
  std::uint32_t id, length;
};

class SocketGuest {
 public:
  static constexpr std::uint64_t memory_size = 1u << 20;

  // Connects, negotiates what both have of `features`, shares memory, starts `rings` queues of
  // `size`.
  static base::Result<std::unique_ptr<SocketGuest>> connect(const std::string& socket,
                                                            unsigned rings, std::uint16_t size,
                                                            std::uint64_t features,
                                                            std::chrono::milliseconds timeout);

  // Room in guest memory; CHECKs that there is some.
  std::uint64_t allocate(std::uint64_t size, std::uint64_t align = 64);
  [[nodiscard]] std::byte* at(std::uint64_t address) { return memory_ + address; }

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

 private:
  SocketGuest() = default;
  base::Result<void> set_up(unsigned rings, std::uint16_t size, std::uint64_t features);
  base::Result<void> start_ring(unsigned index, std::uint16_t size);

  std::unique_ptr<vhost::Frontend> frontend_;
  base::Fd file_;
  std::byte* memory_ = nullptr;
  std::uint64_t next_ = 0, features_ = 0;
  std::vector<GuestRing> rings_;

 public:
  ~SocketGuest();
  SocketGuest(const SocketGuest&) = delete;
  SocketGuest& operator=(const SocketGuest&) = delete;
};

}  // namespace millrace::bench
