#include "vmm/companion_shape.hpp"

#include <algorithm>
#include <span>
#include <string>

#include "virtio/wire/balloon.hpp"
#include "virtio/wire/console.hpp"
#include "virtio/wire/mem.hpp"

namespace millrace::vmm {

namespace {

namespace balloon_bit = virtio::wire::balloon_feature;
namespace cf = virtio::wire::console_feature;
namespace mf = virtio::wire::mem_feature;
using base::fail;

// Bits 0 to 23 are the device type's (virtio 1.2 §2.2).
constexpr std::uint64_t type_bits = 0x00ff'ffff;

// What is known of a kind: no message says what kind a back-end is, but its own bits do.
struct Kind {
  const char* name;
  std::uint64_t known;  // bits that the specification gives this kind
  // Bits that are carried. The driver's poison value and its emergency write are not: both are
  // fields that it writes in the configuration space.
  std::uint64_t carried;
  std::size_t config_size;
};

Kind kind_of(DeviceKind kind) {
  switch (kind) {
    case DeviceKind::console:
      return {"console", cf::size | cf::multiport | cf::emerg_write, cf::size | cf::multiport,
              sizeof(virtio::wire::ConsoleConfig)};
    case DeviceKind::balloon:
      return {"balloon",
              balloon_bit::must_tell_host | balloon_bit::stats_vq | balloon_bit::deflate_on_oom |
                  balloon_bit::free_page_hint | balloon_bit::page_poison |
                  balloon_bit::page_reporting,
              balloon_bit::must_tell_host | balloon_bit::stats_vq | balloon_bit::deflate_on_oom |
                  balloon_bit::free_page_hint | balloon_bit::page_reporting,
              sizeof(virtio::wire::BalloonConfig)};
    case DeviceKind::mem:  // the guest has no table that would give a proximity domain a meaning
      return {"memory device", mf::acpi_pxm | mf::unplugged_inaccessible,
              mf::unplugged_inaccessible, sizeof(virtio::wire::MemConfig)};
    default:
      return {"entropy device", 0, 0, 0};
  }
}

unsigned queues_of(DeviceKind kind, const DeviceShape& shape) {
  const auto has = [&shape](std::uint64_t bit) { return (shape.features & bit) != 0 ? 1u : 0u; };
  switch (kind) {
    case DeviceKind::console: {
      if (has(cf::multiport) == 0) return 2;
      virtio::wire::ConsoleConfig config;
      std::copy_n(shape.config.begin(), sizeof config,
                  std::as_writable_bytes(std::span{&config, 1}).begin());
      const auto ports = config.max_nr_ports.host();
      return ports > virtio::wire::console_ports_max ? 0 : 2 * ports + 2;
    }
    case DeviceKind::balloon:
      return 2 + has(balloon_bit::stats_vq) + has(balloon_bit::free_page_hint) +
             has(balloon_bit::page_reporting);
    default:
      return 1;
  }
}

}  // namespace

std::size_t companion_config_size(DeviceKind kind) {
  return kind_of(kind).config_size;
}

base::Result<DeviceShape> companion_shape(const BackendOffer& offer, DeviceKind kind,
                                          std::uint64_t ring_bits) {
  const Kind known = kind_of(kind);
  if ((offer.features & type_bits & ~known.known) != 0) {
    return fail(std::string{"this is not the socket of a"} + (known.name[0] == 'e' ? "n " : " ") +
                known.name);
  }
  if (offer.config.empty() && known.config_size != 0) {
    return fail("the back-end has no configuration space to give (CONFIG)");
  }
  DeviceShape shape;
  shape.features = offer.features & (ring_bits | known.carried);
  shape.config = offer.config;
  shape.config.resize(known.config_size);
  shape.queues = shape.vrings = queues_of(kind, shape);
  if (shape.queues < 1 || (offer.queues != 0 && offer.queues < shape.queues)) {
    return fail("the back-end has " + std::to_string(offer.queues) +
                " queues, which is not what a" + (known.name[0] == 'e' ? "n " : " ") + known.name +
                " of its features has");
  }
  return shape;
}

}  // namespace millrace::vmm
