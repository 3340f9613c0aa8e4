#include "net/device.hpp"

#include <cstring>
#include <utility>

#include "net/net_device.hpp"
#include "net/offload.hpp"
#include "net/rarp.hpp"
#include "virtio/features.hpp"
#include "virtio/kept_area.hpp"

namespace millrace::net {

namespace nf = virtio::wire::net_feature;
namespace vf = virtio::feature;
using base::fail;

std::uint64_t features_of(const Config& config) {
  std::uint64_t bits = vf::version_1 | vf::any_layout | vf::indirect_desc | vf::event_idx |
                       nf::mrg_rxbuf | nf::status | nf::guest_announce;
  if (config.packed) bits |= vf::ring_packed;
  if (config.in_order) bits |= vf::in_order;
  if (config.ring_reset) bits |= vf::ring_reset;
  if (config.offloads) {
    bits |= nf::csum | nf::host_tso4 | nf::host_tso6 | nf::host_ecn | nf::host_uso;
    bits |= nf::guest_csum | nf::guest_tso4 | nf::guest_tso6 | nf::guest_ecn | nf::guest_uso4 |
            nf::guest_uso6;
  }
  if (config.mac) bits |= nf::mac;
  if (config.mtu != 0) bits |= nf::mtu;
  if (config.pairs > 1) bits |= nf::mq;
  if (config.control_queue) {
    bits |= nf::ctrl_vq | nf::ctrl_mac_addr | nf::ctrl_rx | nf::ctrl_rx_extra | nf::ctrl_vlan;
    if (config.rss && config.pairs > 1) bits |= nf::rss;
    if (config.hash_report) bits |= nf::hash_report;
    if (config.coalescing) bits |= nf::notf_coal;
  }
  return bits;
}

namespace {

base::Result<void> validate(const Config& config) {
  const unsigned pairs_most = config.control_queue ? pairs_max - 1 : pairs_max;
  if (config.pairs < 1 || config.pairs > pairs_most) {
    return fail("port " + config.name + ": queues must be 1 to " + std::to_string(pairs_most));
  }
  if (config.mtu != 0 && config.mtu < virtio::wire::net_mtu_min) {
    return fail("port " + config.name + ": mtu must be 68 to 65535");
  }
  if (config.mac && ((*config.mac)[0] & 1) != 0) {
    return fail("port " + config.name + ": mac is a multicast address");
  }
  if (config.mac && *config.mac == vswitch::Mac{}) {
    return fail("port " + config.name + ": mac is all zero");
  }
  return {};
}

// Null for a control queue.
const QueueTraffic* traffic_of(const virtio::QueueWorker& worker, Role role) {
  if (role == Role::receive) return &static_cast<const RxPort&>(worker).traffic();
  if (role == Role::transmit) return &static_cast<const TxWorker&>(worker).traffic();
  return nullptr;
}

}  // namespace

base::Result<void> NetDevice::join(std::function<void()> ready) {
  auto port = fabric_.add_port(config_.port, std::move(ready));
  if (!port) return fail(port.error().message);
  port_ = *port;
  for (unsigned r = 0; r < pool().size(); ++r) {
    sides_.push_back({&fabric_.bridge(r), &fabric_.counters(port_, r)});
  }
  return {};
}

std::span<const std::byte> NetDevice::config() const {
  space_ = virtio::wire::NetConfig{};
  if (driver_.mac) std::memcpy(space_.mac, driver_.mac->data(), sizeof(space_.mac));
  space_.status = base::le16{link_up_ ? virtio::wire::net_status_link_up : std::uint16_t{0}};
  space_.max_virtqueue_pairs = base::le16{static_cast<std::uint16_t>(config_.pairs)};
  space_.mtu = base::le16{mtu_};
  if ((features_ & (nf::rss | nf::hash_report)) != 0) {
    space_.rss_max_key_size = rss_key_max;
    space_.rss_max_indirection_table_length = base::le16{rss_entries_max};
    space_.supported_hash_types = base::le32{hash_types_offered};
  }
  return std::as_bytes(std::span{&space_, 1});
}

void NetDevice::set_features(std::uint64_t features) {
  Device::set_features(features);
  if (any_started()) return;  // not a reset: the front-end begins or ends its logging
  forget_driver();
  // Nor shall the next daemon take up what a driver before this one wanted.
  if (kept_ != nullptr) kept_->store({});
  if (steered_) steer([] {});
}

base::Result<void> NetDevice::announce(std::span<const std::uint8_t, 6> mac) {
  if ((mac[0] & 1) != 0) return fail("port " + name() + ": cannot announce a multicast address");
  const unsigned reactor = queue_status(1).started ? queue_status(1).reactor : 0;
  vswitch::Bridge* bridge = sides_.at(reactor).bridge;
  // A trunk carries tagged frames only: one in each of its VLANs.
  std::vector<std::uint16_t> vlans = config_.port.trunk;
  if (vlans.empty()) vlans.push_back(0);
  for (const std::uint16_t vlan : vlans) {
    auto packet = std::make_unique<vswitch::Packet>();
    make_rarp(mac, vlan, port_, *packet);
    const vswitch::PortId port = port_;
    pool().post(
        reactor,
        [bridge, port, packet = std::move(packet)](base::Reactor&) noexcept {
          bridge->forward(port, {packet.get(), 1});
        },
        [] {});
  }
  return {};
}

base::Result<void> NetDevice::set_mtu(std::uint16_t mtu) {
  if (mtu < virtio::wire::net_mtu_min) {
    return fail("port " + name() + ": the front-end's mtu " + std::to_string(mtu) + " is below 68");
  }
  mtu_ = mtu;
  return {};
}

void NetDevice::set_link(bool up) {
  if (std::exchange(link_up_, up) != up) config_changed();
}

Role NetDevice::role_of(unsigned index) const {
  const bool many = (negotiated() & (nf::mq | nf::rss)) != 0;
  const unsigned control = many ? 2 * config_.pairs : 2;
  if (has_control() && index == control) return Role::control;
  if (index >= 2 * config_.pairs) return Role::none;
  return index % 2 == 0 ? Role::receive : Role::transmit;
}

std::unique_ptr<virtio::QueueWorker> NetDevice::make_worker(std::unique_ptr<virtio::Queue> queue) {
  const unsigned index = queue->index();
  roles_.at(index) = role_of(index);
  switch (roles_[index]) {
    case Role::receive: {
      auto port = std::make_unique<RxPort>(std::move(queue), negotiated(), mtu_, sides_);
      if (index == 0 && direct_.tie) port->be_direct();
      return port;
    }
    case Role::transmit:
      return std::make_unique<TxWorker>(std::move(queue), negotiated(), port_, sides_);
    case Role::control:
      return std::make_unique<ControlQueue>(std::move(queue), negotiated(), config_.pairs);
    case Role::none:
      break;
  }
  return nullptr;
}

void NetDevice::worker_started(virtio::QueueWorker& worker, unsigned reactor, bool enabled,
                               std::function<void()> next) {
  const unsigned index = worker.queue().index();
  if (roles_.at(index) == Role::control) {
    ring_doorbell(static_cast<ControlQueue&>(worker), reactor, false);
  }
  if (roles_[index] == Role::transmit) {
    senders_.at(index / 2) = {&static_cast<TxWorker&>(worker), reactor, false, {}};
    return give_settings(senders_[index / 2], std::move(next));
  }
  if (roles_[index] != Role::receive) return next();
  Pair& pair = pairs_.at(index / 2);
  pair.endpoint = &static_cast<RxPort&>(worker);
  pair.reactor = reactor, pair.enabled = enabled;
  give_settings(pair, [this, index, next = std::move(next)] {
    update_pair(index / 2, [this, index, next] {
      tie(index / 2);
      next();
    });
  });
}

void NetDevice::worker_enabled(virtio::QueueWorker& worker, unsigned, bool enabled,
                               std::function<void()> next) {
  const unsigned index = worker.queue().index();
  if (roles_.at(index) != Role::receive) return next();
  const bool same = std::exchange(pairs_.at(index / 2).enabled, enabled) == enabled;
  if (same) return update_pair(index / 2, std::move(next));
  const auto update = [this, index, next = std::move(next)] {
    update_pair(index / 2, [this, index, next] {
      tie(index / 2);
      next();
    });
  };
  untie(index / 2, update);
}

void NetDevice::worker_stopping(virtio::QueueWorker& worker, unsigned, std::function<void()> next) {
  const unsigned index = worker.queue().index();
  if (roles_.at(index) == Role::transmit) senders_.at(index / 2) = {};
  if (roles_[index] != Role::receive) return next();
  // The switch sends to it until nothing of it is a device's.
  untie(index / 2, [this, index, next = std::move(next)] {
    pairs_.at(index / 2).endpoint = nullptr;
    update_pair(index / 2, next);
  });
}

void NetDevice::update_pair(unsigned index, std::function<void()> next) {
  Pair& pair = pairs_.at(index);
  pair.waiting.push_back(std::move(next));
  if (!pair.changing) settle_pair(index);
}

void NetDevice::settle_pair(unsigned index) {
  Pair& pair = pairs_.at(index);
  const bool wanted = pair.endpoint != nullptr && pair.enabled && index < receiving_pairs();
  if (pair.registered == wanted) {
    for (const auto& next : std::exchange(pair.waiting, {})) next();
    return;
  }
  pair.registered = wanted;
  pair.changing = true;
  auto changed = [this, index] {
    pairs_[index].changing = false;
    settle_pair(index);
  };
  if (!wanted) return fabric_.remove_endpoint(port_, index, std::move(changed));
  fabric_.add_endpoint(port_, index, pair.reactor, pair.endpoint, std::move(changed));
}

void NetDevice::worker_stopped(virtio::QueueWorker& worker) {
  const unsigned index = worker.queue().index();
  const QueueTraffic* traffic = traffic_of(worker, roles_.at(index));
  if (traffic == nullptr) return;
  past_.at(index).packets += traffic->packets.get();
  past_[index].bytes += traffic->bytes.get();
}

NetDevice::Totals NetDevice::totals(unsigned index) const {
  Totals sum = past_.at(index);
  const virtio::QueueWorker* live = worker(index);
  if (live == nullptr) return sum;
  if (const QueueTraffic* traffic = traffic_of(*live, roles_.at(index)); traffic != nullptr) {
    sum.packets += traffic->packets.get();
    sum.bytes += traffic->bytes.get();
  }
  return sum;
}

Status NetDevice::status() const {
  Status status;
  status.connected = connected();
  status.mtu = mtu_;
  status.link_up = link_up_;
  status.offloads = offload_names(negotiated());
  if (has_control()) {
    status.driver = {.pairs = receiving_pairs(),
                     .steered = driver_.rss.has_value(),
                     .hash_types = driver_.hash.types,
                     .receive = driver_.receive,
                     .transmit = driver_.transmit};
  }
  for (unsigned pair = 0; pair < config_.pairs; ++pair) {
    PairStatus& out = status.pairs.emplace_back();
    out.rx = queue_status(2 * pair), out.tx = queue_status(2 * pair + 1);
    const Totals rx = totals(2 * pair), tx = totals(2 * pair + 1);
    out.rx_packets = rx.packets, out.rx_bytes = rx.bytes;
    out.tx_packets = tx.packets, out.tx_bytes = tx.bytes;
  }
  return status;
}

base::Result<std::unique_ptr<Device>> Device::make(const Config& config, base::ReactorPool& pool,
                                                   vswitch::Fabric& fabric,
                                                   std::function<void()> ready) {
  if (auto valid = validate(config); !valid) return fail(valid.error().message);
  auto device = std::make_unique<NetDevice>(config, pool, fabric);
  if (auto joined = device->join(std::move(ready)); !joined) return fail(joined.error().message);
  return std::unique_ptr<Device>{std::move(device)};
}

}  // namespace millrace::net
