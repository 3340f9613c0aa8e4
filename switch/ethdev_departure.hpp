// Departure: hears when the host wants a device back: its driver is being unbound, it is being
// removed, or its virtual functions are. The host waits until the device is released. Threads: made
// and destroyed by whoever opens and closes the device; DPDK's interrupt thread does nothing but
// make the descriptor readable.
#pragma once

#include <memory>
#include <string>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace millrace::vswitch {

class Departure {
 public:
  // For a device that the EAL knows by this name.
  static base::Result<std::unique_ptr<Departure>> of(const std::string& device);
  ~Departure();
  Departure(const Departure&) = delete;
  Departure& operator=(const Departure&) = delete;

  // Readable from then on, and never drained.
  [[nodiscard]] int fd() const noexcept { return event_.get(); }

 private:
  Departure(std::string device, base::Fd event)
      : device_{std::move(device)}, event_{std::move(event)} {}

  const std::string device_;
  const base::Fd event_;
};

}  // namespace millrace::vswitch
