#include "vfio/error_watch.hpp"

#include <poll.h>
#include <sys/eventfd.h>

#include <array>
#include <utility>

#include "base/error.hpp"

namespace millrace::vfio {

namespace {

constexpr std::uint64_t command_at = 0x04;  // PCI Local Bus 3.0 §6.2.2
constexpr std::byte command_memory{0x02};

}  // namespace

base::Result<ErrorWatch> ErrorWatch::of(int group, unsigned number, const std::string& address,
                                        Kernel& kernel) {
  base::Fd copy{kernel.copy(group)};
  if (!copy) return base::fail_errno(address + ": cannot use its group");
  const auto taken = Group::take(std::move(copy), number, kernel);
  if (!taken) return base::Unexpected{taken.error()};
  auto device = Device::open(*taken, address, kernel);
  if (!device) return base::Unexpected{device.error()};
  if (device->vectors(Irq::error) == 0) return base::fail(address + " reports no errors");
  base::Fd event{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
  if (!event) return base::fail_errno("cannot make an event descriptor");
  const std::array eventfds{event.get()};
  if (auto set = device->set_irqs(Irq::error, eventfds); !set) {
    return base::Unexpected{set.error()};
  }
  return ErrorWatch{*std::move(device), std::move(event)};
}

bool ErrorWatch::heard() const {
  pollfd event{.fd = fd(), .events = POLLIN, .revents = 0};
  return ::poll(&event, 1, 0) == 1;
}

// The kernel writes the BARs anew when memory decoding is switched on and the hardware has it off.
void ErrorWatch::put_back_registers() const {
  std::array<std::byte, 2> command;
  if (!device_.read(region_config, command_at, command)) return;
  command[0] |= command_memory;
  // One that cannot be written to is closed as it is.
  [[maybe_unused]] const auto written = device_.write(region_config, command_at, command);
}

ErrorWatch::~ErrorWatch() {
  if (event_) device_.clear_irqs(Irq::error);  // the driver's descriptor keeps the function open
}

}  // namespace millrace::vfio
