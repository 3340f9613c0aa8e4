#include "switch/ethdev_port.hpp"

#include <utility>

#include "switch/ethdev_device.hpp"

namespace millrace::vswitch {

namespace {

class EthdevUplink final : public Uplink {
 public:
  EthdevUplink(UplinkConfig config, base::ReactorPool& pool, Fabric& fabric,
               std::unique_ptr<EthdevDevice> device, PortId port)
      : config_{std::move(config)},
        pool_{pool},
        fabric_{fabric},
        device_{std::move(device)},
        port_{port},
        reactor_{pool.place()},
        queue_{std::make_unique<EthdevQueue>(device_->queue(), pool.at(reactor_),
                                             fabric.bridge(reactor_),
                                             fabric.counters(port, reactor_), port)} {}

  void start(std::function<void()> done) {
    fabric_.add_endpoint(port_, 0, reactor_, queue_.get(), [this, done = std::move(done)] {
      pool_.post(
          reactor_, [queue = queue_.get()](base::Reactor&) { queue->start(); },
          [done] {
            if (done) done();
          });
    });
  }

  [[nodiscard]] UplinkStatus status() const override {
    UplinkStatus out;
    out.name = config_.name;
    out.device = config_.device;
    out.reactor = reactor_;
    if (device_) device_->read_status(out);
    return out;
  }
  [[nodiscard]] PortId port() const override { return port_; }
  [[nodiscard]] std::vector<DriverCounter> driver_counters() const override {
    return device_ ? device_->counters() : std::vector<DriverCounter>{};
  }

  // Off the switch first, then off the reactor, then the device goes.
  void close(std::function<void()> done) override {
    fabric_.remove_endpoint(port_, 0, [this, done = std::move(done)] {
      pool_.post(
          reactor_, [queue = queue_.get()](base::Reactor&) { queue->stop(); },
          [this, done] {
            device_.reset();
            pool_.unplace(reactor_);
            fabric_.remove_port(port_, done);
          });
    });
  }

 private:
  UplinkConfig config_;
  base::ReactorPool& pool_;
  Fabric& fabric_;
  std::unique_ptr<EthdevDevice> device_;
  PortId port_;
  unsigned reactor_;
  std::unique_ptr<EthdevQueue> queue_;
};

}  // namespace

base::Result<std::unique_ptr<Uplink>> open_uplink(const UplinkConfig& config,
                                                  base::ReactorPool& pool, Fabric& fabric,
                                                  std::function<void()> done) {
  auto device = EthdevDevice::open(config.device);
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
