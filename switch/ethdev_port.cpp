#include "switch/ethdev_port.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "base/check.hpp"
#include "switch/ethdev_bond.hpp"
#include "switch/ethdev_device.hpp"
#include "switch/region_swap.hpp"

namespace millrace::vswitch {

namespace {

// Calls `then` when it was called itself `count` times.
std::function<void()> after(std::size_t count, std::function<void()> then) {
  return [left = std::make_shared<std::size_t>(count), then = std::move(then)] {
    if (--*left == 0 && then) then();
  };
}

class EthdevUplink final : public Uplink, public Bond {
 public:
  EthdevUplink(UplinkConfig config, base::ReactorPool& pool, Fabric& fabric, PortId port)
      : config_{std::move(config)}, pool_{pool}, fabric_{fabric}, port_{port} {
    if (config_.direct) home_ = pool_.place();
  }

  [[nodiscard]] UplinkStatus status() const override {
    UplinkStatus out;
    out.name = config_.name;
    out.device = config_.device;
    for (const auto& lane : lanes_) {
      const auto& figures = lane.queue->figures();
      out.queues.push_back({lane.reactor, figures.received.get(), figures.sent.get(),
                            figures.interrupts.get(), figures.joined.get(), figures.tagged.get(),
                            figures.untagged.get()});
      if (const auto* direct = lane.queue->direct(); direct != nullptr) {
        out.queues.back().untagged += direct->figures().untagged.get();
      }
    }
    if (config_.zero_copy) out.zero_copy = zero_copy();
    if (config_.direct) out.direct = direct();
    if (device_) device_->read_status(out);
    return out;
  }
  [[nodiscard]] PortId port() const override { return port_; }
  [[nodiscard]] bool attached() const override { return device_ != nullptr; }
  [[nodiscard]] bool carries() const override { return carries_; }
  [[nodiscard]] LinkState link() const override { return device_ ? device_->link() : LinkState{}; }
  [[nodiscard]] int departure_fd() const override { return device_ ? device_->departure_fd() : -1; }
  [[nodiscard]] std::optional<Group> group() const override {
    return device_ ? device_->group() : std::nullopt;
  }
  [[nodiscard]] std::vector<DriverCounter> driver_counters() const override {
    return device_ ? device_->counters() : std::vector<DriverCounter>{};
  }

  void open_and_close_by(Aside aside) override { aside_ = std::move(aside); }
  void attach(const std::string& device, Attached done) override {
    CHECK(device_ == nullptr && lanes_.empty());
    auto config = config_;
    config.device = device;
    aside_([this, config, known = known_, done = std::move(done)]() -> Done {
      auto opened = std::make_shared<base::Result<std::unique_ptr<EthdevDevice>>>(
          config.bond == BondMode::none ? EthdevDevice::open(config)
                                        : EthdevDevice::open_bond(config, known));
      return [this, config, opened, done] {
        if (!*opened) return done(base::Unexpected{opened->error()});
        config_.device = config.device;
        take(std::move(**opened));
        waited_ = true;
        done({});
      };
    });
  }

  Bond* bond() override { return config_.bond == BondMode::none ? nullptr : this; }
  void know(std::uint16_t device) override { known_.push_back(device); }
  void forget(std::uint16_t device) override {
    CHECK(!has(device));
    std::erase(known_, device);
  }
  [[nodiscard]] bool has(std::uint16_t device) const override {
    if (device_ == nullptr) return false;
    const auto members = bond_members(device_->number());
    return std::ranges::find(members, device) != members.end();
  }
  [[nodiscard]] MemberState state_of(std::uint16_t device) const override {
    if (device_ == nullptr) return {};
    return bond_member_state(device_->number(), config_.bond, device);
  }
  void take(std::uint16_t device, Done done) override {
    CHECK(device_ != nullptr);
    const bool taken = device_->take(device);
    taken&& carries_ && !joined_ ? join(std::move(done)) : done();
  }
  void release(std::uint16_t device, Done done) override {
    CHECK(has(device));
    const auto remove = [this, device] { bond_remove(device_->number(), config_.bond, device); };
    if (!joined_) {
      remove();
      return done();
    }
    leave([this, remove, done = std::move(done)] {
      remove();
      can_join() ? join(done) : done();
    });
  }

  void wait() { waited_ = true; }
  void take(std::unique_ptr<EthdevDevice> device) {
    device_ = std::move(device);
    for (const auto& queue : device_->queues()) {
      const unsigned reactor = config_.direct ? home_ : pool_.place();
      lanes_.push_back(
          {reactor, std::make_unique<EthdevQueue>(queue, pool_.at(reactor), fabric_.bridge(reactor),
                                                  fabric_.counters(port_, reactor), port_)});
    }
  }

  void detach(Done done) override {
    CHECK(!carries_);
    const auto gone = [this, done = std::move(done)] {
      for (const auto& lane : lanes_) {
        if (!config_.direct) pool_.unplace(lane.reactor);
      }
      past_ = zero_copy();
      past_direct_ = direct();
      lanes_.clear();
      end_tie();
      done();
    };
    const auto device = std::make_shared<std::unique_ptr<EthdevDevice>>(std::move(device_));
    const auto close_device = [device](const Done& closed) -> Work {
      return [device, closed] {
        device->reset();
        return closed;
      };
    };
    if (!config_.zero_copy) return aside_(close_device(gone));
    // Nobody asks a device that is closed what it is done with: it is done with everything.
    on_lanes(&EthdevQueue::forget_device, [this, gone, close_device] {
      aside_(close_device(
          [this, gone] { on_lanes(&EthdevQueue::abandon, [this, gone] { when_swapped(gone); }); }));
    });
  }

  void set_regions(std::shared_ptr<const DmaRegions> regions, Done done) override {
    if (lanes_.empty()) return done();
    const auto each = after(lanes_.size(), std::move(done));
    for (const auto& lane : lanes_) {
      ++swaps_;
      pool_.post(lane.reactor, std::make_unique<RegionSwap>(*lane.queue, regions, [this, each] {
                   each();
                   if (--swaps_ == 0 && on_swapped_) std::exchange(on_swapped_, {})();
                 }));
    }
  }

  void carry(bool carries, Done done) override {
    CHECK(device_ != nullptr);
    if (carries == carries_) return done();
    carries_ = carries;
    if (carries) {
      if (waited_ && can_join()) device_->forget_received();
      can_join() ? join(std::move(done)) : done();
      tie_lane();
    } else {
      waited_ = true;
      joined_ ? leave(std::move(done)) : done();
    }
  }

  void send(std::shared_ptr<const std::vector<Packet>> frames, Done done) override {
    if (!carries_ || frames->empty()) return done();
    send_from(0, std::move(frames), std::move(done));
  }

  // Off the switch first, then off the reactors, then the device goes.
  void close(Done done) override {
    const auto gone = [this, done = std::move(done)] {
      if (config_.direct) pool_.unplace(home_);
      fabric_.remove_port(port_, done);
    };
    if (device_ == nullptr) return gone();
    carry(false, [this, gone] { detach(gone); });
  }

  void tie(DirectSink& sink, std::uint16_t vlan) override {
    CHECK(config_.direct && sink_ == nullptr);
    sink_ = &sink;
    vlan_ = vlan;
    if (carries_) tie_lane();
  }
  [[nodiscard]] unsigned home() const override { return home_; }
  void untie(Elsewhere elsewhere, std::function<void(const std::string& why)> failed,
             Done done) override {
    if (sink_ == nullptr) return done();
    untied_.push_back(std::move(done));
    if (untied_.size() > 1) return;
    if (!tied_) return end_tie();
    if (carries_) halt(std::move(elsewhere), std::move(failed));  // else detach() is next
  }

 private:
  void tie_lane() {
    if (sink_ == nullptr || tied_) return;
    const auto& [reactor, owned] = lanes_.front();
    if (owned->direct() == nullptr) return;
    if (vlan_ != 0 && !device_->queues().front().vlan_strip) return;
    tied_ = true;
    const auto run = [queue = owned.get(), sink = sink_, vlan = vlan_](base::Reactor&) {
      queue->tie(*sink, vlan);
    };
    pool_.post(reactor, run, [] {});
  }

  void halt(Elsewhere elsewhere, std::function<void(const std::string& why)> failed) {
    const auto& [reactor, owned] = lanes_.front();
    const auto out = std::make_shared<bool>(false);
    const auto run = [queue = owned.get(), out](base::Reactor&) {
      *out = queue->halt();
      if (*out) return;
      queue->untie();
      queue->start();
    };
    pool_.post(reactor, run, [this, out, elsewhere, failed] {
      if (!*out) return end_tie();
      // Given up meanwhile, or refused: then detach() is next. Else nobody closes the device before
      // the answer.
      if (!carries_) return;
      static_cast<void>(elsewhere([this, failed]() -> std::function<void()> {
        return [this, failed, result = device_->restart()] { restarted(result, failed); };
      }));
    });
  }

  void restarted(const base::Result<>& result,
                 const std::function<void(const std::string& why)>& failed) {
    if (!result) return failed(result.error().message);
    const auto& [reactor, owned] = lanes_.front();
    const int wake_fd = device_->queues().front().wake_fd;
    const auto run = [queue = owned.get(), wake_fd, carries = carries_](base::Reactor&) {
      queue->abandon();
      queue->untie();
      if (carries) queue->resume(wake_fd);
    };
    pool_.post(reactor, run, [this] { end_tie(); });
  }

  // Whoever waits for it may tie another at once.
  void end_tie() {
    tied_ = false;
    if (untied_.empty()) return;
    sink_ = nullptr;
    for (const auto& done : std::exchange(untied_, {})) done();
  }

  [[nodiscard]] UplinkStatus::Direct direct() const {
    auto sum = past_direct_;
    sum.placing = false;
    for (const auto& lane : lanes_) {
      if (lane.queue->direct() == nullptr) {  // no buffer of a guest's holds its longest frame
        sum.copied_long += lane.queue->figures().received.get();
        continue;
      }
      const auto& figures = lane.queue->direct()->figures();
      sum.placing = figures.placing.get() != 0;
      sum.packets += figures.zero_copy_packets.get();
      sum.bytes += figures.zero_copy_bytes.get();
      sum.no_buffer += figures.no_buffer.get();
      sum.copied_begun += figures.copied_begun.get();
      sum.copied_small += figures.copied_small.get();
      sum.copied_few += figures.copied_few.get();
      sum.copied_unmapped += figures.copied_unmapped.get();
      sum.copied_off += figures.copied_off.get();
      sum.copied_vlan += figures.copied_vlan.get();
    }
    return sum;
  }

  // Of all devices that it had.
  [[nodiscard]] UplinkStatus::ZeroCopy zero_copy() const {
    auto sum = past_;
    for (const auto& lane : lanes_) {
      const auto& figures = lane.queue->figures();
      sum.packets += figures.zero_copy_packets.get();
      sum.bytes += figures.zero_copy_bytes.get();
      sum.done += figures.zero_copy_done.get();
      sum.copied_small += figures.copied_small.get();
      sum.copied_not_lent += figures.copied_not_lent.get();
      sum.copied_unmapped += figures.copied_unmapped.get();
      sum.copied_busy += figures.copied_busy.get();
      sum.copied_slow += figures.copied_slow.get();
    }
    return sum;
  }

  struct Lane {
    unsigned reactor;
    std::unique_ptr<EthdevQueue> queue;
  };

  // The driver of a bond would poll a member that it has no more.
  [[nodiscard]] bool can_join() const {
    return config_.bond == BondMode::none || !bond_members(device_->number()).empty();
  }

  void join(Done done) {
    joined_ = true;
    const auto each = after(lanes_.size(), std::move(done));
    for (unsigned i = 0; i < lanes_.size(); ++i) {
      const auto& [reactor, owned] = lanes_[i];
      fabric_.add_endpoint(port_, i, reactor, owned.get(),
                           [this, each, reactor = reactor, queue = owned.get()] {
                             pool_.post(
                                 reactor, [queue](base::Reactor&) { queue->start(); }, each);
                           });
    }
  }

  void leave(Done done) {
    joined_ = false;
    const auto each = after(lanes_.size(), std::move(done));
    for (unsigned i = 0; i < lanes_.size(); ++i) {
      const auto& [reactor, owned] = lanes_[i];
      fabric_.remove_endpoint(port_, i, [this, each, reactor = reactor, queue = owned.get()] {
        pool_.post(
            reactor, [queue](base::Reactor&) { queue->stop(); }, each);
      });
    }
  }

  void on_lanes(void (EthdevQueue::*does)() noexcept, const Done& done) {
    const auto each = after(lanes_.size(), done);
    for (const auto& [reactor, owned] : lanes_) {
      pool_.post(
          reactor, [queue = owned.get(), does](base::Reactor&) { (queue->*does)(); }, each);
    }
  }

  // No queue is named by a RegionSwap any more.
  void when_swapped(Done done) {
    if (swaps_ == 0) return done();
    on_swapped_ = std::move(done);
  }

  // A burst for each command, so that the reactor has time for others in between.
  void send_from(std::size_t first, std::shared_ptr<const std::vector<Packet>> frames, Done done) {
    if (!carries_ || first >= frames->size()) return done();
    const auto& [reactor, owned] = lanes_.front();
    pool_.post(
        reactor,
        [queue = owned.get(), frames, first](base::Reactor&) noexcept {
          std::array<const Packet*, burst_max> burst;
          const std::size_t count = std::min(burst.size(), frames->size() - first);
          for (std::size_t i = 0; i < count; ++i) burst[i] = &(*frames)[first + i];
          queue->deliver({burst.data(), count});
        },
        [this, first, frames, done = std::move(done)] {
          send_from(first + burst_max, frames, done);
        });
  }

  UplinkConfig config_;
  Aside aside_ = [](const Work& work) { work()(); };
  base::ReactorPool& pool_;
  Fabric& fabric_;
  std::unique_ptr<EthdevDevice> device_;
  PortId port_;
  std::vector<Lane> lanes_;
  bool carries_ = false, joined_ = false;  // joined: its queues are polled
  unsigned swaps_ = 0;                     // under way
  Done on_swapped_;
  UplinkStatus::ZeroCopy past_;  // of devices that are closed
  UplinkStatus::Direct past_direct_;
  unsigned home_ = 0;  // of a direct one: the reactor of its queue, whichever device it has
  DirectSink* sink_ = nullptr;        // null: there is none
  std::uint16_t vlan_ = 0;            // of sink_; see tie()
  bool tied_ = false;                 // the queue has it
  std::vector<Done> untied_;          // not empty: it shall go
  bool waited_ = false;               // the device was open for a while without a reader
  std::vector<std::uint16_t> known_;  // of a bond: devices of its members
};

PortConfig port_of(const UplinkConfig& config) {
  auto port = config.port;
  port.name = config.name;
  port.uplink = true;
  port.alone = config.direct;
  return port;
}

}  // namespace

base::Result<std::unique_ptr<Uplink>> open_uplink(const UplinkConfig& config,
                                                  base::ReactorPool& pool, Fabric& fabric,
                                                  std::function<void()> done) {
  auto device = EthdevDevice::open(config);
  if (!device) return base::Unexpected{device.error()};
  const auto port = fabric.add_port(port_of(config), {});
  if (!port) return base::Unexpected{port.error()};
  auto uplink = std::make_unique<EthdevUplink>(config, pool, fabric, *port);
  uplink->take(*std::move(device));
  if (config.carries) {
    uplink->carry(true, std::move(done));
  } else {
    uplink->wait();
    done();
  }
  return std::unique_ptr<Uplink>{std::move(uplink)};
}

base::Result<std::unique_ptr<Uplink>> open_bond(const UplinkConfig& config, base::ReactorPool& pool,
                                                Fabric& fabric, std::function<void()> done) {
  CHECK(config.bond != BondMode::none);
  const auto port = fabric.add_port(port_of(config), std::move(done));
  if (!port) return base::Unexpected{port.error()};
  return std::unique_ptr<Uplink>{std::make_unique<EthdevUplink>(config, pool, fabric, *port)};
}

}  // namespace millrace::vswitch
