// BackendLink: the back-end of one virtio device over vhost-user, which outlives any number of
// back-end processes. A thread of its own keeps one connection up, for ever: when it ends, the link
// connects again (after 10 ms, then ever longer, to 1 s) and restores everything: features, memory,
// the inflight region, and each ring where the back-end before had left it.
//
// What the device wants is kept as a state, and the thread brings the back-end to it; so a wish
// that comes while nobody is connected, or that a dying back-end half did, is nothing special.
// A back-end that breaks the protocol is one line in the log and a new connection. One that refuses
// what the driver set up makes the device need a reset.
//
// Where a ring stood when a back-end died: of a split ring the used index says it, the one word of
// a ring that is ever read here, and only then; of a packed ring the inflight region knows.
// Thread: any, as VirtioBackend says; make() is called before the thread is there.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "vmm/backend_connection.hpp"
#include "vmm/device_shape.hpp"
#include "vmm/ram.hpp"
#include "vmm/virtio_backend.hpp"

namespace millrace::vmm {

struct BackendLinkConfig {
  std::string socket;
  ShapeOptions shape;
  std::uint16_t queue_size = 256;  // the most that a driver may choose, a power of two
  bool wait = true;                // false: make() fails where nobody serves the socket
  // An eventfd: make() waits no longer, and fails, once it is readable. -1: none.
  int cancel = -1;
  BackendConnection::Timeouts timeouts{};
  // A connection came or went, for a control socket. From the link's thread; it must not call back.
  std::function<void(bool connected, const std::string& why)> on_change{};
  bool confined = false;  // in a sandbox: the thread narrows what it may do
  // mem: what every back-end is told first, as the start of its configuration space.
  std::vector<std::byte> told{};
};

class BackendLink final : public VirtioBackend, private RamUser {
 public:
  static constexpr std::chrono::milliseconds delay_min{10}, delay_max{1000};

  // Connects and negotiates; waits for a back-end where told so, which it says once. `ram` outlives
  // the link. Fails on a socket that cannot be one, and on an offer that cannot be used.
  static base::Result<std::unique_ptr<BackendLink>> make(BackendLinkConfig config,
                                                         const GuestRam& ram);
  ~BackendLink() override;

  void open(Listener& listener) override;
  void close() override;
  [[nodiscard]] std::uint64_t features() const override;
  [[nodiscard]] unsigned queues() const override { return shape_.queues; }
  [[nodiscard]] std::uint16_t queue_size_max() const override { return config_.queue_size; }
  [[nodiscard]] std::vector<std::byte> config() const override;
  // mem: how much is plugged changes with every request of the driver, which nobody is told of.
  void refresh_config() override;
  bool write_config(std::uint32_t offset, std::span<const std::byte> bytes) override;
  void activate(std::uint64_t features, std::span<const VirtQueue> queues) override;
  void stop() override;
  void start_queue(const VirtQueue& queue) override;
  void stop_queue(unsigned index) override;
  void set_call(unsigned index, int call) override;

  [[nodiscard]] bool connected() const;

 private:
  using Clock = std::chrono::steady_clock;

  // What the device wants of one queue.
  struct Wish {
    std::optional<VirtQueue> queue;  // none: that it is stopped
    bool stop = false;               // and the listener is waiting for it
    bool new_call = false;
  };
  // What the device wants.
  struct Wanted {
    bool active = false, stop = false, broken = false;  // broken: refused; only stop() mends it
    std::uint64_t features = 0;
    std::vector<Wish> queues;
    std::optional<std::vector<std::byte>> field;  // as the driver wrote it, to be restored
    bool field_new = false;                       // and the driver waits until it is in effect
  };

  BackendLink(BackendLinkConfig config, const GuestRam& ram);
  void wake() const;
  void memory_added() override;  // RamUser

  // backend_link.cpp: the thread, and connecting.
  void run();
  void turn();
  base::Result<void> connect_first();
  [[nodiscard]] bool hides_its_mac() const;
  void connect();
  base::Result<void> adopt(std::unique_ptr<BackendConnection> connection);
  [[nodiscard]] base::Result<DeviceShape> shape_now(const BackendOffer& offer) const;
  [[nodiscard]] bool is_live() const { return config_.shape.kind == DeviceKind::mem; }
  // Whether a back-end knows its configuration space only once it has the inflight region, where
  // the one before it left a record.
  [[nodiscard]] bool comes_with_record() const {
    return is_live() || config_.shape.kind == DeviceKind::balloon;
  }
  void disconnect(const std::string& why);
  void retry_later();
  void note_up();
  void complain(const std::string& why);
  void blame_guest(const std::string& why);
  void wait_for_events();
  void take_request();
  void take_ring_error();

  // backend_link_config.cpp: the configuration space.
  base::Result<void> tell(BackendConnection& connection) const;
  base::Result<void> renew_config();
  base::Result<void> publish_config();
  void answer_refresh();

  // backend_link_rings.cpp: bringing the back-end to what is wanted.
  void apply();
  void apply_stop();
  void apply_queue_stops(const Wanted& wanted);
  [[nodiscard]] bool let_go() const;
  base::Result<void> bring_to(const Wanted& wanted);
  base::Result<void> begin(const Wanted& wanted);
  base::Result<void> share_memory();
  void take_memory();
  base::Result<void> write_field(const Wanted& wanted);
  base::Result<void> start_ring(const Wanted& wanted, const VirtQueue& queue);
  base::Result<BackendConnection::Ring> place(const VirtQueue& queue, std::uint64_t features);
  base::Result<void> restore_others(const Wanted& wanted);
  void give_up(const std::string& why);

  BackendLinkConfig config_;
  const GuestRam& ram_;
  base::Fd wake_, quit_, ring_error_;
  Listener* listener_ = nullptr;
  std::thread thread_;

  // Of the thread.
  std::unique_ptr<BackendConnection> connection_;
  std::size_t regions_shared_ = 0;  // this back-end has so much of the memory
  bool set_up_ = false;             // and the features
  std::vector<bool> running_;       // by queue: this back-end was told to start it
  std::vector<bool> begun_;         // by queue: a back-end was, since the driver set the queue up
  std::uint64_t wanted_features_ = 0;  // as this back-end was told
  InflightMemory inflight_;
  bool restoring_ = false;  // a back-end before this one served the device
  bool hopeless_ = false;   // what failed is the driver's doing, not the back-end's
  bool up_ = true;          // as on_change knows it
  bool said_gone_ = false;  // as the log knows it
  std::string last_complaint_;
  unsigned guest_faults_ = 0;
  Clock::time_point connected_at_{}, retry_at_{};
  std::chrono::milliseconds delay_{0};
  std::optional<Clock::time_point> cut_at_;  // we hung up on a back-end that may still live

  mutable std::mutex mutex_;
  std::condition_variable written_, refreshed_;
  DeviceShape shape_;  // queues and size of config never change
  Wanted wanted_;
  bool connected_ = false;
  bool memory_new_ = false;  // not given to the back-end yet
  // How often a driver looked at a live configuration space, and was shown what is true.
  std::uint64_t refresh_wanted_ = 0, refreshes_ = 0;
};

}  // namespace millrace::vmm
