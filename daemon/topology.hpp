// Topology: owns every part of the running daemon, in the order in which the parts need each other,
// and changes it at run time. The only place that knows all parts.
//
// Everything with a `done` answers once, from the event loop or at once, with the reason in one
// line where it failed; what failed has left nothing behind. Thread: control.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/event_loop.hpp"
#include "base/reactor_pool.hpp"
#include "blk/device.hpp"
#include "blk/uring_pool.hpp"
#include "daemon/balancer.hpp"
#include "daemon/config.hpp"
#include "daemon/device_worker.hpp"
#include "daemon/pfs.hpp"
#include "daemon/uplink_keeper.hpp"
#include "daemon/uplink_unit.hpp"
#include "guest/device.hpp"
#include "guest/reclaimer.hpp"
#include "net/device.hpp"
#include "switch/ethdev_port.hpp"
#include "switch/fabric.hpp"
#include "vhost/server.hpp"

namespace millrace::daemon {

// One guest NIC with its socket, one guest disk with its socket. `server` needs `device`.
struct PortUnit {
  GuestPort config;
  UnitState state = UnitState::starting;
  std::unique_ptr<net::Device> device;
  std::unique_ptr<vhost::Server> server;
};
struct DiskUnit {
  GuestDisk config;
  UnitState state = UnitState::starting;
  std::unique_ptr<blk::Device> device;
  std::unique_ptr<vhost::Server> server;
};
struct CompanionUnit {
  GuestCompanion config;
  UnitState state = UnitState::starting;
  std::unique_ptr<guest::Device> device;
  std::unique_ptr<vhost::Server> server;
};

struct MirrorUnit {
  MirrorEntry config;
  vswitch::PortId to = vswitch::no_port;
};

class Topology {
 public:
  using Done = std::function<void(base::Result<void>)>;
  using Events = std::function<void(std::string_view event, const nlohmann::json& data)>;
  template <class Unit>
  using Units = std::map<std::string, std::unique_ptr<Unit>, std::less<>>;

  // Starts the reactors, the switch and the storage rings; no port, disk or uplink yet.
  // `loop` must outlive it.
  static base::Result<std::unique_ptr<Topology>> make(base::EventLoop& loop, const Config& config);
  // close() was called and is done, or nothing was ever added.
  ~Topology() = default;
  Topology(const Topology&) = delete;
  Topology& operator=(const Topology&) = delete;

  void on_event(Events events) { events_ = std::move(events); }
  // Applies the physical functions of `config`, then adds all uplinks, ports and disks, one after
  // the other; stops at the first failure (close() then takes back what was added). Waits a few
  // seconds for an image that is locked: a predecessor that was killed holds it until its last
  // transfer has ended.
  void add_all(const Config& config, Done done);

  void add(GuestPort port, Done done);
  void add(GuestDisk disk, Done done);
  void add(GuestCompanion companion, Done done);
  void add(UplinkEntry uplink, Done done);
  // Its ports and uplinks are there. One of them that is removed leaves it; it ends with its
  // destination, and with the last that it watches.
  void add(MirrorEntry mirror, Done done);
  void remove_mirror(const std::string& name, Done done);
  void remove_port(const std::string& name, Done done);
  void remove_disk(const std::string& name, Done done);
  // `kind`: see guest::kind_of.
  void remove_companion(const char* kind, const std::string& name, Done done);
  // Answers the size that the guest is told.
  base::Result<std::uint64_t> resize_balloon(const std::string& name, std::uint64_t bytes);
  base::Result<std::uint64_t> resize_mem(const std::string& name, std::uint64_t bytes);
  // A port of a running console.
  base::Result<void> add_console_port(const std::string& console, const guest::PortSettings& port);
  base::Result<void> remove_console_port(const std::string& console, const std::string& port);
  void remove_uplink(const std::string& name, Done done);
  // A virtual function for a guest that drives it itself, of one physical function or (nullopt) of
  // any, near a NUMA node where one is free there. It stays the guest's when the daemon ends.
  base::Result<sriov::VirtualFunction> lend_function(
      const sriov::VfGuest& guest, const std::optional<sriov::PciAddress>& physical, int node);
  // The guest has let go of it. It is reset and has its settings of before when `done` is told.
  void return_function(const std::string& guest, Done done);
  // Answers the new size. `bytes` 0: as large as the file or device is now.
  base::Result<std::uint64_t> resize_disk(const std::string& name, std::uint64_t bytes);
  // Forgets the addresses learned at a port or uplink; empty: all.
  void flush_addresses(const std::string& name, Done done);
  // Moves a started queue of a port, disk or companion to a reactor, and pins it there; one that is
  // not started is there from its start on. No reactor: it is the balancer's again.
  void move_queue(const std::string& name, unsigned queue, std::optional<unsigned> reactor,
                  Done done);
  // Ends all sessions, drains everything and takes it down. Afterwards nothing can be added.
  void close(std::function<void()> done);

  // For status.
  [[nodiscard]] const Units<PortUnit>& ports() const { return ports_; }
  [[nodiscard]] const Units<DiskUnit>& disks() const { return disks_; }
  [[nodiscard]] const Units<CompanionUnit>& companions() const { return companions_; }
  [[nodiscard]] const Units<UplinkUnit>& uplinks() const { return uplinks_; }
  [[nodiscard]] const std::map<std::string, MirrorUnit>& mirrors() const { return mirrors_; }
  [[nodiscard]] base::ReactorPool& reactors() { return *reactors_; }
  // The started queues with their loads.
  [[nodiscard]] std::vector<QueueLoad> queues() const {
    return balancer_ == nullptr ? std::vector<QueueLoad>{} : balancer_->queues();
  }
  [[nodiscard]] Pfs& pfs() { return pfs_; }
  [[nodiscard]] vswitch::Fabric& fabric() { return *fabric_; }
  [[nodiscard]] blk::UringPool& rings() { return *rings_; }
  // The device that is being opened, closed or reset, as a line; empty: none is.
  [[nodiscard]] std::string waits_for() const { return devices_ ? devices_->doing() : ""; }
  [[nodiscard]] std::uint64_t started_ns() const { return started_ns_; }
  // The name of the port or uplink behind a switch port; empty: none.
  [[nodiscard]] std::string name_of(vswitch::PortId port) const;

 private:
  Topology(base::EventLoop& loop, const Config& config);

  // The reason why a unit of this name and socket cannot be added; empty: it can.
  [[nodiscard]] std::string conflict(const std::string& name, const std::string& socket) const;
  [[nodiscard]] base::Result<CompanionUnit*> find_companion(const char* kind,
                                                            const std::string& name);
  void make_balancer(bool moves);
  // Of a running unit; nullptr: there is none.
  [[nodiscard]] virtio::DeviceBase* find_device(const std::string& name);
  [[nodiscard]] base::Result<void> check_reactors(const std::vector<unsigned>& reactors) const;
  // Spreads a device's queues over `reactors`, so many that belong together to each in turn.
  static void pin(virtio::DeviceBase& device, const std::vector<unsigned>& reactors,
                  unsigned queues_together);
  void serve(PortUnit& unit, Done done);
  void watch_sessions(const std::string& name, vhost::Server& server, const char* kind);
  void finish(PortUnit& unit, std::function<void()> done);
  void finish(DiskUnit& unit, std::function<void()> done);
  void finish(CompanionUnit& unit, std::function<void()> done);
  void finish(UplinkUnit& unit, std::function<void()> done);
  // topology_wire.cpp: zero copy.
  [[nodiscard]] base::Result<void> make_wire_memory(UplinkUnit& unit, const std::string& function);
  [[nodiscard]] base::Result<void> check_wire_group(const UplinkUnit& unit,
                                                    const std::string& function) const;
  void share_memory(PortUnit& port);
  void share_all_memory();
  void look_for_stalls();
  // topology_direct.cpp
  [[nodiscard]] UplinkUnit* direct_uplink(const PortUnit& port);
  [[nodiscard]] std::string direct_refusal(const GuestPort& port) const;
  void make_direct(PortUnit& port);
  void find_direct_port(UplinkUnit& unit);
  // topology_mirrors.cpp
  [[nodiscard]] base::Result<vswitch::PortId> running_port(const std::string& name) const;
  [[nodiscard]] base::Result<vswitch::MirrorConfig> resolve(const MirrorEntry& mirror) const;
  void leave_mirrors(const std::string& name);
  base::Result<void> ensure_devices();
  base::Result<void> ensure_eal();
  // topology_uplinks.cpp
  [[nodiscard]] std::string standby_conflict(const UplinkEntry& entry) const;
  [[nodiscard]] std::string bond_conflict(const UplinkEntry& entry) const;
  [[nodiscard]] UplinkUnit* bond_of(const std::string& name) const;
  base::Result<std::unique_ptr<vswitch::Uplink>> open(const UplinkUnit& unit,
                                                      const std::function<void()>& ready);
  base::Result<void> borrow(UplinkEntry& entry, unsigned reactor,
                            std::optional<sriov::VfLease>& lease);
  void add_now(UplinkEntry uplink, Done done);
  void open_again(UplinkUnit& unit, Done done);
  void let_go(UplinkUnit& unit, std::function<void()> done);
  void follow(PortUnit& unit);
  void follow_all();
  [[nodiscard]] std::optional<bool> isolated(vswitch::PortId port) const;
  void add_next(std::shared_ptr<const Config> config, std::size_t index, Done done);
  void add_when_free(const GuestDisk& disk, unsigned looks, Done done);
  template <class Unit>
  void remove(Units<Unit>& units, const std::string& name, const char* kind, Done done);
  template <class Unit>
  void close_all(Units<Unit>& units, std::function<void()> done);
  [[nodiscard]] bool any_starting_or_stopping() const;
  void emit(std::string_view event, const nlohmann::json& data) {
    if (events_) events_(event, data);
  }

  base::EventLoop& loop_;
  Events events_;
  std::uint64_t started_ns_;
  unsigned dpdk_mb_;
  bool dpdk_hugepages_;
  bool closing_ = false;
  base::EventLoop::Timer image_wait_, stall_looks_, close_wait_;
  std::unique_ptr<base::Result<void>> eal_;  // null: not started yet; it cannot be tried twice

  // The order is the order of need: what is destroyed last is needed by all.
  Pfs pfs_;
  std::unique_ptr<base::ReactorPool> reactors_;
  std::unique_ptr<vswitch::Fabric> fabric_;
  blk::PinBoard wire_board_;  // pages that an uplink's device may read
  std::unique_ptr<guest::Reclaimer> reclaimer_;
  std::unique_ptr<blk::UringPool> rings_;
  Units<UplinkUnit> uplinks_;
  std::unique_ptr<DeviceWorker> devices_;  // null: there was no uplink, and no function came back
  std::size_t returning_ = 0;              // functions that guests gave back, not reset yet
  UplinkKeeper keeper_;
  Units<PortUnit> ports_;
  Units<DiskUnit> disks_;
  Units<CompanionUnit> companions_;
  std::map<std::string, MirrorUnit> mirrors_;
  std::unique_ptr<Balancer> balancer_;
};

}  // namespace millrace::daemon
