// The machine's devices: where they go, and how they come and go while the guest runs.
#include <sys/eventfd.h>

#include <algorithm>
#include <utility>

#include "base/error.hpp"
#include "vmm/machine.hpp"

namespace millrace::vmm {

using base::fail;
using base::Result;

Result<void> Machine::add_pci(const MachineConfig& config) {
  on_unplugged_ = config.on_unplugged;
  released_ = base::Fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  if (!released_) return base::fail_errno("cannot make an eventfd");
  const auto tell = [fd = released_.get()] { ::eventfd_write(fd, 1); };
  if (auto ok = pci_.start(config.ports, interrupts_, tell); !ok) return ok;
  const auto known = [&](const NamedFunction& function) {
    return config.places.contains(function.id);
  };
  for (const auto& function : config.functions) {
    if (!known(function)) continue;
    if (auto ok =
            put_in(function.id, make_function(function), config.places.at(function.id), false);
        !ok) {
      return ok;
    }
  }
  for (const auto& function : config.functions) {
    if (known(function)) continue;
    const auto place =
        free_place(function.removable ? pci_layout::first_port_place : pci_layout::first_place);
    if (!place) {
      return fail("the guest's PCI buses have room for " + std::to_string(places_.size()) +
                  " devices, not for " + std::to_string(config.functions.size()));
    }
    if (auto ok = put_in(function.id, make_function(function), *place, false); !ok) return ok;
  }
  return {};
}

Result<std::unique_ptr<PciFunction>> Machine::make_function(const NamedFunction& function) {
  if (function.passthrough) return function.passthrough(bar_slots_, interrupts_, ram_);
  return function.make(vm_, interrupts_, ram_);
}

Result<void> Machine::put_in(const std::string& id, Result<std::unique_ptr<PciFunction>> made,
                             unsigned place, bool running) {
  if (!made) return base::Unexpected{made.error()};
  if (places_.contains(id)) {
    return fail("there is a device '" + id + "' already: give this one another id");
  }
  auto ok = pci_layout::is_behind_port(place)
                ? pci_.plug_behind(pci_layout::port_of(place), *std::move(made), running)
                : pci_.plug(place, *std::move(made));
  if (ok) places_.emplace(id, place);
  return ok;
}

std::optional<unsigned> Machine::free_place(unsigned from) const {
  for (auto place = from; place < pci_layout::first_port_place + pci_.ports(); ++place) {
    const auto same = [&](const auto& device) { return device.second == place; };
    if (std::ranges::none_of(places_, same)) return place;
  }
  return std::nullopt;
}

Result<void> Machine::has_room_for(const std::string& id) const {
  if (places_.contains(id)) {
    return fail("there is a device '" + id + "' already: give this one another id");
  }
  if (free_place(pci_layout::first_port_place)) return {};
  return fail("no PCI slot is free for '" + id + "': " + std::to_string(pci_.ports()) +
              " can be plugged into; unplug a device, or start the guest with more "
              "--hotplug-slots");
}

Result<void> Machine::plug(const std::string& id, std::unique_ptr<PciFunction> function) {
  if (auto ok = has_room_for(id); !ok) return ok;
  return put_in(id, std::move(function), *free_place(pci_layout::first_port_place), true);
}

Result<void> Machine::unplug(const std::string& id) {
  const auto found = places_.find(id);
  if (found == places_.end()) return fail("there is no device '" + id + "'");
  const auto place = found->second;
  if (!pci_layout::is_behind_port(place)) {
    return fail("device '" + id +
                "' cannot be unplugged: it is on the board; start the guest with removable=yes "
                "for it");
  }
  if (!pci_.ask_for_removal(pci_layout::port_of(place), PciPort::Clock::now())) {
    return fail("device '" + id + "' is being unplugged already: the guest was asked for it");
  }
  return {};
}

std::vector<std::string> Machine::functions() const {
  std::vector<std::string> ids;
  for (const auto& [id, place] : places_) ids.push_back(id);
  return ids;
}

void Machine::take_released() {
  eventfd_t count = 0;
  ::eventfd_read(released_.get(), &count);
  while (const auto port = pci_.released_port()) remove_behind(*port);
}

void Machine::take_away(const std::string& id) {
  const auto found = places_.find(id);
  if (found == places_.end() || !pci_layout::is_behind_port(found->second)) return;
  remove_behind(pci_layout::port_of(found->second));
}

void Machine::remove_behind(unsigned port) {
  // No vCPU reaches it any more; what it has ends here, outside of every lock.
  pci_.unplug_behind(port).reset();
  const auto same = [&](const auto& device) {
    return device.second == pci_layout::first_port_place + port;
  };
  const auto found = std::ranges::find_if(places_, same);
  if (found == places_.end()) return;
  const auto id = found->first;
  places_.erase(found);
  if (on_unplugged_) on_unplugged_(id);
}

}  // namespace millrace::vmm
