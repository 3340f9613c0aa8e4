#include "vmm/device_making.hpp"

#include <pthread.h>
#include <sys/eventfd.h>

#include <csignal>
#include <utility>

#include "base/error.hpp"

namespace millrace::vmm {

base::Result<std::unique_ptr<DeviceMaking>> DeviceMaking::begin(Make make,
                                                                std::function<void()> done) {
  std::unique_ptr<DeviceMaking> making{new DeviceMaking};
  making->cancel_ = base::Fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  if (!making->cancel_) return base::fail_errno("cannot make an eventfd");
  making->thread_ =
      std::thread{[seen = making.get(), make = std::move(make), done = std::move(done)] {
        // Signals are for the thread that handles them.
        ::sigset_t all;
        ::sigfillset(&all);
        ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
        ::pthread_setname_np(::pthread_self(), "device-making");
        seen->made_ = make(seen->cancel_.get());
        done();
      }};
  return making;
}

DeviceMaking::~DeviceMaking() {
  give_up();
  finish();
}

void DeviceMaking::give_up() const {
  ::eventfd_write(cancel_.get(), 1);
}

void DeviceMaking::finish() {
  if (thread_.joinable()) thread_.join();
}

DeviceMaking::Made DeviceMaking::take() {
  finish();
  return std::exchange(made_, Made{std::unique_ptr<PciFunction>{}});
}

}  // namespace millrace::vmm
