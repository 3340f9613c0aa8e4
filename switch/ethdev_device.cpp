#include "switch/ethdev_device.hpp"

#include <fcntl.h>
#include <rte_dev.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_mempool.h>
#include <signal.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/check.hpp"

namespace millrace::vswitch {

namespace {

constexpr unsigned mbufs = 8191, mbuf_cache = 256;  // 2 MiB a thousand
constexpr std::uint16_t ring_size = 1024, jumbo_mtu = 9216;
constexpr std::uint32_t l2_overhead = 18;  // Ethernet header and one tag

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

}  // namespace

base::Error EthdevDevice::error(const std::string& doing, int result) const {
  const int reason = result < 0 ? -result : rte_errno;
  return base::Error{"uplink device " + name_ + ": cannot " + doing + ": " + std::strerror(reason)};
}

base::Result<std::unique_ptr<EthdevDevice>> EthdevDevice::open(const std::string& device) {
  const auto comma = device.find(',');
  const auto name = device.substr(0, comma);
  const auto arguments = comma == std::string::npos ? std::string{} : device.substr(comma + 1);
  if (!name.starts_with("net_")) {
    return base::fail("uplink device " + name +
                      ": only virtual devices are known here (net_tap0, net_af_packet0, ...)");
  }
  std::uint16_t taken = 0;
  if (rte_eth_dev_get_port_by_name(name.c_str(), &taken) == 0) {
    return base::fail("uplink device " + name + " is in use already");
  }
  auto out = std::unique_ptr<EthdevDevice>(new EthdevDevice{name});
  const SignalsTaken signals;
  const int result = rte_eal_hotplug_add("vdev", name.c_str(), arguments.c_str());
  if (result != 0) return base::Unexpected{out->error("plug it in", result)};
  out->plugged_ = true;
  const int found = rte_eth_dev_get_port_by_name(name.c_str(), &out->queue_.device);
  if (found != 0) return base::Unexpected{out->error("find its port", found)};
  if (const auto done = out->configure(); !done) return base::Unexpected{done.error()};
  if (const auto done = out->start(); !done) return base::Unexpected{done.error()};
  return out;
}

base::Result<> EthdevDevice::configure() {
  rte_eth_dev_info info{};
  if (const int r = rte_eth_dev_info_get(queue_.device, &info); r != 0) {
    return base::Unexpected{error("read its abilities", r)};
  }
  driver_ = info.driver_name;
  rte_eth_conf config{};
  std::uint16_t mtu = 0;
  rte_eth_dev_get_mtu(queue_.device, &mtu);
  if (!belongs_to_host(driver_)) {
    const std::uint32_t limit =
        info.max_rx_pktlen > l2_overhead ? info.max_rx_pktlen - l2_overhead : 0;
    mtu = static_cast<std::uint16_t>(
        std::min({std::uint32_t{jumbo_mtu}, std::uint32_t{info.max_mtu}, limit}));
  }
  config.rxmode.mtu = mtu;
  config.rxmode.offloads = info.rx_offload_capa & RTE_ETH_RX_OFFLOAD_SCATTER;
  config.txmode.offloads = info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
  if (!offloads_in_software(driver_)) {
    constexpr std::uint64_t checksums =
        RTE_ETH_TX_OFFLOAD_IPV4_CKSUM | RTE_ETH_TX_OFFLOAD_TCP_CKSUM | RTE_ETH_TX_OFFLOAD_UDP_CKSUM;
    queue_.checksum_offload = (info.tx_offload_capa & checksums) == checksums;
    queue_.tso_offload =
        queue_.checksum_offload && (info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_TCP_TSO) != 0;
    if (queue_.checksum_offload) config.txmode.offloads |= checksums;
    if (queue_.tso_offload) config.txmode.offloads |= RTE_ETH_TX_OFFLOAD_TCP_TSO;
    config.rxmode.offloads |= info.rx_offload_capa & RTE_ETH_RX_OFFLOAD_CHECKSUM;
  }
  queue_.frame_max = mtu + l2_overhead;
  // With receive interrupts where the driver has them.
  config.intr_conf.rxq = 1;
  int r = rte_eth_dev_configure(queue_.device, 1, 1, &config);
  if (r != 0) {
    config.intr_conf.rxq = 0;
    r = rte_eth_dev_configure(queue_.device, 1, 1, &config);
  }
  if (r != 0) return base::Unexpected{error("configure it", r)};

  const auto pool_name = "uplink_" + std::to_string(queue_.device);
  queue_.pool = rte_pktmbuf_pool_create(pool_name.c_str(), mbufs, mbuf_cache, 0,
                                        RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
  if (queue_.pool == nullptr) return base::Unexpected{error("make its packet pool", 0)};
  std::uint16_t rx_size = ring_size, tx_size = ring_size;
  rte_eth_dev_adjust_nb_rx_tx_desc(queue_.device, &rx_size, &tx_size);
  auto rx = info.default_rxconf;
  rx.offloads = config.rxmode.offloads;
  r = rte_eth_rx_queue_setup(queue_.device, 0, rx_size, 0, &rx, queue_.pool);
  if (r != 0) return base::Unexpected{error("set up its receive queue", r)};
  auto tx = info.default_txconf;
  tx.offloads = config.txmode.offloads;
  r = rte_eth_tx_queue_setup(queue_.device, 0, tx_size, 0, &tx);
  if (r != 0) return base::Unexpected{error("set up its transmit queue", r)};
  return {};
}

base::Result<> EthdevDevice::start() {
  const int r = rte_eth_dev_start(queue_.device);
  if (r != 0) return base::Unexpected{error("start it", r)};
  started_ = true;
  // A bridge port hears everybody. A device that cannot (net_null) hears everything anyway.
  rte_eth_promiscuous_enable(queue_.device);
  rte_eth_allmulticast_enable(queue_.device);
  // A kernel-side descriptor that is readable while frames wait: no interrupt has to be enabled.
  if (driver_ == "net_tap") queue_.wake_fd = rte_eth_dev_rx_intr_ctl_q_get_fd(queue_.device, 0);
  if (queue_.wake_fd < 0) {
    queue_.wake_fd = -1;
    return {};
  }
  const int flags = ::fcntl(queue_.wake_fd, F_GETFL);
  if (flags >= 0 && (flags & O_ASYNC) != 0) ::fcntl(queue_.wake_fd, F_SETFL, flags & ~O_ASYNC);
  return {};
}

EthdevDevice::~EthdevDevice() {
  if (started_) rte_eth_dev_stop(queue_.device);
  if (plugged_) {
    rte_eth_dev_close(queue_.device);
    rte_eal_hotplug_remove("vdev", name_.c_str());
  }
  rte_mempool_free(queue_.pool);
}

void EthdevDevice::read_status(UplinkStatus& status) const {
  status.driver = driver_;
  rte_eth_link link{};
  if (rte_eth_link_get_nowait(queue_.device, &link) == 0) {
    status.link_up = link.link_status == RTE_ETH_LINK_UP;
    status.speed_mbps = link.link_speed == RTE_ETH_SPEED_NUM_UNKNOWN ? 0 : link.link_speed;
  }
  rte_eth_dev_get_mtu(queue_.device, &status.mtu);
  rte_ether_addr address{};
  rte_eth_macaddr_get(queue_.device, &address);
  std::memcpy(status.mac.data(), address.addr_bytes, status.mac.size());
}

std::vector<Uplink::DriverCounter> EthdevDevice::counters() const {
  const int count = rte_eth_xstats_get_names(queue_.device, nullptr, 0);
  if (count <= 0) return {};
  const auto size = static_cast<std::size_t>(count);
  std::vector<rte_eth_xstat_name> names(size);
  std::vector<rte_eth_xstat> values(size);
  if (rte_eth_xstats_get_names(queue_.device, names.data(), static_cast<unsigned>(count)) !=
          count ||
      rte_eth_xstats_get(queue_.device, values.data(), static_cast<unsigned>(count)) != count) {
    return {};
  }
  std::vector<Uplink::DriverCounter> out;
  for (const auto& value : values) {
    if (value.id < size) out.push_back({names[value.id].name, value.value});
  }
  return out;
}

}  // namespace millrace::vswitch
