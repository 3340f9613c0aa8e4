// NetDevice: the one net::Device. Its queues' life is in device.cpp, what its driver asks for over
// the control queue in device_control.cpp, its ties to hardware in device_memory.cpp. Thread:
// control.
#pragma once

#include <utility>
#include <vector>

#include "net/control_queue.hpp"
#include "net/device.hpp"
#include "net/driver_state.hpp"
#include "net/rx_port.hpp"
#include "net/tx_worker.hpp"
#include "virtio/wire/net.hpp"

namespace millrace::net {

// The features of a device with this configuration.
[[nodiscard]] std::uint64_t features_of(const Config& config);

// What a queue was started as. Kept, because a front-end may change the features while it runs.
enum class Role : std::uint8_t { none, receive, transmit, control };

class NetDevice final : public Device {
 public:
  NetDevice(const Config& config, base::ReactorPool& reactors, vswitch::Fabric& fabric)
      : Device{config.name, 2 * config.pairs + (config.control_queue ? 1 : 0), reactors},
        config_{config},
        fabric_{fabric},
        features_{features_of(config)},
        mtu_{config.mtu},
        pairs_(config.pairs),
        senders_(config.pairs),
        roles_(queues_max(), Role::none),
        past_(queues_max()) {
    forget_driver();
  }

  base::Result<void> join(std::function<void()> ready);

  void set_features(std::uint64_t features) override;
  [[nodiscard]] virtio::DeviceKind kind() const override { return virtio::DeviceKind::net; }
  [[nodiscard]] std::uint64_t features() const override { return features_; }
  [[nodiscard]] std::span<const std::byte> config() const override;
  // A front-end that serves the control queue itself has no use for it unless the link may change,
  // and QEMU warns at every start about a net back-end that offers one.
  [[nodiscard]] bool offers_config() const override {
    return config_.control_queue || config_.link_changes;
  }
  base::Result<void> write_config(std::uint32_t, std::span<const std::byte>) override {
    return base::fail("port " + name() + ": the configuration of a network device is read-only");
  }
  [[nodiscard]] bool keeps_state() const override { return config_.control_queue; }
  void set_kept(std::shared_ptr<virtio::KeptArea> area) override;
  base::Result<void> announce(std::span<const std::uint8_t, 6> mac) override;
  base::Result<void> set_mtu(std::uint16_t mtu) override;

  [[nodiscard]] const Config& net_config() const override { return config_; }
  [[nodiscard]] vswitch::PortId port() const override { return port_; }
  [[nodiscard]] Status status() const override;
  void set_link(bool up) override;
  void lend(bool lends) override;
  void on_memory(MemoryHook hook) override;
  void be_direct(Direct direct) override { direct_ = std::move(direct); }
  void tie_again() override;
  void start_queue(virtio::QueueStart start, Done done) override;
  void set_memory(std::shared_ptr<const virtio::GuestMemory> memory, Done done) override;
  void set_connected(bool connected) override;
  void close(std::function<void()> done) override { fabric_.remove_port(port_, std::move(done)); }

 protected:
  std::unique_ptr<virtio::QueueWorker> make_worker(std::unique_ptr<virtio::Queue> queue) override;
  void worker_started(virtio::QueueWorker& worker, unsigned reactor, bool enabled,
                      std::function<void()> next) override;
  void worker_enabled(virtio::QueueWorker& worker, unsigned reactor, bool enabled,
                      std::function<void()> next) override;
  void worker_stopping(virtio::QueueWorker& worker, unsigned reactor,
                       std::function<void()> next) override;
  void worker_moving(virtio::QueueWorker& worker, unsigned from, unsigned to,
                     std::function<void(std::shared_ptr<base::Handover>)> go) override;
  void worker_moved(virtio::QueueWorker& worker, unsigned reactor,
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
    bool moving = false;                       // between two reactors
    std::vector<std::function<void()>> unset;  // who waits for settings until it has arrived
  };

  // A pair's transmit queue.
  struct Sender {
    TxWorker* worker = nullptr;  // null: not started, or about to stop
    unsigned reactor = 0;
    bool moving = false;
    std::vector<std::function<void()>> unset;
  };

  // Under the negotiated features (§5.1.2).
  [[nodiscard]] Role role_of(unsigned index) const;
  // Makes the pair's endpoint known to the switch or takes it away, whichever is due; `next` runs
  // when the switch is as the pair wants it.
  void update_pair(unsigned pair, std::function<void()> next);
  void settle_pair(unsigned pair);
  void move_pair(unsigned pair, unsigned to,
                 const std::function<void(std::shared_ptr<base::Handover>)>& go);
  void pair_moved(unsigned pair, unsigned reactor, std::function<void()> next);
  // Hands the control queue its next doorbell, with the answer to the last command.
  void ring_doorbell(ControlQueue& worker, unsigned reactor, bool accepted);
  void act(const ControlRequest& request, std::function<void()> next);
  // Brings pairs and switch to what the driver chose; `next` runs when they are there.
  void steer(std::function<void()> next);
  void update_pairs(const std::function<void()>& next);
  // What a driver begins with under the negotiated features.
  void forget_driver();
  [[nodiscard]] bool has_control() const;
  // Some queue knows what the driver set up.
  [[nodiscard]] bool any_started() const;
  void keep();
  // Pairs that may receive, where they are started and enabled.
  [[nodiscard]] unsigned receiving_pairs() const;
  // The driver's wishes as a receive queue shall hold them.
  [[nodiscard]] RxSettings rx_settings() const;
  // Gives a queue the settings of now, or, where it is between two reactors, those of when it has
  // arrived; `next` runs when it has them.
  void give_settings(Pair& pair, std::function<void()> next);
  void give_settings(Sender& sender, std::function<void()> next);
  void spread_settings(const std::function<void()>& next);
  [[nodiscard]] Totals totals(unsigned index) const;
  void use_memory(const std::shared_ptr<const virtio::GuestMemory>& memory);
  // Where it is for that pair: `next` runs when no device has anything of its queue.
  void untie(unsigned pair, std::function<void()> next);
  void tie(unsigned pair);

  const Config config_;
  vswitch::Fabric& fabric_;
  const std::uint64_t features_;
  std::uint16_t mtu_;
  bool link_up_ = true;
  DriverState driver_;
  bool steered_ = false;  // the switch was told a table
  bool lends_ = false;
  std::shared_ptr<const virtio::GuestMemory> memory_;  // the front-end's; null: not known
  MemoryHook memory_hook_;
  Direct direct_;  // empty: all that its guest receives is copied
  std::shared_ptr<virtio::KeptArea> kept_;
  vswitch::PortId port_ = vswitch::no_port;
  std::vector<SwitchSide> sides_;  // by reactor; fixed once joined
  std::vector<Pair> pairs_;
  std::vector<Sender> senders_;
  std::vector<Role> roles_;   // by queue
  std::vector<Totals> past_;  // of workers that are gone, by queue
  mutable virtio::wire::NetConfig space_{};
};

}  // namespace millrace::net
