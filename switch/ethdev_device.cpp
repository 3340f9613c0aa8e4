#include "switch/ethdev_device.hpp"

#include <fcntl.h>
#include <rte_dev.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_vfio.h>
#include <signal.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/check.hpp"
#include "base/mac.hpp"
#include "switch/ethdev_bond.hpp"

namespace millrace::vswitch {

namespace {

constexpr unsigned mbufs = 8191, mbuf_cache = 256;  // 2 MiB a thousand
constexpr std::uint16_t ring_size = 1024, jumbo_mtu = 9216;
constexpr const char* functions_folder = "/sys/bus/pci/devices";
constexpr std::uint32_t l2_overhead = 18;  // Ethernet header and one tag
// A guest has some 256 buffers, and gives new ones for those that it was given.
constexpr std::uint16_t direct_ring_size = 128;
// Where a device takes no longer frames, it writes none.
constexpr std::uint16_t direct_mtu = 1500;
constexpr std::uint32_t direct_overhead = 22;  // Ethernet header and two tags

// net_tap asks for a real-time signal for every frame that waits, sent to whichever thread does not
// block it. While one of these lives, all such signals look taken, so that it does without.
class SignalsTaken {
 public:
  SignalsTaken() {
    struct sigaction ignore {};
    ignore.sa_handler = [](int) {};
    ignore.sa_flags = SA_RESTART;
    for (int s = SIGRTMIN; s <= SIGRTMAX; ++s) ::sigaction(s, &ignore, &before_[index(s)]);
    ::sigaction(SIGIO, &ignore, &before_io_);
  }
  ~SignalsTaken() {
    for (int s = SIGRTMIN; s <= SIGRTMAX; ++s) ::sigaction(s, &before_[index(s)], nullptr);
    ::sigaction(SIGIO, &before_io_, nullptr);
  }
  SignalsTaken(const SignalsTaken&) = delete;
  SignalsTaken& operator=(const SignalsTaken&) = delete;

 private:
  static std::size_t index(int signal) { return static_cast<std::size_t>(signal - SIGRTMIN); }
  std::array<struct sigaction, 64> before_;
  struct sigaction before_io_;
};

// Drivers whose offloads are loops over the payload on the same core: ours need one pass less.
bool offloads_in_software(const std::string& driver) {
  return driver == "net_tap";
}
// Interfaces of the host's stack: their MTU is the administrator's.
bool belongs_to_host(const std::string& driver) {
  return driver == "net_tap" || driver == "net_af_packet";
}
// Drivers that claim to tell of their links, and tell nobody.
bool keeps_its_link_to_itself(const std::string& driver) {
  return driver == "net_tap";
}
// Functions that receive for their own address alone, whatever they are asked, and whose drivers
// report success all the same.
bool hears_itself_only(const std::string& driver) {
  return driver == "net_e1000_igb_vf";
}
// Drivers that say of each packet whether the device is done with it, before they reuse its place
// in the ring. Others may say so of one in 32, or when something else is sent.
bool tells_what_is_sent(const std::string& driver) {
  return driver == "net_e1000_igb" || driver == "net_e1000_igb_vf" || driver == "net_e1000_em";
}
// Drivers that ask for an mbuf for each frame, one at a time, and take the place of its bytes from
// it in the way of all: from where it begins, behind the headroom.
bool takes_mbufs_in_turn(const std::string& driver) {
  return tells_what_is_sent(driver);  // the same ones
}
// Below it a copy costs less than a descriptor more, a hold and a look. By build/bench/micro's
// *_to_wire, payloads that no cache holds are worth it from some 300 bytes on, those that ours
// holds from some 900 on; most were written by another core. At 512 both are within 10 ns.
constexpr std::uint32_t zero_copy_min = 512;

}  // namespace

EthdevDevice::EthdevDevice(const UplinkConfig& config, std::string name)
    : config_{config}, name_{std::move(name)} {}

base::Error EthdevDevice::error(const std::string& doing, int result) const {
  const int reason = result < 0 ? -result : rte_errno;
  return base::Error{"uplink device " + name_ + ": cannot " + doing + ": " + std::strerror(reason)};
}

base::Result<std::unique_ptr<EthdevDevice>> EthdevDevice::open(const UplinkConfig& config) {
  const SignalsTaken signals;  // until its queues are made
  auto out = plugged(config);
  if (!out) return out;
  if (const auto done = (*out)->bring_up(); !done) return base::Unexpected{done.error()};
  return out;
}

base::Result<std::unique_ptr<EthdevDevice>> EthdevDevice::open_bond(const UplinkConfig& config,
                                                                    const Numbers& members) {
  const SignalsTaken signals;
  auto out = std::unique_ptr<EthdevDevice>(new EthdevDevice{config, config.device});
  if (const auto done = out->plug({}); !done) return base::Unexpected{done.error()};
  if (const auto done = out->add_members(members); !done) return base::Unexpected{done.error()};
  if (const auto done = out->bring_up(); !done) return base::Unexpected{done.error()};
  return out;
}

base::Result<std::unique_ptr<EthdevDevice>> EthdevDevice::plug_member(const UplinkConfig& config) {
  const SignalsTaken signals;
  auto out = plugged(config);
  if (!out) return out;
  auto& member = **out;
  rte_eth_dev_info info{};
  if (const int r = rte_eth_dev_info_get(member.device_, &info); r != 0) {
    return base::Unexpected{member.error("read its abilities", r)};
  }
  member.driver_ = info.driver_name;
  if (hears_itself_only(member.driver_)) {
    return base::fail("uplink device " + member.name_ + " (" + member.driver_ +
                      ") hears its own address alone: it can be no member of a bond; bond the "
                      "whole NICs, or give the one a standby");
  }
  // What a bond reads this flag for: without it, it looks at the link every 10 ms.
  if (keeps_its_link_to_itself(member.driver_)) {
    *const_cast<std::uint32_t*>(info.dev_flags) &= ~std::uint32_t{RTE_ETH_DEV_INTR_LSC};
  }
  return out;
}

base::Result<std::unique_ptr<EthdevDevice>> EthdevDevice::plugged(const UplinkConfig& config) {
  const auto& device = config.device;
  const auto comma = device.find(',');
  const auto name = device.substr(0, comma);
  const auto arguments = comma == std::string::npos ? std::string{} : device.substr(comma + 1);
  if (!config.pci && !name.starts_with("net_")) {
    return base::fail("uplink device " + name +
                      ": only virtual devices are known here (net_tap0, net_af_packet0, ...); name "
                      "a PCI function as pci = \"0000:01:00.0\"");
  }
  std::uint16_t taken = 0;
  if (rte_eth_dev_get_port_by_name(name.c_str(), &taken) == 0) {
    return base::fail("uplink device " + name + " is in use already");
  }
  auto out = std::unique_ptr<EthdevDevice>(new EthdevDevice{config, name});
  if (const auto done = out->plug(arguments); !done) return base::Unexpected{done.error()};
  return out;
}

base::Result<> EthdevDevice::add_members(const Numbers& members) {
  if (config_.bond == BondMode::lacp &&
      !bond_has_memory(static_cast<unsigned>(members.size()), config_.queues)) {
    return base::fail("uplink device " + name_ +
                      ": no memory for LACP, which takes 2 MiB of [memory] dpdk_mb for each "
                      "member; give more");
  }
  for (const auto member : members) {
    if (!bond_add(device_, member)) return base::Unexpected{error("take in a member", -EINVAL)};
  }
  return {};
}

bool EthdevDevice::take(std::uint16_t member) {
  const SignalsTaken signals;
  if (config_.bond == BondMode::lacp && !bond_has_memory(1, config_.queues)) return false;
  if (!bond_add(device_, member)) return false;
  // The bond's own driver tells members of this that were there when it was switched on.
  rte_eth_promiscuous_enable(member);
  rte_eth_allmulticast_enable(member);
  return true;
}

template <class Is>
bool EthdevDevice::any_driver(Is is) const {
  if (config_.bond == BondMode::none) return is(driver_);
  return std::ranges::any_of(bond_members(device_), [&](std::uint16_t member) {
    rte_eth_dev_info info{};
    return rte_eth_dev_info_get(member, &info) == 0 && is(info.driver_name);
  });
}

base::Result<> EthdevDevice::plug(const std::string& arguments) {
  const int result = config_.bond != BondMode::none
                         ? bond_make(name_, config_.bond)
                         : rte_eal_hotplug_add(bus(), name_.c_str(), arguments.c_str());
  if (result == -ENOTSUP) {
    return base::fail("uplink device " + name_ +
                      ": none of the drivers that this program has knows it");
  }
  if (result != 0) return base::Unexpected{error("plug it in", result)};
  plugged_ = true;
  const int found = rte_eth_dev_get_port_by_name(name_.c_str(), &device_);
  if (found != 0) return base::Unexpected{error("find its port", found)};
  if (!config_.pci) return {};
  auto departure = Departure::of(name_);
  if (!departure) return base::Unexpected{departure.error()};
  departure_ = *std::move(departure);
  return {};
}

base::Result<> EthdevDevice::bring_up() {
  rte_eth_dev_info info{};
  if (const int r = rte_eth_dev_info_get(device_, &info); r != 0) {
    return base::Unexpected{error("read its abilities", r)};
  }
  driver_ = info.driver_name;
  const unsigned queues_max = std::min(info.max_rx_queues, info.max_tx_queues);
  if (config_.queues > queues_max) {
    return base::fail("uplink device " + name_ + " has " + std::to_string(queues_max) +
                      " queues with its driver " + driver_ + ", " + std::to_string(config_.queues) +
                      " are asked for; give queues = " + std::to_string(queues_max) + " or fewer");
  }
  // Such a driver may have queues all the same; all but the first would hear nothing.
  const bool may_not = config_.pci || config_.bond != BondMode::none;
  if (may_not && config_.queues > 1 && info.flow_type_rss_offloads == 0) {
    return base::fail("uplink device " + name_ + ": its driver " + driver_ +
                      " spreads no flows over queues, " + std::to_string(config_.queues) +
                      " are asked for; give queues = 1");
  }
  const auto mtu = choose_mtu(info);
  if (!mtu) return base::Unexpected{mtu.error()};
  rte_eth_conf conf{};
  conf.rxmode.mtu = *mtu;
  common_.device = device_;
  common_.frame_max = *mtu + l2_overhead;
  common_.mac = config_.mac;
  common_.bond = config_.bond;
  common_.pads = config_.pci || (config_.bond != BondMode::none && !any_driver(belongs_to_host));
  choose_offloads(info, conf);
  if (auto done = choose_vlans(info, conf); !done) return done;
  if (auto done = choose_zero_copy(); !done) return done;
  if (auto done = choose_gro(info, conf); !done) return done;
  if (auto done = make_queues(); !done) return done;
  if (auto done = make_direct_pool(*mtu); !done) return done;
  // With receive interrupts where the driver has them.
  conf.intr_conf.rxq = config_.bond == BondMode::none ? 1 : 0;
  auto done = start(info, conf);
  if (!done && conf.intr_conf.rxq != 0) {
    conf.intr_conf.rxq = 0;
    done = start(info, conf);
  }
  if (!done) return done;
  interrupts_ = conf.intr_conf.rxq != 0;
  checks_ = (conf.rxmode.offloads & RTE_ETH_RX_OFFLOAD_TCP_CKSUM) != 0;
  if (done = tell_vlans(); !done) return done;
  find_wake_descriptors();
  return hear_everybody();
}

base::Result<std::uint16_t> EthdevDevice::choose_mtu(const rte_eth_dev_info& info) const {
  std::uint16_t mtu = 0;
  rte_eth_dev_get_mtu(config_.bond == BondMode::none ? device_ : bond_members(device_).front(),
                      &mtu);
  if (any_driver(belongs_to_host)) {
    if (config_.mtu == 0 || config_.mtu == mtu) return mtu;
    return base::fail("uplink device " + name_ + " is an interface of the host with an mtu of " +
                      std::to_string(mtu) + ", " + std::to_string(config_.mtu) +
                      " is asked for; set it there: ip link set INTERFACE mtu " +
                      std::to_string(config_.mtu));
  }
  const std::uint32_t limit =
      info.max_rx_pktlen > l2_overhead ? info.max_rx_pktlen - l2_overhead : 0;
  const auto most = static_cast<std::uint16_t>(
      std::min({std::uint32_t{jumbo_mtu}, std::uint32_t{info.max_mtu}, limit}));
  const auto usual = config_.direct ? std::min(most, direct_mtu) : most;
  if (config_.mtu <= most) return config_.mtu != 0 ? config_.mtu : usual;
  return base::fail("uplink device " + name_ + " carries an mtu of at most " +
                    std::to_string(most) + ", " + std::to_string(config_.mtu) + " is asked for");
}

base::Result<> EthdevDevice::choose_zero_copy() {
  if (!config_.zero_copy) return {};
  if (!tells_what_is_sent(driver_)) {
    return base::fail("uplink device " + name_ + ": its driver " + driver_ +
                      " does not say in time which frames were sent; give zero_copy = false");
  }
  common_.zero_copy_min = zero_copy_min;
  return {};
}

// Of frames that are joined nobody sees the checksums any more.
base::Result<> EthdevDevice::choose_gro(const rte_eth_dev_info& info, rte_eth_conf& conf) {
  if (!config_.gro) return {};
  const auto checksums = info.rx_offload_capa & RTE_ETH_RX_OFFLOAD_CHECKSUM;
  if ((checksums & RTE_ETH_RX_OFFLOAD_TCP_CKSUM) == 0) {
    return base::fail("uplink device " + name_ + ": its driver " + driver_ +
                      " does not check the checksums of what comes; give gro = false");
  }
  conf.rxmode.offloads |= checksums;
  common_.gro = true;
  return {};
}

void EthdevDevice::choose_offloads(const rte_eth_dev_info& info, rte_eth_conf& conf) {
  conf.rxmode.offloads = info.rx_offload_capa & RTE_ETH_RX_OFFLOAD_SCATTER;
  conf.txmode.offloads = info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
  if (!any_driver(offloads_in_software)) {
    constexpr std::uint64_t checksums =
        RTE_ETH_TX_OFFLOAD_IPV4_CKSUM | RTE_ETH_TX_OFFLOAD_TCP_CKSUM | RTE_ETH_TX_OFFLOAD_UDP_CKSUM;
    common_.checksum_offload = (info.tx_offload_capa & checksums) == checksums;
    common_.tso_offload =
        common_.checksum_offload && (info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_TCP_TSO) != 0;
    if (common_.checksum_offload) conf.txmode.offloads |= checksums;
    if (common_.tso_offload) conf.txmode.offloads |= RTE_ETH_TX_OFFLOAD_TCP_TSO;
    conf.rxmode.offloads |= info.rx_offload_capa & RTE_ETH_RX_OFFLOAD_CHECKSUM;
  }
  if (config_.queues == 1) return;
  constexpr std::uint64_t flows = RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP;
  conf.rx_adv_conf.rss_conf.rss_hf = info.flow_type_rss_offloads & flows;
  if (conf.rx_adv_conf.rss_conf.rss_hf != 0) conf.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
}

base::Result<> EthdevDevice::make_queues() {
  // What lies in the rings of a bond's members is of it, too.
  const unsigned shares = std::max(1u, (config_.members + 1) / 2);
  for (unsigned i = 0; i < config_.queues; ++i) {
    auto queue = common_;
    queue.queue = static_cast<std::uint16_t>(i);
    const auto pool = "uplink_" + std::to_string(device_) + "_" + std::to_string(i);
    queue.pool = rte_pktmbuf_pool_create(pool.c_str(), shares * mbufs, mbuf_cache, 0,
                                         RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
    if (queue.pool == nullptr) {
      auto reason = error("make its packet pool", 0);
      reason.message +=
          "; each queue takes " + std::to_string(20 * shares) + " MiB of [memory] dpdk_mb";
      return base::Unexpected{std::move(reason)};
    }
    queues_.push_back(queue);
  }
  return {};
}

// Longer frames than usual are copied: none of a guest's buffers holds one.
base::Result<> EthdevDevice::make_direct_pool(std::uint16_t mtu) {
  if (!config_.direct) return {};
  if (!takes_mbufs_in_turn(driver_)) {
    return base::fail("uplink device " + name_ + ": its driver " + driver_ +
                      " cannot receive into a guest's buffers; use it without direct");
  }
  if (mtu > direct_mtu) return {};
  auto made = DirectPool::make("direct_" + std::to_string(device_), 2 * direct_ring_size);
  if (!made) return base::fail("uplink device " + name_ + ": " + made.error().message);
  direct_ = *std::move(made);
  auto& queue = queues_.front();
  queue.direct = direct_.get();
  queue.direct_frame_max = mtu + direct_overhead;
  queue.rx_ring = direct_ring_size;
  return {};
}

base::Result<> EthdevDevice::start(const rte_eth_dev_info& info, rte_eth_conf& conf) {
  const auto count = static_cast<std::uint16_t>(config_.queues);
  int r = rte_eth_dev_configure(device_, count, count, &conf);
  if (r != 0) return base::Unexpected{error("configure it", r)};
  for (auto& queue : queues_) {
    if (auto done = set_up_queue(queue, info, conf); !done) return done;
  }
  r = rte_eth_dev_start(device_);
  if (r != 0) return base::Unexpected{error("start it", r)};
  return {};
}

base::Result<> EthdevDevice::set_up_queue(EthdevQueueConfig& queue, const rte_eth_dev_info& info,
                                          const rte_eth_conf& conf) {
  std::uint16_t rx_size = queue.direct != nullptr ? queue.rx_ring : ring_size;
  std::uint16_t tx_size = ring_size;
  rte_eth_dev_adjust_nb_rx_tx_desc(device_, &rx_size, &tx_size);
  auto rx = info.default_rxconf;
  rx.offloads = conf.rxmode.offloads;
  int r = rte_eth_rx_queue_setup(device_, queue.queue, rx_size, 0, &rx,
                                 queue.direct != nullptr ? queue.direct->pool() : queue.pool);
  if (r != 0) return base::Unexpected{error("set up its receive queue", r)};
  auto tx = info.default_txconf;
  tx.offloads = conf.txmode.offloads;
  if (queue.zero_copy_min != 0) tx.tx_rs_thresh = 1;  // of each packet, not of one in so many
  queue.tx_ring = tx_size;
  r = rte_eth_tx_queue_setup(device_, queue.queue, tx_size, 0, &tx);
  if (r != 0) return base::Unexpected{error("set up its transmit queue", r)};
  return {};
}

// A bridge port has to hear everybody, or else serves one station alone. A virtual device that
// cannot (net_null) hears everything anyway.
base::Result<> EthdevDevice::hear_everybody() {
  const bool promiscuous = rte_eth_promiscuous_enable(device_) == 0;
  rte_eth_allmulticast_enable(device_);
  if (config_.bond != BondMode::none) {
    // Of one that uses a member at a time, the driver tells that one alone.
    for (const auto member : bond_members(device_)) {
      rte_eth_promiscuous_enable(member);
      rte_eth_allmulticast_enable(member);
    }
  }
  if (!config_.pci || (promiscuous && !hears_itself_only(driver_))) return {};
  rte_ether_addr its{};
  rte_eth_macaddr_get(device_, &its);
  Mac own;
  std::memcpy(own.data(), its.addr_bytes, own.size());
  const auto begin = "uplink device " + name_ + " (" + driver_ + ") hears its own address " +
                     base::format_mac(own) + " alone";
  if (!config_.mac) {
    return base::fail(
        begin +
        ": it can serve one guest port; give mac = \"ADDRESS\" of that guest, or make "
        "the whole NIC the uplink");
  }
  if (*config_.mac != own) {
    return base::fail(begin + ", mac is " + base::format_mac(*config_.mac) +
                      "; set the function's address first: ip link set PF vf N mac " +
                      base::format_mac(*config_.mac));
  }
  return {};
}

// A descriptor that is readable when a frame waits: net_tap's own, at any time, or a driver's
// interrupt, while that is on.
void EthdevDevice::find_wake_descriptors() {
  for (auto& queue : queues_) {
    if (driver_ != "net_tap" && !(config_.pci && interrupts_)) continue;
    queue.wake_fd = std::max(-1, rte_eth_dev_rx_intr_ctl_q_get_fd(device_, queue.queue));
    queue.interrupts = config_.pci;
    if (queue.wake_fd < 0) continue;
    if (config_.pci && rte_eth_dev_rx_intr_disable(device_, queue.queue) != 0) queue.wake_fd = -1;
    if (config_.pci) continue;
    const int flags = ::fcntl(queue.wake_fd, F_GETFL);
    if (flags >= 0 && (flags & O_ASYNC) != 0) ::fcntl(queue.wake_fd, F_SETFL, flags & ~O_ASYNC);
  }
}

base::Result<> EthdevDevice::restart() {
  int r = rte_eth_dev_stop(device_);
  if (r != 0) return base::Unexpected{error("stop it", r)};
  if (direct_ != nullptr && direct_->out() != 0) {
    return base::fail("uplink device " + name_ + ": its driver " + driver_ +
                      " keeps receive buffers of a device that is stopped");
  }
  r = rte_eth_dev_start(device_);
  if (r != 0) return base::Unexpected{error("start it again", r)};
  if (auto done = tell_vlans(); !done) return done;
  find_wake_descriptors();
  return {};
}

EthdevDevice::~EthdevDevice() {
  departure_.reset();
  if (plugged_) {
    rte_eth_dev_stop(device_);
    rte_eth_dev_close(device_);
    rte_eal_hotplug_remove(bus(), name_.c_str());
  }
  for (const auto& queue : queues_) rte_mempool_free(queue.pool);
}

LinkState EthdevDevice::link() const {
  if (config_.bond != BondMode::none) return bond_link(device_, config_.bond);
  rte_eth_link link{};
  if (rte_eth_link_get_nowait(device_, &link) != 0 || link.link_status != RTE_ETH_LINK_UP) {
    return {};
  }
  return {true, link.link_speed == RTE_ETH_SPEED_NUM_UNKNOWN ? 0 : link.link_speed};
}

void EthdevDevice::forget_received() {
  std::array<rte_mbuf*, 64> found;
  for (const auto& queue : queues_) {
    for (unsigned left = ring_size; left != 0;) {
      const unsigned count =
          rte_eth_rx_burst(device_, queue.queue, found.data(),
                           static_cast<std::uint16_t>(std::min<std::size_t>(left, found.size())));
      if (count == 0) break;
      rte_pktmbuf_free_bulk(found.data(), count);
      left -= count;
    }
  }
}

std::optional<Uplink::Group> EthdevDevice::group() const {
  int number = 0;
  if (!config_.pci || rte_vfio_get_group_num(functions_folder, name_.c_str(), &number) <= 0 ||
      number < 0) {
    return std::nullopt;
  }
  const int fd = rte_vfio_get_group_fd(number);
  if (fd < 0) return std::nullopt;
  return Uplink::Group{fd, static_cast<unsigned>(number)};
}

void EthdevDevice::read_status(UplinkStatus& status) const {
  status.driver = driver_;
  rte_eth_dev_get_mtu(device_, &status.mtu);
  rte_ether_addr address{};
  rte_eth_macaddr_get(device_, &address);
  std::memcpy(status.mac.data(), address.addr_bytes, status.mac.size());
  status.offloads = {.checksum = common_.checksum_offload,
                     .tso = common_.tso_offload,
                     .vlan_insert = common_.vlan_insert,
                     .vlan_strip = common_.vlan_strip,
                     .vlan_filter = filters_,
                     .checksum_check = checks_};
}

std::vector<Uplink::DriverCounter> EthdevDevice::counters() const {
  const int count = rte_eth_xstats_get_names(device_, nullptr, 0);
  if (count <= 0) return {};
  const auto size = static_cast<std::size_t>(count);
  std::vector<rte_eth_xstat_name> names(size);
  std::vector<rte_eth_xstat> values(size);
  if (rte_eth_xstats_get_names(device_, names.data(), static_cast<unsigned>(count)) != count ||
      rte_eth_xstats_get(device_, values.data(), static_cast<unsigned>(count)) != count) {
    return {};
  }
  std::vector<Uplink::DriverCounter> out;
  for (const auto& value : values) {
    if (value.id < size) out.push_back({names[value.id].name, value.value});
  }
  return out;
}

}  // namespace millrace::vswitch
