#include "vmm/vhost_device.hpp"

#include <utility>

#include "vmm/backend_link.hpp"
#include "vmm/mem_place.hpp"

namespace millrace::vmm {

namespace {

// Device types, virtio 1.2 §5, and PCI class codes: an Ethernet controller, and mass storage that
// is none of the kinds with a programming interface of its own. Companions have no class.
struct Identity {
  std::uint8_t type;
  std::uint32_t class_code;
};
Identity identity_of(DeviceKind kind) {
  switch (kind) {
    case DeviceKind::net:
      return {1, 0x020000};
    case DeviceKind::blk:
      return {2, 0x018000};
    case DeviceKind::console:
      return {3, 0x078000};  // communication, of no other kind
    case DeviceKind::rng:
      return {4, 0x00ff00};
    case DeviceKind::balloon:
      return {5, 0x00ff00};
    case DeviceKind::mem:
      return {24, 0x00ff00};
  }
  return {0, 0};
}

base::Result<void> check_options(DeviceKind kind, const VhostDeviceOptions& options) {
  if (!options.mac) return {};
  if (kind != DeviceKind::net) {
    return base::fail(options.socket + ": a disk has no mac: leave it out");
  }
  if (((*options.mac)[0] & 1) != 0) {
    return base::fail(options.socket + ": mac is a multicast address: its first byte must be even");
  }
  return {};
}

}  // namespace

VhostDevice::VhostDevice(DeviceKind kind, Parts parts, Doorbells& doorbells,
                         const BackendLink& link)
    : VirtioPci{identity_of(kind).type, identity_of(kind).class_code, std::move(parts), doorbells},
      link_{link} {}

base::Result<std::unique_ptr<VhostDevice>> VhostDevice::make(DeviceKind kind,
                                                             const VhostDeviceOptions& options,
                                                             Doorbells& doorbells,
                                                             Interrupts& interrupts,
                                                             const GuestRam& ram) {
  if (const auto ok = check_options(kind, options); !ok) return base::Unexpected{ok.error()};
  BackendLinkConfig config;
  config.socket = options.socket;
  config.shape = {.kind = kind, .mac = options.mac, .queues = options.queues};
  config.queue_size = options.queue_size;
  config.wait = options.wait;
  config.cancel = options.cancel;
  config.on_change = options.on_change;
  config.confined = options.confined;
  if (kind == DeviceKind::mem) config.told = mem_place_of(ram.managed(options.memory));
  auto link = BackendLink::make(std::move(config), ram);
  if (!link) return base::Unexpected{link.error()};
  const BackendLink& seen = **link;
  auto parts = make_parts(std::move(link).value(), interrupts);
  if (!parts) return base::fail(options.socket + ": " + parts.error().message);
  return std::unique_ptr<VhostDevice>{
      new VhostDevice{kind, std::move(parts).value(), doorbells, seen}};
}

bool VhostDevice::connected() const {
  return link_.connected();
}

unsigned VhostDevice::queues() const {
  return link_.queues();
}

}  // namespace millrace::vmm
