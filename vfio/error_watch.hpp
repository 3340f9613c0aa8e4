// ErrorWatch: hears of uncorrectable errors (PCIe AER, fatal or not) of a function that a driver in
// this process has. It has a descriptor of the device's of its own, so it goes before the driver
// closes the function; the kernel takes a function back when the last descriptor is closed.
// Thread: any, one at a time.
#pragma once

#include <string>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "vfio/device.hpp"

namespace millrace::vfio {

class ErrorWatch {
 public:
  // `group`: the driver's descriptor of the function's group, which is in a domain; it stays the
  // driver's. Fails with one line: also where the function reports no errors.
  static base::Result<ErrorWatch> of(int group, unsigned number, const std::string& address,
                                     Kernel& kernel = host_kernel());
  ErrorWatch(ErrorWatch&& other) noexcept = default;
  ErrorWatch& operator=(ErrorWatch&&) = delete;
  ~ErrorWatch();

  // Readable from the first error on, and never drained.
  [[nodiscard]] int fd() const { return event_.get(); }
  // Whether there was an error.
  [[nodiscard]] bool heard() const;
  // A fatal error has the kernel reset the function by its bus, and nothing answers at its BARs
  // afterwards: puts them back, so that the driver can close it without waiting in vain for its
  // registers. Does nothing to a function that was not reset. Waits for a reset that is under way.
  void put_back_registers() const;

 private:
  ErrorWatch(Device device, base::Fd event)
      : device_{std::move(device)}, event_{std::move(event)} {}

  Device device_;
  base::Fd event_;
};

}  // namespace millrace::vfio
