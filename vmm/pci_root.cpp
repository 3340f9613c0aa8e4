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

// Part `index` of `count` equal ones.
MemoryWindow share_of(const MemoryWindow& window, unsigned count, unsigned index) {
  return {window.start + index * (window.size / count), window.size / count};
}

// Fails with the rest of a line.
Result<void> place_bars(PciFunction& function, MemoryWindow low, MemoryWindow high) {
  for (unsigned i = 0; i < PciFunction::bars; ++i) {
    const auto bar = function.bar(i);
    if (bar.size == 0) continue;
    auto& from = bar.wide ? high : low;
    const auto address = (from.start + bar.size - 1) / bar.size * bar.size;
    const auto needed = address - from.start + bar.size;
    if (needed > from.size) {
      return fail(" has no room for a BAR of " + std::to_string(bar.size) + " bytes");
    }
    function.assign_bar(i, address);
    from.start += needed;
    from.size -= needed;
  }
  return {};
}

}  // namespace

PciRoot::PciRoot(Bus& ports, Bus& memory, MemoryWindow high, std::function<void()> reset)
    : ports_bus_{ports}, memory_{memory}, high_{high}, reset_{std::move(reset)} {}

PciRoot::~PciRoot() {
  memory_.unmap(ecam_address);
  ports_bus_.unmap(port);
  for (auto& place : places_) {
    if (place.function) place.function->set_memory_bus(nullptr);
  }
}

Result<void> PciRoot::start() {
  places_[0].function = std::make_unique<PciFunction>(host_bridge);
  if (auto ok = memory_.map(ecam_address, (1 + ports_.size()) << 20, ecam_); !ok) return ok;
  return ports_bus_.map(port, port_size, port_device_);
}

Result<void> PciRoot::start(unsigned ports, Interrupts& interrupts, std::function<void()> let_go) {
  if (ports > pci_layout::ports_max) {
    return fail("at most " + std::to_string(pci_layout::ports_max) + " PCI root ports fit, not " +
                std::to_string(ports));
  }
  for (unsigned i = 0; i < ports; ++i) {
    if (auto ok = add_port(i, ports, interrupts, let_go); !ok) return ok;
  }
  return start();
}

Result<void> PciRoot::add_port(unsigned index, unsigned ports, Interrupts& interrupts,
                               const std::function<void()>& let_go) {
  const auto devfn = pci_layout::port_devfn(index);
  const auto share = [devfn](const MemoryWindow& window) {
    return share_of(share_of(window, slots, devfn / functions_per_slot), functions_per_slot,
                    devfn % functions_per_slot);
  };
  PciPort::Settings settings;
  settings.number = index + 1;
  settings.bus = static_cast<std::uint8_t>(index + 1);
  settings.low = share(low_window);
  settings.high = share(high_);
  settings.multifunction = devfn % functions_per_slot == 0 && index + 1 < ports;
  auto made = PciPort::make(settings, interrupts, let_go);
  if (!made) return base::Unexpected{made.error()};
  auto& place = places_[devfn];
  ports_.push_back({made->get(), &place, settings.low, settings.high});
  place.function = *std::move(made);
  return {};
}

Result<void> PciRoot::plug(unsigned slot, std::unique_ptr<PciFunction> function) {
  if (slot == 0 || slot >= slots) {
    return fail("there is no PCI slot " + std::to_string(slot) + " for a device: 1 to 31");
  }
  auto& place = places_[slot * functions_per_slot];
  const std::lock_guard lock{place.mutex};
  if (place.function) return fail("PCI slot " + std::to_string(slot) + " is taken");
  auto ok = place_bars(*function, share_of(low_window, slots, slot), share_of(high_, slots, slot));
  if (!ok) return fail("PCI slot " + std::to_string(slot) + ok.error().message);
  function->set_memory_bus(&memory_);
  place.function = std::move(function);
  return {};
}

std::unique_ptr<PciFunction> PciRoot::unplug(unsigned slot) {
  CHECK(slot < slots);
  auto& place = places_[slot * functions_per_slot];
  const auto is_port = [&](const PortAt& at) { return at.place == &place; };
  CHECK(std::ranges::none_of(ports_, is_port));
  const std::lock_guard lock{place.mutex};
  auto function = std::move(place.function);
  if (function) function->set_memory_bus(nullptr);
  return function;
}

Result<void> PciRoot::plug_behind(unsigned index, std::unique_ptr<PciFunction> function,
                                  bool running) {
  const auto name = "PCI root port " + std::to_string(index);
  if (index >= ports_.size()) return fail("there is no " + name);
  const auto& [bridge, place, low, high] = ports_[index];
  const std::lock_guard lock{place->mutex};
  if (bridge->device() != nullptr) return fail(name + " is taken");
  auto ok = place_bars(*function, low, high);
  if (!ok) return fail(name + ok.error().message);
  bridge->insert(std::move(function), memory_, running);
  return {};
}

bool PciRoot::ask_for_removal(unsigned index, PciPort::Clock::time_point now) {
  CHECK(index < ports_.size());
  const std::lock_guard lock{ports_[index].place->mutex};
  return ports_[index].port->ask_for_removal(now);
}

std::optional<unsigned> PciRoot::released_port() {
  for (unsigned i = 0; i < ports_.size(); ++i) {
    const std::lock_guard lock{ports_[i].place->mutex};
    if (ports_[i].port->has_let_go()) return i;
  }
  return std::nullopt;
}

std::unique_ptr<PciFunction> PciRoot::unplug_behind(unsigned index) {
  CHECK(index < ports_.size());
  const std::lock_guard lock{ports_[index].place->mutex};
  return ports_[index].port->take();
}

// A port leads to one device and no further bridge, so this ends after one step. Where a guest
// gives two ports the same bus, the first has it.
template <class Access>
void PciRoot::with_function(std::uint32_t address, Access access) {
  const auto bus = address >> 20 & 0xff, devfn = address >> 12 & 0xff;
  if (bus == 0) {
    auto& place = places_[devfn];
    const std::lock_guard lock{place.mutex};
    if (place.function) access(*place.function);
    return;
  }
  for (const auto& [bridge, place, low, high] : ports_) {
    if (bridge->secondary_bus() != bus) continue;
    if (devfn != 0) return;
    const std::lock_guard lock{place->mutex};
    if (bridge->device() != nullptr) access(*bridge->device());
    return;
  }
}

void PciRoot::config_read(std::uint32_t address, std::span<std::byte> data) {
  in_double_words(address, data, [this](std::uint32_t at, std::span<std::byte> piece) {
    std::ranges::fill(piece, std::byte{0xff});
    with_function(at, [&](PciFunction& function) { function.config_read(at & 0xfff, piece); });
  });
}

void PciRoot::config_write(std::uint32_t address, std::span<const std::byte> data) {
  in_double_words(address, data, [this](std::uint32_t at, std::span<const std::byte> piece) {
    with_function(at, [&](PciFunction& function) { function.config_write(at & 0xfff, piece); });
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
