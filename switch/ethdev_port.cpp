#include "switch/ethdev_port.hpp"

#include <utility>

#include "switch/ethdev_device.hpp"

namespace millrace::vswitch {

namespace {

// Calls `then` when it was called itself `count` times.
std::function<void()> after(std::size_t count, std::function<void()> then) {
  return [left = std::make_shared<std::size_t>(count), then = std::move(then)] {
    if (--*left == 0 && then) then();
  };
}

class EthdevUplink final : public Uplink {
 public:
  EthdevUplink(UplinkConfig config, base::ReactorPool& pool, Fabric& fabric,
               std::unique_ptr<EthdevDevice> device, PortId port)
      : config_{std::move(config)},
        pool_{pool},
        fabric_{fabric},
        device_{std::move(device)},
        port_{port} {
    for (const auto& queue : device_->queues()) {
      const unsigned reactor = pool.place();
      lanes_.push_back(
          {reactor, std::make_unique<EthdevQueue>(queue, pool.at(reactor), fabric.bridge(reactor),
                                                  fabric.counters(port, reactor), port)});
    }
  }

  void start(std::function<void()> done) {
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

  [[nodiscard]] UplinkStatus status() const override {
    UplinkStatus out;
    out.name = config_.name;
    out.device = config_.device;
    for (const auto& lane : lanes_) {
      const auto& figures = lane.queue->figures();
      out.queues.push_back(
          {lane.reactor, figures.received.get(), figures.sent.get(), figures.interrupts.get()});
    }
    if (device_) device_->read_status(out);
    return out;
  }
  [[nodiscard]] PortId port() const override { return port_; }
  [[nodiscard]] int departure_fd() const override { return device_ ? device_->departure_fd() : -1; }
  [[nodiscard]] std::vector<DriverCounter> driver_counters() const override {
    return device_ ? device_->counters() : std::vector<DriverCounter>{};
  }

  // Off the switch first, then off the reactors, then the device goes.
  void close(std::function<void()> done) override {
    const auto gone = after(lanes_.size(), [this, done = std::move(done)] {
      device_.reset();
      for (const auto& lane : lanes_) pool_.unplace(lane.reactor);
      fabric_.remove_port(port_, done);
    });
    for (unsigned i = 0; i < lanes_.size(); ++i) {
      const auto& [reactor, owned] = lanes_[i];
      fabric_.remove_endpoint(port_, i, [this, gone, reactor = reactor, queue = owned.get()] {
        pool_.post(
            reactor, [queue](base::Reactor&) { queue->stop(); }, gone);
      });
    }
  }

 private:
  struct Lane {
    unsigned reactor;
    std::unique_ptr<EthdevQueue> queue;
  };

  UplinkConfig config_;
  base::ReactorPool& pool_;
  Fabric& fabric_;
  std::unique_ptr<EthdevDevice> device_;
  PortId port_;
  std::vector<Lane> lanes_;
};

}  // namespace

base::Result<std::unique_ptr<Uplink>> open_uplink(const UplinkConfig& config,
                                                  base::ReactorPool& pool, Fabric& fabric,
                                                  std::function<void()> done) {
  auto device = EthdevDevice::open(config);
  if (!device) return base::Unexpected{device.error()};
  auto port_config = config.port;
  port_config.name = config.name;
  port_config.uplink = true;
  const auto port = fabric.add_port(port_config, {});
  if (!port) return base::Unexpected{port.error()};
  auto uplink = std::make_unique<EthdevUplink>(config, pool, fabric, *std::move(device), *port);
  uplink->start(std::move(done));
  return std::unique_ptr<Uplink>{std::move(uplink)};
}

}  // namespace millrace::vswitch
