// NetDevice: what the driver asks for over the control queue.
#include <algorithm>

#include "base/log.hpp"
#include "net/kept_state.hpp"
#include "net/net_device.hpp"
#include "virtio/features.hpp"
#include "virtio/kept_area.hpp"

namespace millrace::net {

namespace nf = virtio::wire::net_feature;

bool NetDevice::has_control() const {
  return config_.control_queue && (negotiated() & nf::ctrl_vq) != 0;
}

void NetDevice::forget_driver() {
  driver_ = DriverState{};
  driver_.mac = config_.mac;  // one that a driver set is its own, and the next one's is not
  driver_.filter.set_own(driver_.mac);
  if ((negotiated() & nf::ctrl_rx) == 0) driver_.filter.take_all_addresses();
  if ((negotiated() & nf::ctrl_vlan) != 0) driver_.filter.filter_vlans();
  // With a control queue a driver starts with one pair (§5.1.5); without, the front-end enables.
  driver_.pairs = (negotiated() & nf::ctrl_vq) != 0 ? 1 : config_.pairs;
}

bool NetDevice::any_started() const {
  return std::ranges::any_of(pairs_, [](const Pair& pair) { return pair.endpoint != nullptr; });
}

// Whoever served this driver before us left there what it had been told.
void NetDevice::set_kept(std::shared_ptr<virtio::KeptArea> area) {
  kept_ = std::move(area);
  if (kept_ == nullptr || !has_control()) return;
  const auto record = kept_->load();
  if (any_started()) return keep();
  if (record.empty()) return;
  auto state = unpack(record, negotiated(), config_.pairs, driver_);
  if (!state) {
    spdlog::warn("{}: what its driver had set up is not to be made out any more: it begins anew",
                 name());
    return;
  }
  driver_ = *std::move(state);
  steer([] {});
}

void NetDevice::keep() {
  if (kept_ != nullptr && has_control()) kept_->store(pack(driver_, negotiated()));
}

// A table names the pairs that receive; where it names one that does not, the packet is dropped.
unsigned NetDevice::receiving_pairs() const {
  return driver_.rss ? config_.pairs : driver_.pairs;
}

RxSettings NetDevice::rx_settings() const {
  RxSettings settings;
  if (!has_control()) return settings;
  if ((negotiated() & (nf::ctrl_rx | nf::ctrl_vlan)) != 0) {
    settings.filter = std::make_shared<const RxFilter>(driver_.filter);
  }
  if ((negotiated() & nf::hash_report) != 0) settings.hash = make_hash(driver_.hash);
  settings.pace = Pace::of(driver_.receive);
  return settings;
}

// A queue that is about to stop is no endpoint any more; what is posted to one that is comes before
// whatever stops it.
void NetDevice::give_settings(Pair& pair, std::function<void()> next) {
  if (pair.moving) return pair.unset.push_back(std::move(next));
  // What the queue held before comes back in it and is dropped here.
  const auto settings = std::make_shared<RxSettings>(rx_settings());
  pool().post(
      pair.reactor,
      [endpoint = pair.endpoint, settings](base::Reactor&) noexcept {
        endpoint->swap_settings(*settings);
      },
      std::move(next));
}

void NetDevice::give_settings(Sender& sender, std::function<void()> next) {
  if (sender.moving) return sender.unset.push_back(std::move(next));
  const Pace pace = Pace::of(driver_.transmit);
  // What the queue does not need of it comes back in it and is dropped here.
  const auto loans = std::make_shared<std::unique_ptr<Loans>>();
  if (lends_) *loans = std::make_unique<Loans>(sender.worker->queue());
  pool().post(
      sender.reactor,
      [worker = sender.worker, pace, lends = lends_, loans](base::Reactor&) noexcept {
        worker->set_pace(pace);
        worker->set_lending(lends, *loans);
      },
      std::move(next));
}

void NetDevice::spread_settings(const std::function<void()>& next) {
  auto left = std::make_shared<unsigned>(1);
  const auto one_done = [left, next] {
    if (--*left == 0) next();
  };
  for (Pair& pair : pairs_) {
    if (pair.endpoint == nullptr) continue;
    ++*left;
    give_settings(pair, one_done);
  }
  for (Sender& sender : senders_) {
    if (sender.worker == nullptr) continue;
    ++*left;
    give_settings(sender, one_done);
  }
  one_done();
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
  using Kind = ControlRequest::Kind;
  driver_.apply(request);
  keep();
  const bool steering = request.kind == Kind::set_pairs || request.kind == Kind::set_rss;
  const auto spread = [this, next = std::move(next)] { spread_settings(next); };
  if (steering) return steer(spread);
  spread();
}

// The table comes after the queues that it names, and goes before them.
void NetDevice::steer(std::function<void()> next) {
  const bool steered = std::exchange(steered_, driver_.rss.has_value());
  if (driver_.rss) {
    return update_pairs([this, next = std::move(next)] {
      // The driver may be gone by now.
      if (!driver_.rss) return next();
      fabric_.set_steering(port_, make_steering(*driver_.rss), next);
    });
  }
  const auto update = [this, next = std::move(next)] { update_pairs(next); };
  if (!steered) return update();
  fabric_.set_steering(port_, nullptr, update);
}

void NetDevice::update_pairs(const std::function<void()>& next) {
  // The last one to be done goes on.
  auto left = std::make_shared<unsigned>(config_.pairs);
  auto one_done = [left, next] {
    if (--*left == 0) next();
  };
  for (unsigned pair = 0; pair < config_.pairs; ++pair) update_pair(pair, one_done);
}

}  // namespace millrace::net
