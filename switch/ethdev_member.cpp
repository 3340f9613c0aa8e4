// A member of a bond as an Uplink: a device that is plugged in here, and has no port and no queue
// of its own. It carries while the bond has it.
#include <utility>

#include "base/check.hpp"
#include "switch/ethdev_device.hpp"

namespace millrace::vswitch {

namespace {

class EthdevMember final : public Uplink {
 public:
  EthdevMember(UplinkConfig config, Bond& bond) : config_{std::move(config)}, bond_{bond} {}

  [[nodiscard]] UplinkStatus status() const override {
    UplinkStatus out;
    out.name = config_.name;
    out.device = config_.device;
    if (device_ == nullptr) return out;
    device_->read_status(out);
    if (carries()) out.member = bond_.state_of(device_->number());
    return out;
  }
  [[nodiscard]] PortId port() const override { return no_port; }
  [[nodiscard]] bool attached() const override { return device_ != nullptr; }
  [[nodiscard]] bool carries() const override {
    return device_ != nullptr && bond_.has(device_->number());
  }
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
    CHECK(device_ == nullptr);
    auto config = config_;
    config.device = device;
    aside_([this, config, done = std::move(done)]() -> Done {
      auto plugged = std::make_shared<base::Result<std::unique_ptr<EthdevDevice>>>(
          EthdevDevice::plug_member(config));
      return [this, config, plugged, done] {
        if (!*plugged) return done(base::Unexpected{plugged->error()});
        config_.device = config.device;
        device_ = std::move(**plugged);
        bond_.know(device_->number());
        done({});
      };
    });
  }

  void detach(Done done) override {
    CHECK(!carries());
    bond_.forget(device_->number());
    const auto device = std::make_shared<std::unique_ptr<EthdevDevice>>(std::move(device_));
    aside_([device, done = std::move(done)] {
      device->reset();
      return done;
    });
  }

  // One that the bond refuses does not carry when it is done.
  void carry(bool carries, Done done) override {
    CHECK(device_ != nullptr);
    if (carries == this->carries()) return done();
    carries ? bond_.take(device_->number(), std::move(done))
            : bond_.release(device_->number(), std::move(done));
  }

  void close(Done done) override {
    if (device_ == nullptr) return done();
    carry(false, [this, done = std::move(done)] { detach(done); });
  }

  // It serves no port by itself.
  void tie(DirectSink&, std::uint16_t) override { CHECK(false); }
  [[nodiscard]] unsigned home() const override { return 0; }
  void untie(Elsewhere, std::function<void(const std::string&)>, Done done) override { done(); }
  void set_regions(std::shared_ptr<const DmaRegions>, Done done) override { done(); }
  void send(std::shared_ptr<const std::vector<Packet>>, Done done) override { done(); }

 private:
  UplinkConfig config_;
  Aside aside_ = [](const Work& work) { work()(); };
  Bond& bond_;
  std::unique_ptr<EthdevDevice> device_;
};

}  // namespace

base::Result<std::unique_ptr<Uplink>> open_member(const UplinkConfig& config, Bond& bond) {
  auto member = std::make_unique<EthdevMember>(config, bond);
  base::Result<> plugged;  // at once
  member->attach(config.device, [&plugged](const base::Result<>& result) { plugged = result; });
  if (!plugged) return base::Unexpected{plugged.error()};
  return std::unique_ptr<Uplink>{std::move(member)};
}

}  // namespace millrace::vswitch
