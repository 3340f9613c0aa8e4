#include "vmm/kvm_interrupts.hpp"

#include <linux/kvm.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#include <utility>

#include "base/error.hpp"
#include "vmm/kvm_list.hpp"

namespace millrace::vmm {

using base::fail;
using base::fail_errno;
using base::Result;

// Its route stays in the table while it is masked: unmasking with the same message, which is what
// drivers do, then changes nothing but the irqfd.
class KvmInterrupts::Vector final : public MsiVector {
 public:
  Vector(KvmInterrupts& owner, unsigned gsi, base::Fd eventfd)
      : owner_{owner}, gsi_{gsi}, eventfd_{std::move(eventfd)} {}
  ~Vector() override {
    disconnect();
    owner_.give_back_gsi(gsi_);
  }

  [[nodiscard]] int eventfd() const override { return eventfd_.get(); }

  Result<void> connect(const MsiMessage& message) override {
    const std::lock_guard lock{mutex_};
    if (auto ok = owner_.set_route(gsi_, message); !ok) return ok;
    if (connected_) return {};
    if (!irqfd(0)) return fail_errno("KVM refuses an irqfd");
    connected_ = true;
    return {};
  }

  void disconnect() override {
    const std::lock_guard lock{mutex_};
    if (connected_) irqfd(KVM_IRQFD_FLAG_DEASSIGN);
    connected_ = false;
  }

  [[nodiscard]] bool pending() const override {
    const std::lock_guard lock{mutex_};
    pollfd poll{eventfd_.get(), POLLIN, 0};
    return !connected_ && ::poll(&poll, 1, 0) == 1;
  }

 private:
  bool irqfd(std::uint32_t flags) {
    kvm_irqfd request{};
    request.fd = static_cast<std::uint32_t>(eventfd_.get());
    request.gsi = gsi_;
    request.flags = flags;
    return ::ioctl(owner_.vm_.fd(), KVM_IRQFD, &request) == 0;
  }

  KvmInterrupts& owner_;
  const unsigned gsi_;
  const base::Fd eventfd_;
  mutable std::mutex mutex_;
  bool connected_ = false;
};

KvmInterrupts::KvmInterrupts(KvmVm& vm) : vm_{vm}, routes_(routes_max), taken_(routes_max) {}

Result<std::unique_ptr<MsiVector>> KvmInterrupts::make_vector() {
  base::Fd eventfd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  if (!eventfd) return fail_errno("cannot make an eventfd for an interrupt");
  auto gsi = take_gsi();
  if (!gsi) return base::Unexpected{gsi.error()};
  return std::unique_ptr<MsiVector>{std::make_unique<Vector>(*this, *gsi, std::move(eventfd))};
}

Result<unsigned> KvmInterrupts::take_gsi() {
  const std::lock_guard lock{mutex_};
  for (unsigned gsi = KvmVm::ioapic_pins; gsi < routes_max; ++gsi) {
    if (taken_[gsi]) continue;
    taken_[gsi] = true;
    return gsi;
  }
  return fail("all " + std::to_string(routes_max) +
              " interrupt routes of KVM are used: give the "
              "guest fewer devices or queues");
}

void KvmInterrupts::give_back_gsi(unsigned gsi) {
  [[maybe_unused]] const auto ignored = set_route(gsi, std::nullopt);
  const std::lock_guard lock{mutex_};
  taken_[gsi] = false;
}

void KvmInterrupts::report_end(unsigned pin, const std::optional<MsiMessage>& message) {
  [[maybe_unused]] const auto ignored = set_route(pin, message);
}

Result<void> KvmInterrupts::set_route(unsigned gsi, const std::optional<MsiMessage>& message) {
  const std::lock_guard lock{mutex_};
  if (routes_[gsi] == message) return {};
  const auto before = std::exchange(routes_[gsi], message);
  std::vector<kvm_irq_routing_entry> entries;
  for (unsigned i = 0; i < routes_max; ++i) {
    if (!routes_[i]) continue;
    auto& entry = entries.emplace_back();
    entry.gsi = i;
    entry.type = KVM_IRQ_ROUTING_MSI;
    entry.u.msi.address_lo = static_cast<std::uint32_t>(routes_[i]->address);
    entry.u.msi.address_hi = static_cast<std::uint32_t>(routes_[i]->address >> 32);
    entry.u.msi.data = routes_[i]->data;
  }
  RouteList list{entries};
  if (::ioctl(vm_.fd(), set_gsi_routing, list.data()) == 0) return {};
  routes_[gsi] = before;
  return fail_errno("KVM refuses an interrupt route");
}

}  // namespace millrace::vmm
