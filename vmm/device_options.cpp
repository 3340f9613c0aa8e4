#include "vmm/device_options.hpp"

#include <optional>

#include "base/mac.hpp"
#include "vmm/vhost_device.hpp"

namespace millrace::vmm {

using base::fail;
using base::Result;

namespace {

// The address of one station.
std::optional<base::Mac> parse_station(const std::string& text) {
  const auto mac = base::parse_mac(text);
  const bool usable = mac && ((*mac)[0] & 1) == 0 && *mac != base::Mac{};
  return usable ? mac : std::nullopt;
}

DeviceKind kind_of(DeviceOption::Kind kind) {
  switch (kind) {
    case DeviceOption::Kind::net:
      return DeviceKind::net;
    case DeviceOption::Kind::disk:
      return DeviceKind::blk;
    case DeviceOption::Kind::rng:
      return DeviceKind::rng;
    case DeviceOption::Kind::virtio_console:
      return DeviceKind::console;
    case DeviceOption::Kind::balloon:
      return DeviceKind::balloon;
    case DeviceOption::Kind::virtio_mem:
      return DeviceKind::mem;
    case DeviceOption::Kind::vfio:
      break;  // no virtio device
  }
  return DeviceKind::net;
}

}  // namespace

Result<MakeFunction> make_device(const DeviceOption& option, std::function<int()> cancel,
                                 DeviceWatch watch) {
  VhostDeviceOptions options;
  options.socket = option.socket;
  options.queues = option.queues;
  options.queue_size = static_cast<std::uint16_t>(option.queue_size);
  options.memory = option.memory;
  options.wait = option.wait;
  options.on_change = std::move(watch.changed);
  options.confined = option.confined;
  if (!option.mac.empty()) {
    options.mac = parse_station(option.mac);
    if (!options.mac) {
      return fail("--net: mac=" + option.mac +
                  " is no address of one station, such as "
                  "52:54:00:12:34:56");
    }
  }
  const auto kind = kind_of(option.kind);
  return MakeFunction{[options, kind, cancel = std::move(cancel), made = std::move(watch.made)](
                          Doorbells& doorbells, Interrupts& interrupts,
                          const GuestRam& ram) -> Result<std::unique_ptr<PciFunction>> {
    auto now = options;
    now.cancel = cancel();
    auto device = VhostDevice::make(kind, now, doorbells, interrupts, ram);
    if (!device) return base::Unexpected{device.error()};
    if (made) made((*device)->queues());
    return std::unique_ptr<PciFunction>{*std::move(device)};
  }};
}

}  // namespace millrace::vmm
