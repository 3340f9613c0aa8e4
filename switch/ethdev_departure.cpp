#include "switch/ethdev_departure.hpp"

#include <rte_dev.h>
#include <sched.h>
#include <sys/eventfd.h>

#include <cerrno>
#include <cstdint>

#include "base/error.hpp"

namespace millrace::vswitch {

namespace {

void tell(const char*, rte_dev_event_type event, void* argument) {
  if (event != RTE_DEV_EVENT_REMOVE) return;
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written =
      ::write(static_cast<const Departure*>(argument)->fd(), &one, sizeof(one));
}

}  // namespace

base::Result<std::unique_ptr<Departure>> Departure::of(const std::string& device) {
  base::Fd event{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
  if (!event) return base::fail_errno("cannot make an event descriptor");
  auto out = std::unique_ptr<Departure>{new Departure{device, std::move(event)}};
  if (rte_dev_event_callback_register(device.c_str(), tell, out.get()) != 0) {
    return base::fail("cannot hear of the departure of " + device);
  }
  return out;
}

Departure::~Departure() {
  // It may be under way on DPDK's thread: a few instructions.
  while (rte_dev_event_callback_unregister(device_.c_str(), tell, this) == -EAGAIN) ::sched_yield();
}

}  // namespace millrace::vswitch
