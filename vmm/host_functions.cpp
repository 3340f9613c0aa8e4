#include "vmm/host_functions.hpp"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <utility>

#include "base/error.hpp"
#include "base/log.hpp"
#include "vfio/host_function.hpp"

namespace millrace::vmm {

using base::fail;
using base::Result;

Result<std::unique_ptr<HostFunctions>> HostFunctions::open(
    const std::vector<std::string>& addresses, vfio::Kernel& kernel, const std::string& root) {
  // What is wrong with a function says more than what is wrong with VFIO for want of one.
  for (const auto& address : addresses) {
    const auto function = vfio::find_function(address, root);
    if (!function) return base::Unexpected{function.error()};
    if (auto ok = vfio::check_ready(*function); !ok) return base::Unexpected{ok.error()};
  }
  auto domain = vfio::Domain::open(kernel);
  if (!domain) return base::Unexpected{domain.error()};
  std::unique_ptr<HostFunctions> made{new HostFunctions{kernel, *std::move(domain)}};
  for (const auto& address : addresses) {
    if (auto ok = made->add(address, root); !ok) return base::Unexpected{ok.error()};
  }
  return made;
}

Result<void> HostFunctions::add(const std::string& address, const std::string& root) {
  const auto function = vfio::find_function(address, root);
  if (!function) return base::Unexpected{function.error()};
  const auto number = function->group.value_or(0);
  if (!groups_.contains(number)) {
    auto group = vfio::Group::open(number, kernel_);
    if (!group) return fail(address + ": " + group.error().message);
    if (auto ok = domain_.attach(*group); !ok) return fail(address + ": " + ok.error().message);
    groups_.emplace(number, *std::move(group));
  }
  auto& entry = entries_[address];
  entry.group = &groups_.at(number);
  entry.failed = base::Fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  entry.wanted = base::Fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  if (!entry.failed || !entry.wanted) return base::fail_errno("cannot make an eventfd");
  return {};
}

Result<void> HostFunctions::watch(base::EventLoop& loop, Events events) {
  const auto add = [&loop](int fd, std::function<void()> run) {
    return loop.watch(fd, EPOLLIN, [fd, run = std::move(run)](std::uint32_t) {
      eventfd_t count = 0;
      ::eventfd_read(fd, &count);
      run();
    });
  };
  for (auto& [address, entry] : entries_) {
    auto failed = add(entry.failed.get(), [tell = events.failed, where = address] { tell(where); });
    if (!failed) return base::Unexpected{failed.error()};
    entry.failed_watch = *std::move(failed);
    auto wanted = add(entry.wanted.get(), [tell = events.wanted, where = address] { tell(where); });
    if (!wanted) return base::Unexpected{wanted.error()};
    entry.wanted_watch = *std::move(wanted);
  }
  return {};
}

Result<HostFunctions::Taken> HostFunctions::take(const std::string& address, const GuestRam& ram) {
  const auto found = entries_.find(address);
  if (found == entries_.end()) {
    return fail(address + " was not named when the guest was started: --vfio-allow " + address);
  }
  const std::lock_guard lock{mutex_};
  Taken taken;
  taken.dma = dma_.lock();
  if (!taken.dma) {
    auto dma = GuestDma::make(domain_, ram);
    if (!dma) return fail(address + ": " + dma.error().message);
    dma_ = taken.dma = *std::move(dma);
  }
  auto device = vfio::Device::open(*found->second.group, address, kernel_);
  if (!device) return base::Unexpected{device.error()};
  // What its last owner left in it is nobody's business.
  if (auto ok = device->reset(); !ok) return base::Unexpected{ok.error()};
  const auto tell = [&](vfio::Irq kind, int eventfd) {
    if (device->vectors(kind) == 0) return;
    const auto ok = device->set_irqs(kind, {&eventfd, 1});
    if (!ok) spdlog::warn("{}", ok.error().message);
  };
  tell(vfio::Irq::error, found->second.failed.get());
  tell(vfio::Irq::request, found->second.wanted.get());
  taken.device = std::make_unique<vfio::Device>(*std::move(device));
  return taken;
}

}  // namespace millrace::vmm
