// blk::Device: virtio-blk, a guest's requests against a storage backend. Thread: control.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/histogram.hpp"
#include "blk/config.hpp"
#include "virtio/device_base.hpp"

namespace millrace::blk {

// Sums over queues, for status. Latency: taken from the ring to given back.
struct Statistics {
  std::uint64_t read_requests = 0, read_bytes = 0, write_requests = 0, write_bytes = 0;
  std::uint64_t flush_requests = 0, discard_requests = 0, zero_requests = 0;
  std::uint64_t io_errors = 0, unsupported = 0, in_flight = 0, bounced = 0, buffered = 0;
  std::uint64_t pinned = 0, polled = 0;
  std::uint64_t oldest_ns = 0;  // how long the oldest request in flight has been there
  base::Histogram::Snapshot latency{};
};

// How the guest's memory stands with io_uring.
struct PinStatus {
  std::string state = "off";  // "off", "idle" (no guest), "waiting", "pinned", "failed"
  std::uint64_t bytes = 0;    // pinned
  std::string why;            // it failed, or stays off under pin = "auto"
};

struct BackendStatus {
  std::string kind;  // "file", "block device", "ram", "null"
  std::string path;
  std::uint64_t bytes = 0;
  bool readonly = false, direct = false;
  std::string io;  // "io_uring: DEFER_TASKRUN, registered files", "memory"...
  // What its rings have: "defer-taskrun", "single-issuer", "iopoll"... Empty without io_uring.
  std::vector<std::string> ring;
  PinStatus pin;
};

class UringPool;  // one io_uring for each reactor, shared by all disks

class Device : public virtio::DeviceBase {
 public:
  // Opens and locks the backend. Errors in one line (missing, locked by whom, not a multiple of
  // 512...). `pool` and `rings` must outlive it.
  static base::Result<std::unique_ptr<Device>> make(const Config& config, base::ReactorPool& pool,
                                                    UringPool& rings);
  using DeviceBase::DeviceBase;
  [[nodiscard]] virtual const Config& blk_config() const = 0;
  [[nodiscard]] virtual Statistics statistics() const = 0;
  [[nodiscard]] virtual BackendStatus backend_status() const = 0;
  // Takes a new size over: bytes 0 reads it from the file or device; ram and null take `bytes`.
  // Tells the guest (CONFIG_CHANGE). Shrinking below what is in use is refused.
  virtual base::Result<std::uint64_t> resize(std::uint64_t bytes) = 0;
};

}  // namespace millrace::blk
