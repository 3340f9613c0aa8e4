#include "vmm/device_shape.hpp"

#include <algorithm>
#include <span>
#include <string>

#include "vhost/wire.hpp"
#include "virtio/features.hpp"
#include "virtio/wire/balloon.hpp"
#include "virtio/wire/blk.hpp"
#include "virtio/wire/net.hpp"
#include "vmm/companion_shape.hpp"

namespace millrace::vmm {

namespace {

namespace bf = virtio::wire::blk_feature;
namespace nf = virtio::wire::net_feature;
namespace vf = virtio::feature;
using base::fail;
using virtio::wire::BlkConfig, virtio::wire::NetConfig;

// SET_VRING_KICK and its like carry an index of 8 bits.
constexpr unsigned vrings_max = 256;
constexpr std::uint64_t order_platform = 1ull << 36;
// Bits 0 to 23 and 50 to 63 are the device type's (virtio 1.2 §2.2).
constexpr std::uint64_t device_bits = 0x00ff'ffff | ~0ull << 50;
constexpr std::uint64_t ring_bits = vf::indirect_desc | vf::event_idx | vf::version_1 |
                                    vf::ring_packed | vf::in_order | order_platform |
                                    vf::ring_reset;
constexpr std::uint64_t needs_control_queue =
    nf::ctrl_guest_offloads | nf::ctrl_rx | nf::ctrl_vlan | nf::ctrl_rx_extra | nf::guest_announce |
    nf::mq | nf::ctrl_mac_addr | nf::notf_coal | nf::hash_report | nf::rss;
// Their fields can only come from a back-end.
constexpr std::uint64_t needs_net_config =
    nf::mtu | nf::mq | nf::rss | nf::hash_report | nf::speed_duplex | nf::mac;
// Their fields lie behind the part of the configuration space that is shown.
constexpr std::uint64_t beyond_blk_config = bf::secure_erase | bf::zoned;

template <class T>
T read_as(const std::vector<std::byte>& bytes) {
  T value{};
  std::copy_n(bytes.begin(), std::min(sizeof value, bytes.size()),
              std::as_writable_bytes(std::span{&value, 1}).begin());
  return value;
}

// No message says what kind a back-end is. A disk's feature bits, read as a network device's, break
// the rules of which needs which (virtio 1.2 §5.1.3.1); and two protocol features are net's alone.
bool looks_like_a_disk(std::uint64_t features) {
  const auto has = [features](std::uint64_t any) { return (features & any) != 0; };
  return (has(nf::host_tso4 | nf::host_tso6 | nf::host_ufo) && !has(nf::csum)) ||
         (has(nf::guest_ecn) && !has(nf::guest_tso4 | nf::guest_tso6)) ||
         (has(nf::host_ecn) && !has(nf::host_tso4 | nf::host_tso6));
}
bool looks_like_a_nic(std::uint64_t protocol) {
  return (protocol & (vhost::wire::protocol::rarp | vhost::wire::protocol::mtu)) != 0;
}

// How many of what the back-end has are shown.
base::Result<unsigned> count_shown(const ShapeOptions& options, unsigned has, const char* what) {
  if (options.queues == 0) return has;
  if (options.queues <= has) return options.queues;
  return fail(std::to_string(options.queues) + " " + what +
              " are asked for, but the back-end has " + std::to_string(has) +
              ": ask for fewer, or give it more");
}

base::Result<void> check_pairs(const BackendOffer& offer, unsigned pairs) {
  if (pairs < 1 || 2 * pairs + 1 > vrings_max) {
    return fail("the back-end's configuration says " + std::to_string(pairs) + " queue pairs");
  }
  if (offer.queues != 0 && offer.queues < pairs) {
    return fail("the back-end's configuration says " + std::to_string(pairs) +
                " queue pairs, but it has " + std::to_string(offer.queues) + " queues");
  }
  return {};
}

base::Result<DeviceShape> net_shape(const BackendOffer& offer, const ShapeOptions& options) {
  if (looks_like_a_disk(offer.features)) return fail("this is the socket of a disk, not of a NIC");
  DeviceShape shape;
  shape.features = offer.features & (ring_bits | device_bits) & ~nf::standby;
  if ((shape.features & nf::ctrl_vq) == 0) shape.features &= ~needs_control_queue;
  if (offer.config.empty()) shape.features &= ~needs_net_config;
  auto config = read_as<NetConfig>(offer.config);
  if (offer.config.empty()) config.status = base::le16{virtio::wire::net_status_link_up};
  if (options.mac) {
    // It would filter what it receives by its own address.
    const bool its_own = (shape.features & nf::mac) != 0;
    if (its_own && !std::ranges::equal(*options.mac, config.mac)) {
      return fail("mac= is not the address that the back-end gives its NIC: make them the same");
    }
    shape.features |= nf::mac;
    std::ranges::copy(*options.mac, config.mac);
  }
  const bool many = (shape.features & (nf::mq | nf::rss)) != 0;
  const unsigned pairs = many ? config.max_virtqueue_pairs.host() : 1;
  if (const auto ok = check_pairs(offer, pairs); !ok) return base::Unexpected{ok.error()};
  const auto shown = count_shown(options, pairs, "queue pairs");
  if (!shown) return base::Unexpected{shown.error()};
  config.max_virtqueue_pairs = base::le16{static_cast<std::uint16_t>(*shown)};
  const unsigned control = (shape.features & nf::ctrl_vq) != 0 ? 1 : 0;
  shape.pairs = *shown;
  shape.queues = 2 * *shown + control;
  shape.vrings = 2 * pairs + control;
  const auto bytes = std::as_bytes(std::span{&config, 1});
  shape.config.assign(bytes.begin(), bytes.end());
  return shape;
}

base::Result<DeviceShape> blk_shape(const BackendOffer& offer, const ShapeOptions& options) {
  if (looks_like_a_nic(offer.protocol)) return fail("this is the socket of a NIC, not of a disk");
  if (offer.config.empty()) return fail("the back-end has no configuration space to give (CONFIG)");
  DeviceShape shape;
  shape.features = offer.features & (ring_bits | device_bits) & ~beyond_blk_config;
  auto config = read_as<BlkConfig>(offer.config);
  const unsigned queues = (shape.features & bf::mq) != 0 ? config.num_queues.host() : 1;
  if (queues < 1 || queues > vrings_max || (offer.queues != 0 && offer.queues < queues)) {
    return fail("the back-end's configuration says " + std::to_string(queues) +
                " queues, but it has " + std::to_string(offer.queues));
  }
  const auto shown = count_shown(options, queues, "queues");
  if (!shown) return base::Unexpected{shown.error()};
  config.num_queues = base::le16{static_cast<std::uint16_t>(*shown)};
  shape.queues = *shown;
  shape.vrings = queues;
  const auto bytes = std::as_bytes(std::span{&config, 1}).first(virtio::wire::blk_config_size);
  shape.config.assign(bytes.begin(), bytes.end());
  return shape;
}

}  // namespace

unsigned DeviceShape::vring_of(unsigned queue, std::uint64_t negotiated) const {
  const bool many = (negotiated & (nf::mq | nf::rss)) != 0;
  return pairs != 0 && many && queue == 2 * pairs ? vrings - 1 : queue;
}

std::size_t config_size_of(DeviceKind kind) {
  if (kind == DeviceKind::net) return sizeof(NetConfig);
  return kind == DeviceKind::blk ? virtio::wire::blk_config_size : companion_config_size(kind);
}

// A disk's write-back mode (§5.2.4), a balloon's size as it is (§5.5.4).
std::optional<WritableField> writable_field(DeviceKind kind, std::uint64_t features) {
  if (kind == DeviceKind::blk && (features & bf::config_wce) != 0) {
    return WritableField{offsetof(BlkConfig, writeback), 1};
  }
  if (kind == DeviceKind::balloon) {
    return WritableField{offsetof(virtio::wire::BalloonConfig, actual), 4};
  }
  return std::nullopt;
}

base::Result<DeviceShape> shape_of(const BackendOffer& offer, const ShapeOptions& options) {
  if ((offer.features & vf::version_1) == 0) {
    return fail("the back-end offers no VIRTIO_F_VERSION_1, without which no guest can use it");
  }
  if (options.kind == DeviceKind::net) return net_shape(offer, options);
  if (options.kind == DeviceKind::blk) return blk_shape(offer, options);
  return companion_shape(offer, options.kind, ring_bits);
}

}  // namespace millrace::vmm
