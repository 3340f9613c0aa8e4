#include "vmm/passthrough.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/log.hpp"

namespace millrace::vmm {

using base::fail;
using base::Result;

namespace {

constexpr std::uint32_t command_at = 0x04, status_at = 0x06, capabilities_at = 0x34;
constexpr std::uint16_t command_memory = 1 << 1, command_master = 1 << 2, command_no_intx = 1 << 10,
                        status_capabilities = 1 << 4;
constexpr std::uint8_t express_id = 0x10;
constexpr std::size_t double_word = 4;  // the largest access of a guest to configuration space

bool overlap(std::uint32_t offset, std::size_t size, std::uint32_t at, std::size_t length) {
  return offset < at + length && at < offset + size;
}

Result<FunctionShape> look_at(const vfio::Device& device) {
  std::array<std::byte, 256> config{};
  if (auto ok = device.read(vfio::region_config, 0, config); !ok) {
    return base::Unexpected{ok.error()};
  }
  std::array<std::uint64_t, vfio::bars> sizes{};
  for (unsigned i = 0; i < vfio::bars; ++i) sizes[i] = device.region(i).size;
  auto shape = shape_of(config, sizes);
  if (!shape) return fail(device.address() + ": " + shape.error().message);
  if (device.vectors(vfio::Irq::msix) < shape->vectors) {
    return fail(device.address() + ": the kernel offers fewer interrupts than it has");
  }
  return shape;
}

}  // namespace

Result<std::unique_ptr<Passthrough>> Passthrough::make(HostFunctions::Taken taken, BarSlots& slots,
                                                       Interrupts& interrupts) {
  const auto shape = look_at(*taken.device);
  if (!shape) return base::Unexpected{shape.error()};
  auto msix = Msix::make(interrupts, shape->vectors);
  if (!msix) return fail(taken.device->address() + ": " + msix.error().message);
  std::unique_ptr<Passthrough> made{
      new Passthrough{std::move(taken), *shape, *std::move(msix), slots}};
  if (auto ok = made->map_bars(); !ok) return base::Unexpected{ok.error()};
  made->set_command();
  return made;
}

Passthrough::Passthrough(HostFunctions::Taken taken, const FunctionShape& shape,
                         std::unique_ptr<Msix> msix, BarSlots& slots)
    : PciFunction{shape.identity},
      taken_{std::move(taken)},
      shape_{shape},
      msix_{std::move(msix)},
      slots_{slots} {
  for (unsigned i = 0; i < bars; ++i) {
    traps_[i].owner = this;
    traps_[i].index = i;
    const auto& bar = shape_.bars[i];
    if (bar.size != 0) add_memory_bar(i, bar.size, bar.wide, traps_[i]);
  }
  add_capabilities();
}

// Where the function has them, for drivers that know; the list leads from one to the next.
void Passthrough::add_capabilities() {
  const auto body = msix_->capability(shape_.table.bar);
  for (std::uint32_t i = 0; i < 2; ++i) set_config_at(shape_.msix_at + 2 + i, body[i]);
  set_config_at<std::uint8_t>(shape_.msix_at, Msix::capability_id);
  set_writable_at(shape_.msix_at + 2u, Msix::writable());
  const auto place = [this](std::uint32_t at, const FunctionShape::Table& table) {
    set_config_at(at, static_cast<std::uint32_t>(table.offset) | table.bar);
  };
  place(shape_.msix_at + 4u, shape_.table);
  place(shape_.msix_at + 8u, shape_.pending);
  set_config_at<std::uint8_t>(capabilities_at, shape_.msix_at);
  set_config_at(status_at, static_cast<std::uint16_t>(config_at<std::uint16_t>(status_at) |
                                                      status_capabilities));
  if (shape_.express_at == 0) return;
  set_config_at<std::uint8_t>(shape_.msix_at + 1u, shape_.express_at);
  set_config_at<std::uint8_t>(shape_.express_at, express_id);
  const std::vector<std::byte> all(shape_.express_size - 2u, std::byte{0xff});
  set_writable_at(shape_.express_at + 2u, all);
}

Result<void> Passthrough::map_bars() {
  for (unsigned i = 0; i < bars; ++i) {
    if (shape_.bars[i].size == 0) continue;
    for (const auto& area : taken_.device->region(i).mappable) {
      auto parts = areas_for_guest(shape_, i, {&area, 1});
      if (parts.empty()) continue;
      const auto at = taken_.device->map(i, area);
      if (!at) return base::Unexpected{at.error()};
      mapped_.push_back({i, area, *at, std::move(parts)});
    }
  }
  return {};
}

Passthrough::~Passthrough() {
  const auto& device = *taken_.device;
  constexpr std::uint16_t quiet = command_no_intx;
  say_once(device.write(vfio::region_config, command_at, std::as_bytes(std::span{&quiet, 1})));
  device.clear_irqs(vfio::Irq::msix);
  for (const auto& each : mapped_) device.unmap(each.at, each.area);
  say_once(device.reset());
}

// --- Memory ---

void Passthrough::Bar::read(std::uint64_t offset, std::span<std::byte> data) {
  const auto& table = owner->shape_.table;
  const auto& pending = owner->shape_.pending;
  auto& msix = *owner->msix_;
  if (table.holds(index, offset, data.size())) return msix.read(offset - table.offset, data);
  if (pending.holds(index, offset, data.size())) {
    return msix.read(msix.bar_size() / 2 + offset - pending.offset, data);
  }
  if (table.touches(index, offset, data.size())) return;
  // Ones stay where the function does not answer.
  std::array<std::byte, 8> bytes{};
  const auto into = std::span{bytes}.first(std::min(data.size(), bytes.size()));
  if (!owner->taken_.device->read(index, offset, into)) return;
  std::ranges::copy(into, data.begin());
}

void Passthrough::Bar::write(std::uint64_t offset, std::span<const std::byte> data) {
  const auto& table = owner->shape_.table;
  if (table.holds(index, offset, data.size())) {
    return owner->msix_->write(offset - table.offset, data);
  }
  if (table.touches(index, offset, data.size())) return;
  [[maybe_unused]] const auto ignored = owner->taken_.device->write(index, offset, data);
}

void Passthrough::bar_mapped(unsigned index, std::uint64_t address) {
  for (const auto& each : mapped_) {
    if (each.bar != index) continue;
    for (const auto& part : each.for_guest) {
      const auto slot =
          slots_.add(address + part.offset, part.size, each.at + (part.offset - each.area.offset));
      // Then it traps, which is slow and no more.
      if (!slot) return say_once(base::Unexpected{slot.error()});
      slots_of_[index].push_back(*slot);
    }
  }
}

void Passthrough::bar_unmapped(unsigned index, std::uint64_t) {
  for (const auto slot : slots_of_[index]) slots_.remove(slot);
  slots_of_[index].clear();
}

// --- Configuration space ---

void Passthrough::config_written(std::uint32_t offset, std::size_t size) {
  if (overlap(offset, size, command_at, 2)) set_command();
  if (overlap(offset, size, shape_.msix_at + 2u, 2)) set_interrupts();
  // A reset of the slot writes all at once, and resets the function anyway.
  if (size <= double_word && shape_.express_at != 0 &&
      overlap(offset, size, shape_.express_at + 2u, shape_.express_size - 2u)) {
    write_express(offset, size);
  }
}

void Passthrough::set_command() {
  const auto wanted = static_cast<std::uint16_t>(
      (config_at<std::uint16_t>(command_at) & command_master) | command_memory | command_no_intx);
  if (std::exchange(command_, wanted) == wanted) return;
  say_once(
      taken_.device->write(vfio::region_config, command_at, std::as_bytes(std::span{&wanted, 1})));
}

void Passthrough::set_interrupts() {
  const auto control = config_at<std::uint16_t>(shape_.msix_at + 2u);
  msix_->set_control(control);
  const bool on = (control & Msix::control_enable) != 0;
  if (std::exchange(delivers_, on) == on) return;
  if (!on) return taken_.device->clear_irqs(vfio::Irq::msix);
  std::vector<int> eventfds;
  for (unsigned i = 0; i < msix_->vectors(); ++i) eventfds.push_back(msix_->eventfd(i));
  say_once(taken_.device->set_irqs(vfio::Irq::msix, eventfds));
}

void Passthrough::write_express(std::uint32_t offset, std::size_t size) {
  const auto from = std::max(offset, shape_.express_at + 2u);
  const auto end = std::min<std::uint32_t>(offset + static_cast<std::uint32_t>(size),
                                           shape_.express_at + shape_.express_size + 0u);
  std::array<std::byte, double_word> bytes{};
  for (auto i = from; i < end; ++i) bytes[i - from] = config_at<std::byte>(i);
  const auto data = std::span{bytes}.first(end - from);
  [[maybe_unused]] const auto ignored = taken_.device->write(vfio::region_config, from, data);
}

void Passthrough::config_about_to_be_read(std::uint32_t offset, std::size_t size) {
  if (shape_.express_at == 0) return;
  const auto from = std::max(offset, shape_.express_at + 2u);
  const auto end = std::min<std::uint32_t>(offset + static_cast<std::uint32_t>(size),
                                           shape_.express_at + shape_.express_size + 0u);
  if (from >= end || end - from > double_word) return;
  std::array<std::byte, double_word> bytes{};
  const auto data = std::span{bytes}.first(end - from);
  if (!taken_.device->read(vfio::region_config, from, data)) return;
  for (auto i = from; i < end; ++i) set_config_at(i, bytes[i - from]);
}

void Passthrough::device_reset() {
  say_once(taken_.device->reset());
}

void Passthrough::say_once(const Result<void>& result) {
  if (result || std::exchange(complained_, true)) return;
  spdlog::error("{}", result.error().message);
}

}  // namespace millrace::vmm
