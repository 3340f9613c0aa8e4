// Device: what a vhost-user session drives. net::Device and blk::Device implement it (through
// DeviceBase, which owns the queue life cycle). Thread: control, for every member.
//
// Members with a callback answer later, when every reactor concerned has acknowledged; the callback
// runs on the control thread from the event loop, never from inside the call. A session sends one
// such request at a time and waits.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "virtio/dirty_log.hpp"
#include "virtio/memory.hpp"
#include "virtio/ring.hpp"

namespace millrace::virtio {

class InflightRegion;  // inflight.hpp
class KeptArea;        // kept_area.hpp

enum class DeviceKind { net, blk, rng, console, balloon, mem };

// Everything a queue needs to start.
struct QueueStart {
  unsigned index = 0;  // virtqueue index
  RingSetup ring;
  std::shared_ptr<const GuestMemory> memory;
  base::Fd kick;   // invalid: NOFD, the reactor polls and never sleeps longer than 1 ms
  base::Fd call;   // invalid: the driver polls
  base::Fd error;  // invalid: none
  bool enabled = false;
  std::shared_ptr<DirtyLog> log;             // null: not migrating
  std::shared_ptr<InflightRegion> inflight;  // null: not negotiated
};

class Device {
 public:
  using Done = std::function<void(base::Result<void>)>;
  using Stopped = std::function<void(std::uint32_t base)>;

  virtual ~Device() = default;
  [[nodiscard]] virtual DeviceKind kind() const = 0;
  [[nodiscard]] virtual const std::string& name() const = 0;

  // Features this device can offer, ring and device bits, without the vhost-user ones.
  [[nodiscard]] virtual std::uint64_t features() const = 0;
  // Virtqueues (not pairs), control queue included.
  [[nodiscard]] virtual unsigned queues_max() const = 0;
  // The configuration space of this device type as of now. Valid until the next call.
  [[nodiscard]] virtual std::span<const std::byte> config() const = 0;
  // Whether a front-end is offered that space; if not, it makes one of its own.
  [[nodiscard]] virtual bool offers_config() const { return true; }
  // A driver's write (SET_CONFIG). Refused where the field is not writable.
  virtual base::Result<void> write_config(std::uint32_t offset,
                                          std::span<const std::byte> bytes) = 0;
  // The features both sides have. Called before the first queue starts, and again after a reset.
  virtual void set_features(std::uint64_t features) = 0;

  virtual void start_queue(QueueStart start, Done done) = 0;
  // Takes no more, waits until nothing is in flight, answers the ring's position.
  // A queue that is not started answers 0 at once (from the event loop).
  virtual void stop_queue(unsigned index, Stopped stopped) = 0;
  virtual void enable_queue(unsigned index, bool enabled, Done done) = 0;
  virtual void set_call(unsigned index, base::Fd call, Done done) = 0;
  virtual void set_kick(unsigned index, base::Fd kick, Done done) = 0;
  // Swaps memory in all started queues. Done when nothing refers to the old snapshot any more.
  virtual void set_memory(std::shared_ptr<const GuestMemory> memory, Done done) = 0;
  virtual void set_log(std::shared_ptr<DirtyLog> log, Done done) = 0;

  // Whether the device has something to keep over our death besides what is in flight.
  [[nodiscard]] virtual bool keeps_state() const { return false; }
  // Where it keeps it; nullptr: nowhere. A record found there is taken up; so it comes after
  // set_features() and before the first queue starts.
  virtual void set_kept(std::shared_ptr<KeptArea>) {}

  // net: the guest moved here; announce `mac` on its behalf (SEND_RARP). Others refuse.
  virtual base::Result<void> announce(std::span<const std::uint8_t, 6> mac) = 0;
  // net: the front-end's NET_SET_MTU. Others refuse.
  virtual base::Result<void> set_mtu(std::uint16_t mtu) = 0;

  // The configuration changed on our side (a disk grew): the session installs a hook that sends
  // CONFIG_CHANGE. Empty: nobody listens.
  virtual void on_config_change(std::function<void()> hook) = 0;
  // A front-end came or went, for status.
  virtual void set_connected(bool connected) = 0;
  // A queue was poisoned by its peer; the hook runs on control, once per queue start.
  virtual void on_fault(std::function<void(unsigned index, Fault fault)> hook) = 0;
};

}  // namespace millrace::virtio
