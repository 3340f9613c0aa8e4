#include "vmm/pci_root.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "base/check.hpp"

namespace millrace::vmm {

using base::fail;
using base::Result;

namespace {

// A bridge that drivers have no special cases for.
constexpr PciIdentity host_bridge{.vendor = 0x1b36, .device = 0x0008, .class_code = 0x060000};

constexpr std::uint64_t reset_offset = 1, data_offset = 4;  // from 0xCF8
constexpr std::uint32_t address_enable = 1u << 31;
constexpr std::uint8_t reset_now = 1 << 2;

// Splits [offset, offset + data) into naturally aligned pieces of at most 4 bytes.
template <class Bytes, class Each>
void in_double_words(std::uint32_t offset, Bytes data, Each each) {
  while (!data.empty()) {
    std::size_t size = 4;
    while (size > data.size() || offset % size != 0) size /= 2;
    each(offset, data.first(size));
    data = data.subspan(size);
    offset += static_cast<std::uint32_t>(size);
  }
}

}  // namespace

PciRoot::PciRoot(Bus& ports, Bus& memory, MemoryWindow high, std::function<void()> reset)
    : ports_{ports}, memory_{memory}, high_{high}, reset_{std::move(reset)} {}

PciRoot::~PciRoot() {
  memory_.unmap(ecam_address);
  ports_.unmap(port);
  for (unsigned slot = 0; slot < slots; ++slot) unplug(slot);
}

Result<void> PciRoot::start() {
  slots_[0].function = std::make_unique<PciFunction>(host_bridge);
  if (auto ok = memory_.map(ecam_address, ecam_size, ecam_); !ok) return ok;
  return ports_.map(port, port_size, port_device_);
}

Result<void> PciRoot::place_bars(unsigned slot, PciFunction& function) const {
  const auto share = [slot](const MemoryWindow& window) {
    return MemoryWindow{window.start + slot * (window.size / slots), window.size / slots};
  };
  auto low = share(low_window), high = share(high_);
  for (unsigned i = 0; i < PciFunction::bars; ++i) {
    const auto bar = function.bar(i);
    if (bar.size == 0) continue;
    auto& from = bar.wide ? high : low;
    const auto address = (from.start + bar.size - 1) / bar.size * bar.size;
    const auto needed = address - from.start + bar.size;
    if (needed > from.size) {
      return fail("PCI slot " + std::to_string(slot) + " has no room for a BAR of " +
                  std::to_string(bar.size) + " bytes");
    }
    function.assign_bar(i, address);
    from.start += needed;
    from.size -= needed;
  }
  return {};
}

Result<void> PciRoot::plug(unsigned slot, std::unique_ptr<PciFunction> function) {
  if (slot == 0 || slot >= slots) {
    return fail("there is no PCI slot " + std::to_string(slot) + " for a device: 1 to 31");
  }
  auto& place = slots_[slot];
  const std::lock_guard lock{place.mutex};
  if (place.function) return fail("PCI slot " + std::to_string(slot) + " is taken");
  if (auto ok = place_bars(slot, *function); !ok) return ok;
  function->set_memory_bus(&memory_);
  place.function = std::move(function);
  return {};
}

std::unique_ptr<PciFunction> PciRoot::unplug(unsigned slot) {
  CHECK(slot < slots);
  const std::lock_guard lock{slots_[slot].mutex};
  auto function = std::move(slots_[slot].function);
  if (function) function->set_memory_bus(nullptr);
  return function;
}

PciRoot::Slot* PciRoot::slot_of(std::uint32_t address) {
  const auto bus = address >> 20, slot = address >> 15 & 31, function = address >> 12 & 7;
  return bus == 0 && function == 0 ? &slots_[slot] : nullptr;
}

void PciRoot::config_read(std::uint32_t address, std::span<std::byte> data) {
  in_double_words(address, data, [this](std::uint32_t at, std::span<std::byte> piece) {
    std::ranges::fill(piece, std::byte{0xff});
    auto* const slot = slot_of(at);
    if (slot == nullptr) return;
    const std::lock_guard lock{slot->mutex};
    if (slot->function) slot->function->config_read(at & 0xfff, piece);
  });
}

void PciRoot::config_write(std::uint32_t address, std::span<const std::byte> data) {
  in_double_words(address, data, [this](std::uint32_t at, std::span<const std::byte> piece) {
    auto* const slot = slot_of(at);
    if (slot == nullptr) return;
    const std::lock_guard lock{slot->mutex};
    if (slot->function) slot->function->config_write(at & 0xfff, piece);
  });
}

void PciRoot::Ecam::read(std::uint64_t offset, std::span<std::byte> data) {
  root_.config_read(static_cast<std::uint32_t>(offset), data);
}

void PciRoot::Ecam::write(std::uint64_t offset, std::span<const std::byte> data) {
  root_.config_write(static_cast<std::uint32_t>(offset), data);
}

std::optional<std::uint32_t> PciRoot::Ports::target(std::uint64_t offset) {
  const std::lock_guard lock{mutex_};
  if ((address_ & address_enable) == 0) return std::nullopt;
  const auto function = address_ >> 8 & 0xffff;
  return function << 12 | (address_ & 0xfc) | static_cast<std::uint32_t>(offset - data_offset);
}

void PciRoot::Ports::read(std::uint64_t offset, std::span<std::byte> data) {
  if (offset >= data_offset) {
    if (const auto at = target(offset)) root_.config_read(*at, data);
    return;
  }
  const std::lock_guard lock{mutex_};
  if (offset == 0 && data.size() == sizeof address_) {
    std::memcpy(data.data(), &address_, sizeof address_);
  } else if (offset == reset_offset && data.size() == 1) {
    data.front() = std::byte{0};
  }
}

void PciRoot::Ports::write(std::uint64_t offset, std::span<const std::byte> data) {
  if (offset >= data_offset) {
    if (const auto at = target(offset)) root_.config_write(*at, data);
    return;
  }
  if (offset == 0 && data.size() == sizeof address_) {
    const std::lock_guard lock{mutex_};
    std::memcpy(&address_, data.data(), sizeof address_);
  } else if (offset == reset_offset && data.size() == 1) {
    if ((std::to_integer<unsigned>(data.front()) & reset_now) != 0) root_.reset_();
  }
}

}  // namespace millrace::vmm
