// Session drives one vhost-user front-end from accept to hang-up ("Communication", "Ring states").
//
// Thread: control only. Owns the socket, every descriptor received and the memory table. `device`
// and `loop` must outlive the Session. A Session never touches a ring: it asks the device, which
// asks the reactors, and while an answer is out no further message of this front-end is handled.
//
// A message that fails is answered with a non-zero REPLY_ACK where the front-end asked for one, and
// ends the session with one logged line where it did not.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/event_loop.hpp"
#include "base/fd.hpp"
#include "base/result.hpp"
#include "vhost/backend_channel.hpp"
#include "vhost/channel.hpp"
#include "vhost/memory_table.hpp"
#include "vhost/wire.hpp"
#include "virtio/device.hpp"
#include "virtio/dirty_log.hpp"
#include "virtio/features.hpp"
#include "virtio/inflight.hpp"

namespace millrace::vhost {

// Feature bits that are of the protocol: the device does not see them.
inline constexpr std::uint64_t vhost_bits =
    virtio::feature::log_all | virtio::feature::protocol_features;

class Session final : private Channel::Owner {
 public:
  enum class Phase {
    negotiating,  // no ring is started
    running,      // at least one is
    draining,     // the end: rings are being stopped, then memory is let go
    ended,        // nothing is held any more; may be destroyed
  };

  struct Counters {
    std::uint64_t messages = 0, refused = 0;
  };

  // `peer` is how the front-end is called in log lines. `ended` runs once, in phase `ended`, from a
  // handler of the loop: it must not destroy the session at once but defer that.
  Session(base::EventLoop& loop, virtio::Device& device, base::Fd socket, std::string peer,
          std::function<void()> ended);
  ~Session() override;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Starts to listen to the front-end.
  base::Result<void> start();
  // Runs on control when a queue was poisoned, after it was logged.
  void on_fault(std::function<void(unsigned index, virtio::Fault fault)> hook) {
    fault_hook_ = std::move(hook);
  }
  // Ends the session; `why` is empty for a clean end. The rings are stopped and drained first.
  void end(const std::string& why);

  [[nodiscard]] Phase phase() const;
  [[nodiscard]] const std::string& peer() const { return peer_; }
  // Why it ended, one line; empty: the front-end hung up between messages.
  [[nodiscard]] const std::string& reason() const { return reason_; }
  [[nodiscard]] const Counters& counters() const { return counters_; }
  [[nodiscard]] std::uint64_t features() const { return features_; }
  [[nodiscard]] std::uint64_t protocol_features() const { return protocol_; }
  [[nodiscard]] const MemoryTable& memory() const { return memory_; }

  // What is offered for `device`, virtio bits and the vhost-user ones.
  static std::uint64_t offered_features(const virtio::Device& device);
  static std::uint64_t offered_protocol_features(const virtio::Device& device);

 private:
  // What a handler did with its message.
  enum class Progress {
    done,     // acknowledge it if asked to
    replied,  // its own reply was sent
    pending,  // finish() will be called
  };
  using Handled = base::Result<Progress>;
  using Then = std::function<void()>;

  struct Range {
    std::uint32_t min, max;
    [[nodiscard]] constexpr bool holds(std::size_t value) const {
      return value >= min && value <= max;
    }
  };
  // One row of the table of messages (session_table.cpp).
  struct Rule {
    wire::Request request;
    const char* name;
    Range payload;        // bytes
    Range fds;            // descriptors
    std::uint64_t needs;  // protocol features that must have been acknowledged
    enum class Reply { if_asked, always, value } reply;
    Handled (Session::*handler)(Message& message);
  };
  static const Rule* rule_of(std::uint32_t request);

  // What the front-end said of one virtqueue.
  struct Ring {
    std::uint32_t size = 0;
    std::uint32_t base = 0;
    std::optional<wire::VringAddr> address;
    bool has_kick = false;  // SET_VRING_KICK came; `kick` is invalid for a polled ring
    base::Fd kick, call, error;
    std::optional<bool> enabled;  // SET_VRING_ENABLE
    bool started = false;
  };

  // Channel::Owner
  base::Result<void> on_header(const wire::Header& header) override;
  void on_message(Message message) override;
  void on_closed(const std::string& why) override;

  // session.cpp: dispatch, replies, the end.
  Handled dispatch(const Rule& rule, Message& message);
  void finish(const base::Result<void>& result);
  void finish_replied();
  void acknowledge(std::uint64_t value);
  void refuse(const std::string& why);
  void note_refused(const std::string& line);
  void reply(std::span<const std::byte> payload, int fd = -1);
  void reply_u64(std::uint64_t value);
  [[nodiscard]] bool ack_wanted() const;
  [[nodiscard]] bool acked(std::uint64_t bits) const { return (protocol_ & bits) == bits; }
  [[nodiscard]] bool any_started() const;
  void drain();
  void release();
  // Goes on with a message after the device answered, unless the session ends meanwhile.
  void proceed(const Then& then);
  // A device callback that does nothing once this session is gone.
  template <class F>
  [[nodiscard]] auto guarded(F body) {
    return [alive = std::weak_ptr<bool>{alive_}, body = std::move(body)](auto&&... args) mutable {
      if (!alive.expired()) body(std::forward<decltype(args)>(args)...);
    };
  }
  [[nodiscard]] virtio::Device::Done finish_when_done();

  // session_features.cpp
  Handled get_features(Message& message);
  Handled set_features(Message& message);
  Handled get_protocol_features(Message& message);
  Handled set_protocol_features(Message& message);
  Handled set_owner(Message& message);
  Handled get_queue_num(Message& message);
  Handled set_status(Message& message);
  Handled get_status(Message& message);
  Handled reset(Message& message);
  void apply_features(std::uint64_t features);
  void note_fault(unsigned index, virtio::Fault fault);

  // session_memory.cpp
  Handled set_mem_table(Message& message);
  Handled get_max_mem_slots(Message& message);
  Handled add_mem_reg(Message& message);
  Handled rem_mem_reg(Message& message);
  Handled set_log_base(Message& message);
  Handled set_log_fd(Message& message);
  // `before` is what a change that cannot be is taken back to, and what the rings still use.
  Handled memory_changed(MemoryTable before);
  [[nodiscard]] std::shared_ptr<virtio::DirtyLog> active_log() const;

  // session_vring.cpp
  Handled set_vring_num(Message& message);
  Handled set_vring_addr(Message& message);
  Handled set_vring_base(Message& message);
  Handled get_vring_base(Message& message);
  Handled set_vring_kick(Message& message);
  Handled set_vring_call(Message& message);
  Handled set_vring_err(Message& message);
  Handled set_vring_enable(Message& message);
  base::Result<unsigned> ring_index(std::uint64_t index) const;
  struct RingFd {
    unsigned index;
    base::Fd fd;
  };
  base::Result<RingFd> ring_fd(Message& message) const;
  [[nodiscard]] bool enabled(const Ring& ring) const;
  [[nodiscard]] bool ready(const Ring& ring) const;
  void start_ring(unsigned index, virtio::Device::Done then);
  void start_ready_rings();
  void stop_ring(unsigned index, Then then);
  void stop_all(Then then);
  void reset_rings(Then then);
  Handled start_if_ready(unsigned index);

  // session_config.cpp
  Handled get_config(Message& message);
  Handled set_config(Message& message);
  Handled set_backend_req_fd(Message& message);
  Handled send_rarp(Message& message);
  Handled net_set_mtu(Message& message);
  [[nodiscard]] std::uint64_t config_offset(std::uint32_t offset) const;

  // session_inflight.cpp
  Handled get_inflight_fd(Message& message);
  Handled set_inflight_fd(Message& message);

  base::EventLoop& loop_;
  virtio::Device& device_;
  const std::string peer_;
  std::function<void()> ended_;
  std::function<void(unsigned, virtio::Fault)> fault_hook_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  Channel channel_;
  std::unique_ptr<BackendChannel> backend_;
  Counters counters_;
  std::string reason_;

  bool draining_ = false, drain_begun_ = false, finished_ = false;
  bool handling_ = false;       // a handler is on the stack
  bool waiting_ = false;        // the device owes us an answer
  const Rule* rule_ = nullptr;  // of the message being handled; null: no such message
  wire::Header header_{};       // of that message

  std::uint64_t features_ = 0, protocol_ = 0;
  std::uint8_t status_ = 0;  // virtio device status, SET_STATUS
  MemoryTable memory_;
  std::shared_ptr<virtio::DirtyLog> log_;  // SET_LOG_BASE, whether or not LOG_ALL is on
  std::shared_ptr<virtio::InflightRegion> inflight_;
  std::vector<Ring> rings_;
};

// A word for status: "negotiating", "running"...
[[nodiscard]] const char* name_of(Session::Phase phase);

}  // namespace millrace::vhost
