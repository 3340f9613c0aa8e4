#include "vmm/virtio_pci.hpp"

#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>

#include "base/check.hpp"
#include "base/error.hpp"
#include "base/log.hpp"
#include "vmm/signal.hpp"

namespace millrace::vmm {

namespace {

namespace wire = virtio::wire;
using wire::PciCapability;

PciIdentity identity_of(std::uint8_t type, std::uint32_t class_code) {
  return {.vendor = wire::pci_vendor,
          .device = static_cast<std::uint16_t>(wire::pci_device_base + type),
          .revision = 1,  // not a transitional device (§4.1.2.1)
          .class_code = class_code,
          .subsystem_vendor = wire::pci_vendor,
          .subsystem = static_cast<std::uint16_t>(wire::pci_device_base + type)};
}

bool overlap(std::uint32_t a, std::size_t a_size, std::uint32_t b, std::size_t b_size) {
  return a < b + b_size && b < a + a_size;
}

}  // namespace

base::Result<VirtioPci::Parts> VirtioPci::make_parts(std::unique_ptr<VirtioBackend> backend,
                                                     Interrupts& interrupts) {
  const unsigned queues = backend->queues();
  if (queues == 0 || queues > queues_max) {
    return base::fail("a device of " + std::to_string(queues) + " queues, at most " +
                      std::to_string(queues_max) + " can be carried");
  }
  Parts parts{.backend = std::move(backend), .msix = nullptr, .kicks = {}};
  auto msix = Msix::make(interrupts, queues + 1);
  if (!msix) return base::Unexpected{msix.error()};
  parts.msix = std::move(msix).value();
  for (unsigned i = 0; i < queues; ++i) {
    parts.kicks.emplace_back(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!parts.kicks.back().valid()) return base::fail_errno("cannot make an eventfd for a queue");
  }
  return parts;
}

VirtioPci::VirtioPci(std::uint8_t type, std::uint32_t class_code, Parts parts, Doorbells& doorbells)
    : PciFunction{identity_of(type, class_code)},
      backend_{std::move(parts.backend)},
      msix_{std::move(parts.msix)},
      kicks_{std::move(parts.kicks)},
      doorbells_{doorbells},
      registers_{*backend_, *this},
      space_{backend_->config()},
      doorbell_(kicks_.size()) {
  CHECK(space_.size() <= notify_at - device_at);
  add_memory_bar(table_bar, msix_->bar_size(), false, *msix_);
  add_memory_bar(structures_bar, structures_size, true, *this);
  add_capabilities();
  backend_->open(*this);
}

VirtioPci::~VirtioPci() {
  backend_->close();
  for (unsigned i = 0; i < kicks_.size(); ++i) remove_doorbell(i);
}

std::uint8_t VirtioPci::add_structure(PciCapability type, std::uint32_t offset, std::uint32_t size,
                                      std::span<const std::byte> extra) {
  // The body lacks the capability's first two bytes, so what is at N there is at N - 2 here.
  std::array<std::byte, wire::pci_capability_extra_end - 2> body{};
  const auto put = [&body](std::size_t at, auto value) {
    std::memcpy(body.data() + at - 2, &value, sizeof value);
  };
  const auto length = wire::pci_capability_end + extra.size();
  put(wire::pci_capability_length, static_cast<std::uint8_t>(length));
  put(wire::pci_capability_type, static_cast<std::uint8_t>(type));
  put(wire::pci_capability_offset, base::le32{offset});
  put(wire::pci_capability_size, base::le32{size});
  std::array<std::byte, body.size()> writable{};
  if (type == PciCapability::window) {
    std::fill(writable.begin() + wire::pci_capability_offset - 2, writable.end(), std::byte{0xff});
    writable[wire::pci_capability_bar - 2] = std::byte{0xff};
  } else {
    put(wire::pci_capability_bar, static_cast<std::uint8_t>(structures_bar));
  }
  std::ranges::copy(extra, body.begin() + wire::pci_capability_extra - 2);
  return add_capability(wire::pci_capability_id, std::span{body}.first(length - 2),
                        std::span{writable}.first(length - 2));
}

void VirtioPci::add_capabilities() {
  const auto queues = static_cast<std::uint32_t>(kicks_.size());
  const base::le32 step{notify_step};
  constexpr std::array<std::byte, 4> no_data{};
  add_structure(PciCapability::common, common_at, sizeof(wire::PciCommon), {});
  add_structure(PciCapability::isr, isr_at, 1, {});
  // A device that has no configuration has no structure for it either (virtio 1.2 §4.1.4.6).
  if (!space_.empty()) {
    add_structure(PciCapability::device, device_at, static_cast<std::uint32_t>(space_.size()), {});
  }
  add_structure(PciCapability::notify, notify_at, queues * notify_step,
                std::as_bytes(std::span{&step, 1}));
  window_ = add_structure(PciCapability::window, 0, 0, no_data);
  msix_capability_ =
      add_capability(Msix::capability_id, msix_->capability(table_bar), Msix::writable());
}

// --- Configuration space ---

void VirtioPci::bar_mapped(unsigned index, std::uint64_t address) {
  if (index != structures_bar) return;
  const std::lock_guard lock{mutex_};
  notify_address_ = address + notify_at;
  for (unsigned i = 0; i < kicks_.size(); ++i) add_doorbell(i);
}

void VirtioPci::bar_unmapped(unsigned index, std::uint64_t) {
  if (index != structures_bar) return;
  const std::lock_guard lock{mutex_};
  notify_address_.reset();
  for (unsigned i = 0; i < kicks_.size(); ++i) remove_doorbell(i);
}

// §4.1.4.9: the window reaches the structures without a BAR.
std::optional<VirtioPci::Access> VirtioPci::window_access() const {
  const auto bar = config_at<std::uint8_t>(window_ + wire::pci_capability_bar);
  const auto offset = config_at<std::uint32_t>(window_ + wire::pci_capability_offset);
  const auto size = config_at<std::uint32_t>(window_ + wire::pci_capability_size);
  const bool legal = bar == structures_bar && (size == 1 || size == 2 || size == 4) &&
                     offset % size == 0 && offset < structures_size;
  if (!legal) return std::nullopt;
  return Access{offset, size};
}

void VirtioPci::config_written(std::uint32_t offset, std::size_t size) {
  if (overlap(offset, size, msix_capability_ + 2u, 2)) {
    msix_->set_control(config_at<std::uint16_t>(msix_capability_ + 2u));
  }
  const auto data_at = window_ + static_cast<std::uint32_t>(wire::pci_capability_extra);
  if (!overlap(offset, size, data_at, 4)) return;
  const auto access = window_access();
  if (!access) return;
  const auto value = config_at<std::uint32_t>(data_at);
  write(access->offset, std::as_bytes(std::span{&value, 1}).first(access->size));
}

void VirtioPci::config_about_to_be_read(std::uint32_t offset, std::size_t size) {
  const auto data_at = window_ + static_cast<std::uint32_t>(wire::pci_capability_extra);
  if (!overlap(offset, size, data_at, 4)) return;
  const auto access = window_access();
  if (!access) return;
  auto value = config_at<std::uint32_t>(data_at);
  read(access->offset, std::as_writable_bytes(std::span{&value, 1}).first(access->size));
  set_config_at(data_at, value);
}

// As a driver resets it.
void VirtioPci::device_reset() {
  constexpr std::byte zero{0};
  write(common_at + offsetof(wire::PciCommon, status), {&zero, 1});
}

// --- BAR 4 ---

void VirtioPci::read(std::uint64_t offset, std::span<std::byte> data) {
  if (offset >= device_at && offset < notify_at) backend_->refresh_config();
  const std::lock_guard lock{mutex_};
  std::ranges::fill(data, std::byte{0});
  if (offset < isr_at) {
    registers_.read(offset - common_at, data);
  } else if (offset < device_at) {
    if (offset == isr_at && !data.empty()) {
      data[0] = static_cast<std::byte>(std::exchange(isr_, std::uint8_t{0}));
    }
  } else if (offset < notify_at) {
    for (std::size_t i = 0; i < data.size(); ++i) {
      const auto at = offset - device_at + i;
      if (at < space_.size()) data[i] = space_[at];
    }
  }
}

void VirtioPci::write(std::uint64_t offset, std::span<const std::byte> data) {
  if (offset >= device_at && offset < notify_at) {
    return write_config_space(offset - device_at, data);
  }
  const std::lock_guard lock{mutex_};
  if (offset < isr_at) {
    registers_.write(offset - common_at, data);
  } else if (offset >= notify_at) {
    ring(offset - notify_at, data.size());
  }
}

// The back-end has it before the driver goes on, and its thread may want the lock meanwhile.
void VirtioPci::write_config_space(std::uint64_t offset, std::span<const std::byte> data) {
  {
    const std::lock_guard lock{mutex_};
    if (offset >= space_.size() || data.size() > space_.size() - offset) return;
  }
  if (!backend_->write_config(static_cast<std::uint32_t>(offset), data)) return;
  const std::lock_guard lock{mutex_};
  std::ranges::copy(data, space_.begin() + static_cast<std::ptrdiff_t>(offset));
}

// --- Queues ---

void VirtioPci::ring(std::uint64_t offset, std::size_t size) {
  const auto queue = offset / notify_step;
  if (offset % notify_step != 0 || size > notify_step || queue >= kicks_.size()) return;
  if (registers_.enabled(static_cast<unsigned>(queue))) signal(kicks_[queue].get());
}

void VirtioPci::queue_enabled(unsigned queue, bool enabled) {
  enabled ? add_doorbell(queue) : remove_doorbell(queue);
}

void VirtioPci::add_doorbell(unsigned queue) {
  if (!notify_address_ || doorbell_[queue] || !registers_.enabled(queue)) return;
  const auto address = *notify_address_ + queue * notify_step;
  const auto assigned = doorbells_.assign(address, 0, kicks_[queue].get());
  if (assigned) {
    doorbell_[queue] = address;
  } else if (!std::exchange(said_slow_, true)) {
    spdlog::warn("a guest's kicks take the long way: {}", assigned.error().message);
  }
}

void VirtioPci::remove_doorbell(unsigned queue) {
  if (!doorbell_[queue]) return;
  doorbells_.remove(*doorbell_[queue], 0, kicks_[queue].get());
  doorbell_[queue].reset();
}

// --- The back-end's events ---

void VirtioPci::config_changed(std::span<const std::byte> config) {
  const std::lock_guard lock{mutex_};
  if (std::ranges::equal(config, space_)) return;
  for (std::size_t i = 0; i < std::min(config.size(), space_.size()); ++i) space_[i] = config[i];
  if (registers_.config_changed()) interrupt_for_config();
}

void VirtioPci::needs_reset() {
  const std::lock_guard lock{mutex_};
  if (registers_.backend_needs_reset()) interrupt_for_config();
}

void VirtioPci::interrupt_for_config() {
  isr_ |= wire::isr_config;
  msix_->raise(registers_.config_vector());
}

void VirtioPci::stopped() {
  const std::lock_guard lock{mutex_};
  registers_.backend_stopped();
}

void VirtioPci::queue_stopped(unsigned index) {
  const std::lock_guard lock{mutex_};
  registers_.backend_queue_stopped(index);
}

}  // namespace millrace::vmm
