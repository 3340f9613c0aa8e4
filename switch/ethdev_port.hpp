// EthdevPort: a DPDK ethdev as a switch port (an uplink): see EthdevQueue for its data path, each
// queue of which is on one reactor; set-up and removal are control's. The port outlives its device:
// that can be closed, and the same or another one opened for the port.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/reactor_pool.hpp"
#include "base/result.hpp"
#include "switch/direct_sink.hpp"
#include "switch/dma_regions.hpp"
#include "switch/fabric.hpp"

namespace millrace::vswitch {

// How a bond, an uplink of several devices, uses them.
enum class BondMode : std::uint8_t {
  none,           // it is no bond
  active_backup,  // one at a time; another when that has no link
  balance_xor,    // each flow by one of them, chosen by addresses and ports
  lacp,           // the same, of those that the other side agreed to (802.3ad)
};

struct UplinkConfig {
  std::string name;
  std::string device;  // a DPDK device string: net_tap0,iface=mill0; or see pci
  PortConfig port;
  bool pci = false;  // device is the address of a PCI function that vfio-pci drives: 0000:01:00.0
  unsigned queues = 1;     // receive and transmit queues, each on a reactor of its own
  std::uint16_t mtu = 0;   // 0: the most that the device can, up to 9216
  bool zero_copy = false;  // guests' payloads go out from where they lie; see set_regions()
  bool direct = false;     // one port alone is behind it; see tie(). Needs zero_copy, one queue
  bool gro = false;  // TCP frames that come are joined; the driver has to check their checksums
  std::optional<Mac> mac;  // the one station behind it: for a function that hears nobody else
  bool carries = true;     // false: open, but hears and sends nothing until carry(true)
  BondMode bond = BondMode::none;  // else: its devices are its members'; see open_bond()
  unsigned members = 0;            // of a bond: how many it may have
};

struct LinkState {
  bool up = false;
  std::uint32_t speed_mbps = 0;  // 0: not known
  std::uint32_t way = 0;         // of a bond that uses one of its members: which
  friend bool operator==(const LinkState&, const LinkState&) = default;
};

// Of a device as a member of a bond.
struct MemberState {
  bool active = false;         // the bond sends by it
  std::optional<Mac> partner;  // LACP: the system at the other end, once it was heard of
};

struct UplinkStatus {
  // What its device does of what else is done here, or not at all (the last two).
  struct Offloads {
    bool checksum = false, tso = false;  // of what is sent
    bool vlan_insert = false, vlan_strip = false;
    bool vlan_filter = false;     // frames of other VLANs than the trunk's do not come
    bool checksum_check = false;  // of what comes
  };
  struct Queue {
    unsigned reactor = 0;
    std::uint64_t received = 0, sent = 0;    // frames
    std::uint64_t interrupts = 0;            // that said that frames wait
    std::uint64_t joined = 0;                // of those received; see EthdevQueue::Figures
    std::uint64_t tagged = 0, untagged = 0;  // by the device: of those sent, of those received
  };
  // What the wire got of guests' payloads; see EthdevQueue::Figures.
  struct ZeroCopy {
    std::uint64_t packets = 0, bytes = 0, done = 0;
    std::uint64_t copied_small = 0, copied_not_lent = 0, copied_unmapped = 0, copied_busy = 0;
    std::uint64_t copied_slow = 0;
  };
  // What was received into a guest's own buffers; see DirectReceive::Figures.
  struct Direct {
    bool placing = false;
    std::uint64_t packets = 0, bytes = 0, no_buffer = 0;
    std::uint64_t copied_begun = 0, copied_small = 0, copied_few = 0, copied_unmapped = 0;
    std::uint64_t copied_off = 0, copied_long = 0, copied_vlan = 0;
  };
  std::string name, device, driver;
  std::uint16_t mtu = 0;
  std::vector<Queue> queues;          // none without a device
  std::optional<ZeroCopy> zero_copy;  // none: it is off
  std::optional<Direct> direct;       // none: it is for all ports
  Mac mac{};
  Offloads offloads;                  // of one that has queues
  std::optional<MemberState> member;  // of a bond that has it
};

// A bond as its members see it. Thread: control.
class Bond {
 public:
  virtual ~Bond() = default;
  // A device is plugged in, and neither configured nor started: for the bond to take, now or when
  // it opens the next time. Until forget(): it is about to be closed, and the bond has it not.
  virtual void know(std::uint16_t device) = 0;
  virtual void forget(std::uint16_t device) = 0;

  [[nodiscard]] virtual bool has(std::uint16_t device) const = 0;
  [[nodiscard]] virtual MemberState state_of(std::uint16_t device) const = 0;
  // Both while the bond has a device, and no other nor a carry() is under way; `done` runs on
  // control. One that the driver refuses beside those that it has is not taken. The bond carries
  // nothing for the moment that a release takes.
  virtual void take(std::uint16_t device, std::function<void()> done) = 0;
  virtual void release(std::uint16_t device, std::function<void()> done) = 0;
};

class Uplink {
 public:
  using Done = std::function<void()>;
  // Does what takes long and answers what is to be done on control.
  using Work = std::function<std::function<void()>()>;

  virtual ~Uplink() = default;
  // Devices are opened and closed by `aside` from now on, which runs the work on another thread,
  // one after the other, and what that answers on control: a device that does not answer may take
  // minutes. Without: at once, on control. Nothing of DPDK's that takes or gives back its memory
  // may be done on control meanwhile.
  using Aside = std::function<void(Work)>;
  virtual void open_and_close_by(Aside aside) = 0;
  // What is known without asking the device.
  [[nodiscard]] virtual UplinkStatus status() const = 0;
  // no_port: it is a member of a bond.
  [[nodiscard]] virtual PortId port() const = 0;
  // Of a bond; else nullptr.
  [[nodiscard]] virtual Bond* bond() { return nullptr; }
  // Takes it off its reactors, closes the device and removes the port; `done` runs on control, then
  // it may be destroyed. Not while a carry(), detach() or attach() has not answered.
  virtual void close(Done done) = 0;

  // Whether it has a device; and whether that carries frames. One that does not hears and sends
  // nothing, but its link is watched: a standby. What the switch has for it is dropped and counted.
  [[nodiscard]] virtual bool attached() const = 0;
  [[nodiscard]] virtual bool carries() const = 0;
  // Needs a device. What it received while it did not carry is forgotten. One at a time; `done`
  // runs on control when every reactor knows.
  virtual void carry(bool carries, Done done) = 0;
  // Closes the device, which carries nothing; what it was lent comes back. What its queues counted
  // is gone, the port's counters stay. It is not attached from now on; `done` runs on control when
  // the device is closed, or at once.
  virtual void detach(Done done) = 0;
  // Opens a device for the port, in place of one that was detached; it carries nothing yet. `done`
  // runs on control when it is attached, or at once; errors in one line, and it is as before.
  using Attached = std::function<void(const base::Result<>& result)>;
  virtual void attach(const std::string& device, Attached done) = 0;

  // The memory of guests that its device reaches from now on: none of it after attach(). `done`
  // runs on control when the device reads nothing any more of what it reached before and does not
  // now; at once without a device.
  virtual void set_regions(std::shared_ptr<const DmaRegions> regions, Done done) = 0;

  // Of a direct one: frames go into the buffers of `sink`, which is on the reactor home(), where it
  // and the device allow; else to the switch, as those of others. Until untie(). With a `vlan` they
  // are those that have its tag on the wire, and come without it; 0: all, as they are.
  virtual void tie(DirectSink& sink, std::uint16_t vlan) = 0;
  [[nodiscard]] virtual unsigned home() const = 0;
  // False: the device is given up.
  using Elsewhere = std::function<bool(Work)>;
  // Nothing is received into the sink's buffers any more; those that the device had without a frame
  // are the sink's again. `done` runs on control, then the sink may go. For that the device is
  // stopped and started again `elsewhere`, until which it is not to be closed; frames that come
  // meanwhile are lost. Where that fails, `failed` is told why, and `done` runs with detach().
  virtual void untie(Elsewhere elsewhere, std::function<void(const std::string& why)> failed,
                     Done done) = 0;

  // As the device says now (registers, or a message to it: microseconds); down without one. Of one
  // that does not answer a driver may wait for seconds to hear, as in all that asks the device.
  [[nodiscard]] virtual LinkState link() const = 0;
  // Sends frames of ours past the switch, as they are; none without a device that carries. `done`
  // runs on control when they are on their way.
  virtual void send(std::shared_ptr<const std::vector<Packet>> frames, Done done) = 0;

  // A descriptor that is readable once the host wants the device back and waits for detach() or
  // close(); -1: that cannot happen. Valid until then.
  [[nodiscard]] virtual int departure_fd() const = 0;
  // A PCI function's IOMMU group, which the driver has open; its descriptor is the driver's.
  struct Group {
    int fd = -1;
    unsigned number = 0;
  };
  [[nodiscard]] virtual std::optional<Group> group() const = 0;
  // What the driver counts by itself: missed frames, errors of the wire. Asks the device.
  struct DriverCounter {
    std::string name;
    std::uint64_t value;
  };
  [[nodiscard]] virtual std::vector<DriverCounter> driver_counters() const = 0;
};

// Needs an initialised EAL (daemon/eal). Hot-plugs the device, starts its queues, joins the switch.
// `done` runs when it carries packets, or shall not yet. Errors in one line.
base::Result<std::unique_ptr<Uplink>> open_uplink(const UplinkConfig& config,
                                                  base::ReactorPool& pool, Fabric& fabric,
                                                  std::function<void()> done);
// A bond: a port of the switch that has no device until attach() makes it, of the members that it
// knows by then.
base::Result<std::unique_ptr<Uplink>> open_bond(const UplinkConfig& config, base::ReactorPool& pool,
                                                Fabric& fabric, std::function<void()> done);
// A member, which has no port: plugs its device in, and carries while `bond`, which must outlive
// it, has that.
base::Result<std::unique_ptr<Uplink>> open_member(const UplinkConfig& config, Bond& bond);

}  // namespace millrace::vswitch
