#include "net/device.hpp"

#include <cstring>
#include <utility>

#include "net/control_queue.hpp"
#include "net/offload.hpp"
#include "net/rarp.hpp"
#include "net/rx_port.hpp"
#include "net/tx_worker.hpp"
#include "virtio/features.hpp"
#include "virtio/wire/net.hpp"

namespace millrace::net {

namespace {

namespace nf = virtio::wire::net_feature;
namespace vf = virtio::feature;
using base::fail;
using virtio::wire::NetConfig;

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
  }
  return bits;
}

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

// What a queue was started as. Kept, because a front-end may change the features while it runs.
enum class Role : std::uint8_t { none, receive, transmit, control };

class NetDevice final : public Device {
 public:
  NetDevice(const Config& config, base::ReactorPool& reactors, vswitch::Fabric& fabric)
      : Device{config.name, 2 * config.pairs + (config.control_queue ? 1 : 0), reactors},
        config_{config},
        fabric_{fabric},
        features_{features_of(config)},
        mac_{config.mac},
        mtu_{config.mtu},
        active_pairs_{config.pairs},
        pairs_(config.pairs),
        roles_(queues_max(), Role::none),
        past_(queues_max()) {}

  base::Result<void> join(std::function<void()> ready) {
    auto port = fabric_.add_port(config_.port, std::move(ready));
    if (!port) return fail(port.error().message);
    port_ = *port;
    for (unsigned r = 0; r < pool().size(); ++r) {
      sides_.push_back({&fabric_.bridge(r), &fabric_.counters(port_, r)});
    }
    return {};
  }

  void set_features(std::uint64_t features) override;
  [[nodiscard]] virtio::DeviceKind kind() const override { return virtio::DeviceKind::net; }
  [[nodiscard]] std::uint64_t features() const override { return features_; }
  [[nodiscard]] std::span<const std::byte> config() const override;
  base::Result<void> write_config(std::uint32_t, std::span<const std::byte>) override {
    return fail("port " + name() + ": the configuration of a network device is read-only");
  }
  base::Result<void> announce(std::span<const std::uint8_t, 6> mac) override;
  base::Result<void> set_mtu(std::uint16_t mtu) override;

  [[nodiscard]] const Config& net_config() const override { return config_; }
  [[nodiscard]] vswitch::PortId port() const override { return port_; }
  [[nodiscard]] Status status() const override;
  void close(std::function<void()> done) override { fabric_.remove_port(port_, std::move(done)); }

 protected:
  std::unique_ptr<virtio::QueueWorker> make_worker(std::unique_ptr<virtio::Queue> queue) override;
  void worker_started(virtio::QueueWorker& worker, unsigned reactor, bool enabled,
                      std::function<void()> next) override;
  void worker_enabled(virtio::QueueWorker& worker, unsigned reactor, bool enabled,
                      std::function<void()> next) override;
  void worker_stopping(virtio::QueueWorker& worker, unsigned reactor,
                       std::function<void()> next) override;
  void worker_stopped(virtio::QueueWorker& worker) override;

 private:
  struct Totals {
    std::uint64_t packets = 0, bytes = 0;
  };

  // A pair's receive queue as the switch shall see it.
  struct Pair {
    RxPort* endpoint = nullptr;  // null: not started, or about to stop
    unsigned reactor = 0;
    bool enabled = false;
    bool registered = false;
    bool changing = false;  // the switch is at work on it
    std::vector<std::function<void()>> waiting;
  };

  // Under the negotiated features (§5.1.2).
  [[nodiscard]] Role role_of(unsigned index) const;
  // Makes the pair's endpoint known to the switch or takes it away, whichever is due; `next` runs
  // when the switch is as the pair wants it.
  void update_pair(unsigned pair, std::function<void()> next);
  void settle_pair(unsigned pair);
  // Hands the control queue its next doorbell, with the answer to the last command.
  void ring_doorbell(ControlQueue& worker, unsigned reactor, bool accepted);
  void act(const ControlRequest& request, std::function<void()> next);
  void act_on_pairs(unsigned pairs, const std::function<void()>& next);
  // What a driver begins with under the negotiated features.
  void reset_filter();
  // The filter as a receive queue shall hold it; none where the driver cannot have one.
  [[nodiscard]] std::shared_ptr<const RxFilter> filter_to_use() const;
  // Gives receive queues the filter of now; `next` runs when they have it.
  void give_filter(const Pair& pair, std::function<void()> next);
  void spread_filter(const std::function<void()>& next);
  [[nodiscard]] Totals totals(unsigned index) const;

  const Config config_;
  vswitch::Fabric& fabric_;
  const std::uint64_t features_;
  std::optional<vswitch::Mac> mac_;
  std::uint16_t mtu_;
  unsigned active_pairs_;
  RxFilter filter_;
  vswitch::PortId port_ = vswitch::no_port;
  std::vector<SwitchSide> sides_;  // by reactor; fixed once joined
  std::vector<Pair> pairs_;
  std::vector<Role> roles_;   // by queue
  std::vector<Totals> past_;  // of workers that are gone, by queue
  mutable NetConfig space_{};
};

const QueueTraffic* traffic_of(const virtio::QueueWorker& worker, Role role) {
  if (role == Role::receive) return &static_cast<const RxPort&>(worker).traffic();
  if (role == Role::transmit) return &static_cast<const TxWorker&>(worker).traffic();
  return nullptr;
}

std::span<const std::byte> NetDevice::config() const {
  space_ = NetConfig{};
  if (mac_) std::memcpy(space_.mac, mac_->data(), sizeof(space_.mac));
  space_.status = base::le16{virtio::wire::net_status_link_up};
  space_.max_virtqueue_pairs = base::le16{static_cast<std::uint16_t>(config_.pairs)};
  space_.mtu = base::le16{mtu_};
  return std::as_bytes(std::span{&space_, 1});
}

void NetDevice::set_features(std::uint64_t features) {
  Device::set_features(features);
  for (const Pair& pair : pairs_) {
    if (pair.endpoint != nullptr) return;  // not a reset: the front-end begins or ends its logging
  }
  // With a control queue a driver starts with one pair (§5.1.5); without, the front-end enables.
  active_pairs_ = (features & nf::ctrl_vq) != 0 ? 1 : config_.pairs;
  reset_filter();
}

void NetDevice::reset_filter() {
  mac_ = config_.mac;  // the address that a driver set is its own, and the next one's is not
  filter_ = RxFilter{};
  filter_.set_own(mac_);
  if ((negotiated() & nf::ctrl_rx) == 0) filter_.take_all_addresses();
  if ((negotiated() & nf::ctrl_vlan) != 0) filter_.filter_vlans();
}

std::shared_ptr<const RxFilter> NetDevice::filter_to_use() const {
  const bool has_control = config_.control_queue && (negotiated() & nf::ctrl_vq) != 0;
  if (!has_control || (negotiated() & (nf::ctrl_rx | nf::ctrl_vlan)) == 0) return nullptr;
  return std::make_shared<const RxFilter>(filter_);
}

// A queue that is about to stop is no endpoint any more; what is posted to one that is comes before
// whatever stops it.
void NetDevice::give_filter(const Pair& pair, std::function<void()> next) {
  const auto filter = std::make_shared<std::shared_ptr<const RxFilter>>(filter_to_use());
  pool().post(
      pair.reactor,
      [endpoint = pair.endpoint, filter](base::Reactor&) noexcept {
        endpoint->swap_filter(*filter);
      },
      std::move(next));
}

void NetDevice::spread_filter(const std::function<void()>& next) {
  auto left = std::make_shared<unsigned>(1);
  const auto one_done = [left, next] {
    if (--*left == 0) next();
  };
  for (const Pair& pair : pairs_) {
    if (pair.endpoint == nullptr) continue;
    ++*left;
    give_filter(pair, one_done);
  }
  one_done();
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

Role NetDevice::role_of(unsigned index) const {
  const bool has_control = config_.control_queue && (negotiated() & nf::ctrl_vq) != 0;
  const unsigned control = (negotiated() & nf::mq) != 0 ? 2 * config_.pairs : 2;
  if (has_control && index == control) return Role::control;
  if (index >= 2 * config_.pairs) return Role::none;
  return index % 2 == 0 ? Role::receive : Role::transmit;
}

std::unique_ptr<virtio::QueueWorker> NetDevice::make_worker(std::unique_ptr<virtio::Queue> queue) {
  const unsigned index = queue->index();
  roles_.at(index) = role_of(index);
  switch (roles_[index]) {
    case Role::receive:
      return std::make_unique<RxPort>(std::move(queue), negotiated(), mtu_, sides_);
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
  if (roles_[index] != Role::receive) return next();
  Pair& pair = pairs_.at(index / 2);
  pair.endpoint = &static_cast<RxPort&>(worker);
  pair.reactor = reactor, pair.enabled = enabled;
  give_filter(pair, [this, index, next = std::move(next)] { update_pair(index / 2, next); });
}

void NetDevice::worker_enabled(virtio::QueueWorker& worker, unsigned, bool enabled,
                               std::function<void()> next) {
  const unsigned index = worker.queue().index();
  if (roles_.at(index) != Role::receive) return next();
  pairs_.at(index / 2).enabled = enabled;
  update_pair(index / 2, std::move(next));
}

void NetDevice::worker_stopping(virtio::QueueWorker& worker, unsigned, std::function<void()> next) {
  const unsigned index = worker.queue().index();
  if (roles_.at(index) != Role::receive) return next();
  pairs_.at(index / 2).endpoint = nullptr;
  update_pair(index / 2, std::move(next));
}

void NetDevice::update_pair(unsigned index, std::function<void()> next) {
  Pair& pair = pairs_.at(index);
  pair.waiting.push_back(std::move(next));
  if (!pair.changing) settle_pair(index);
}

void NetDevice::settle_pair(unsigned index) {
  Pair& pair = pairs_.at(index);
  const bool wanted = pair.endpoint != nullptr && pair.enabled && index < active_pairs_;
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

void NetDevice::ring_doorbell(ControlQueue& worker, unsigned reactor, bool accepted) {
  pool().post(reactor,
              std::make_unique<ControlQueue::Doorbell>(
                  worker, accepted, [this, &worker, reactor](const ControlRequest& r) {
                    if (r.kind == ControlRequest::Kind::none) return;
                    act(r, [this, &worker, reactor] { ring_doorbell(worker, reactor, true); });
                  }));
}

void NetDevice::act(const ControlRequest& request, std::function<void()> next) {
  switch (request.kind) {
    case ControlRequest::Kind::none:
      return;
    case ControlRequest::Kind::set_pairs:
      return act_on_pairs(request.number, next);
    case ControlRequest::Kind::set_mac:
      mac_ = request.mac;
      filter_.set_own(mac_);
      break;
    case ControlRequest::Kind::set_mode:
      CHECK(filter_.set_mode(request.mode, request.on));
      break;
    case ControlRequest::Kind::set_addresses:
      filter_.set_addresses(request.stations, request.groups);
      break;
    case ControlRequest::Kind::set_vlan:
      CHECK(filter_.set_vlan(request.number, request.on));
      break;
  }
  spread_filter(next);
}

void NetDevice::act_on_pairs(unsigned pairs, const std::function<void()>& next) {
  active_pairs_ = pairs;
  // The last one to be done goes on.
  auto left = std::make_shared<unsigned>(config_.pairs);
  auto one_done = [left, next] {
    if (--*left == 0) next();
  };
  for (unsigned pair = 0; pair < config_.pairs; ++pair) update_pair(pair, one_done);
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
  status.offloads = offload_names(negotiated());
  for (unsigned pair = 0; pair < config_.pairs; ++pair) {
    PairStatus& out = status.pairs.emplace_back();
    out.rx = queue_status(2 * pair), out.tx = queue_status(2 * pair + 1);
    const Totals rx = totals(2 * pair), tx = totals(2 * pair + 1);
    out.rx_packets = rx.packets, out.rx_bytes = rx.bytes;
    out.tx_packets = tx.packets, out.tx_bytes = tx.bytes;
  }
  return status;
}

}  // namespace

base::Result<std::unique_ptr<Device>> Device::make(const Config& config, base::ReactorPool& pool,
                                                   vswitch::Fabric& fabric,
                                                   std::function<void()> ready) {
  if (auto valid = validate(config); !valid) return fail(valid.error().message);
  auto device = std::make_unique<NetDevice>(config, pool, fabric);
  if (auto joined = device->join(std::move(ready)); !joined) return fail(joined.error().message);
  return std::unique_ptr<Device>{std::move(device)};
}

}  // namespace millrace::net
