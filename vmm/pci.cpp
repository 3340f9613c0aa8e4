#include "vmm/pci.hpp"

#include <algorithm>
#include <bit>

namespace millrace::vmm {

namespace {

// Offsets in the type 0 header, PCI Local Bus 3.0 §6.1.
constexpr std::uint32_t command_at = 0x04, status_at = 0x06, class_at = 0x08, cache_line_at = 0x0c,
                        bar_at = 0x10, subsystem_at = 0x2c, capabilities_at = 0x34,
                        interrupt_line_at = 0x3c;
constexpr std::uint16_t command_memory = 1 << 1, command_bus_master = 1 << 2,
                        command_no_intx = 1 << 10;
constexpr std::uint16_t status_capabilities = 1 << 4;
constexpr std::uint32_t bar_64_bits = 2 << 1, bar_prefetchable = 1 << 3;
constexpr std::uint16_t capabilities_end = 0x100;  // extended space begins there

}  // namespace

PciFunction::PciFunction(const PciIdentity& identity) {
  set_config_at(0, identity.vendor);
  set_config_at(2, identity.device);
  set_config_at(class_at, identity.class_code << 8 | identity.revision);
  set_config_at(subsystem_at, identity.subsystem_vendor);
  set_config_at(subsystem_at + 2, identity.subsystem);
  constexpr std::uint16_t commands = command_memory | command_bus_master | command_no_intx;
  set_writable_at(command_at, std::as_bytes(std::span{&commands, 1}));
  constexpr std::byte all{0xff};
  set_writable_at(cache_line_at, {&all, 1});
  set_writable_at(interrupt_line_at, {&all, 1});
}

void PciFunction::add_memory_bar(unsigned index, std::uint64_t size, bool wide, BusDevice& device) {
  CHECK(index + (wide ? 1 : 0) < bars && bars_[index].size == 0 && !bars_[index].upper_half);
  CHECK(std::has_single_bit(size) && size >= 4096 && (wide || size <= 1u << 31));
  bars_[index] = Bar{.size = size, .wide = wide, .device = &device};
  const std::uint64_t mask = ~(size - 1);
  const auto at = bar_at + 4 * index;
  const auto low = static_cast<std::uint32_t>(mask), high = static_cast<std::uint32_t>(mask >> 32);
  set_writable_at(at, std::as_bytes(std::span{&low, 1}));
  if (!wide) return;
  CHECK(bars_[index + 1].size == 0);
  bars_[index + 1].upper_half = true;
  set_config_at<std::uint32_t>(at, bar_64_bits | bar_prefetchable);
  set_writable_at(at + 4, std::as_bytes(std::span{&high, 1}));
}

std::uint8_t PciFunction::add_capability(std::uint8_t id, std::span<const std::byte> body,
                                         std::span<const std::byte> writable) {
  const auto at = next_capability_;
  CHECK(at + 2 + body.size() <= capabilities_end);
  CHECK(writable.empty() || writable.size() == body.size());
  const auto offset = static_cast<std::uint8_t>(at);
  config_[at] = std::byte{id};
  std::ranges::copy(body, config_.begin() + at + 2);
  set_writable_at(at + 2u, writable);
  set_config_at<std::uint8_t>(last_capability_ == 0 ? capabilities_at : last_capability_ + 1u,
                              offset);
  set_config_at<std::uint16_t>(status_at,
                               config_at<std::uint16_t>(status_at) | status_capabilities);
  last_capability_ = offset;
  next_capability_ = static_cast<std::uint16_t>((at + 2 + body.size() + 3) / 4 * 4);
  return offset;
}

void PciFunction::set_writable_at(std::uint32_t offset, std::span<const std::byte> mask) {
  CHECK(offset <= config_size && mask.size() <= config_size - offset);
  std::ranges::copy(mask, writable_.begin() + offset);
}

void PciFunction::config_read(std::uint32_t offset, std::span<std::byte> data) {
  if (offset >= config_size || data.size() > config_size - offset) {
    std::ranges::fill(data, std::byte{0xff});
    return;
  }
  config_about_to_be_read(offset, data.size());
  std::copy_n(config_.begin() + offset, data.size(), data.begin());
}

void PciFunction::config_write(std::uint32_t offset, std::span<const std::byte> data) {
  if (offset >= config_size || data.size() > config_size - offset) return;
  for (std::size_t i = 0; i < data.size(); ++i) {
    const auto mask = writable_[offset + i];
    auto& byte = config_[offset + i];
    byte = (byte & ~mask) | (data[i] & mask);
  }
  if (offset < bar_at + 4 * bars) update_mappings();
  config_written(offset, data.size());
}

std::uint64_t PciFunction::bar_address(unsigned index) const {
  const auto at = bar_at + 4 * index;
  std::uint64_t address = config_at<std::uint32_t>(at) & ~0xfu;
  if (bars_[index].wide) address |= std::uint64_t{config_at<std::uint32_t>(at + 4)} << 32;
  return address;
}

PciFunction::BarInfo PciFunction::bar(unsigned index) const {
  if (index >= bars || bars_[index].size == 0) return {};
  return {bars_[index].size, bar_address(index), bars_[index].wide};
}

bool PciFunction::is_bus_master() const {
  return (config_at<std::uint16_t>(command_at) & command_bus_master) != 0;
}

void PciFunction::assign_bar(unsigned index, std::uint64_t address) {
  CHECK(index < bars && bars_[index].size != 0 && address % bars_[index].size == 0);
  const auto at = bar_at + 4 * index;
  const auto kind = config_at<std::uint32_t>(at) & 0xf;
  set_config_at(at, static_cast<std::uint32_t>(address) | kind);
  if (bars_[index].wide) set_config_at(at + 4, static_cast<std::uint32_t>(address >> 32));
  update_mappings();
}

void PciFunction::set_memory_bus(Bus* bus, const PciGate* gate) {
  if (bus_ != nullptr) {
    for (unsigned i = 0; i < bars; ++i) unmap_bar(i);
  }
  bus_ = bus;
  gate_ = gate;
  update_mappings();
}

void PciFunction::unmap_bar(unsigned index) {
  auto& bar = bars_[index];
  if (!bar.mapped) return;
  bar.mapped = false;
  bus_->unmap(bar.mapped_at);
  bar_unmapped(index, bar.mapped_at);
}

// A BAR that the guest puts where another device answers is nowhere until it is moved again.
void PciFunction::update_mappings() {
  if (bus_ == nullptr) return;
  const bool enabled = (config_at<std::uint16_t>(command_at) & command_memory) != 0;
  for (unsigned i = 0; i < bars; ++i) {
    auto& bar = bars_[i];
    if (bar.size == 0) continue;
    const auto address = bar_address(i);
    const bool answers = enabled && (gate_ == nullptr || gate_->forwards(address, bar.size));
    if (bar.mapped && (!answers || bar.mapped_at != address)) unmap_bar(i);
    if (!answers || bar.mapped || address == 0) continue;
    if (!bus_->map(address, bar.size, *bar.device)) continue;
    bar.mapped = true;
    bar.mapped_at = address;
    bar_mapped(i, address);
  }
}

void PciFunction::reset() {
  for (std::size_t i = 0; i < config_size; ++i) config_[i] &= ~writable_[i];
  update_mappings();
  config_written(0, config_size);
  device_reset();
}

void PciFunction::bar_mapped(unsigned, std::uint64_t) {}
void PciFunction::bar_unmapped(unsigned, std::uint64_t) {}
void PciFunction::config_written(std::uint32_t, std::size_t) {}
void PciFunction::config_about_to_be_read(std::uint32_t, std::size_t) {}
void PciFunction::device_reset() {}

}  // namespace millrace::vmm
