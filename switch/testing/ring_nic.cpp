#include "switch/testing/ring_nic.hpp"

#include <rte_ethdev.h>
#include <rte_mbuf.h>

#include <cstring>

namespace millrace::vswitch::testing {

namespace {

RingNic* the_nic = nullptr;

}  // namespace

// As the drivers of this family do it: no frame leaves the ring before there is an mbuf to take its
// place.
std::uint16_t ring_nic_burst(void*, rte_mbuf** out, std::uint16_t count) {
  RingNic& nic = *the_nic;
  const std::lock_guard lock{nic.mutex_};
  std::uint16_t done = 0;
  while (done < count && !nic.slots_.empty()) {
    auto& slot = nic.slots_[nic.next_ % nic.slots_.size()];
    if (!slot.done) break;
    rte_mbuf* const fresh = rte_mbuf_raw_alloc(nic.pool_->pool());
    if (fresh == nullptr) break;
    out[done++] = slot.mbuf;
    slot = {fresh, false};
    ++nic.next_;
  }
  return done;
}

RingNic::RingNic() {
  UplinkConfig config;
  config.name = config.device = "net_null_ring,no-rx=1";
  device_ = *EthdevDevice::open(config);
  pool_ = *DirectPool::make("ring_nic", ring + 64);
  the_nic = this;
  rte_eth_fp_ops[device_->queues().front().device].rx_pkt_burst = ring_nic_burst;
}

RingNic::~RingNic() {
  stop();
  device_.reset();
}

EthdevQueueConfig RingNic::queue() const {
  auto out = device_->queues().front();
  out.direct = pool_.get();
  out.direct_frame_max = frame_max;
  out.rx_ring = ring;
  return out;
}

void RingNic::start() {
  const std::lock_guard lock{mutex_};
  slots_.clear();
  for (unsigned i = 0; i < ring; ++i) slots_.push_back({rte_mbuf_raw_alloc(pool_->pool()), false});
  next_ = write_ = 0;
}

void RingNic::stop() {
  const std::lock_guard lock{mutex_};
  for (const Slot& slot : slots_) rte_pktmbuf_free_seg(slot.mbuf);
  slots_.clear();
}

void RingNic::map(std::vector<DmaRegion> regions) {
  const std::lock_guard lock{mutex_};
  regions_ = std::move(regions);
}

std::byte* RingNic::reach(const rte_mbuf& mbuf, std::size_t bytes) const {
  if (DirectPool::is_at_home(mbuf)) return rte_pktmbuf_mtod(&mbuf, std::byte*);
  const auto iova = rte_mbuf_data_iova_default(&mbuf);
  for (const DmaRegion& region : regions_) {
    const auto size = region.end - region.begin;
    if (iova < region.iova || iova + bytes > region.iova + size) continue;
    return reinterpret_cast<std::byte*>(region.begin + (iova - region.iova));
  }
  return nullptr;
}

std::byte* RingNic::frame(std::span<const std::uint8_t> bytes, bool verified,
                          std::optional<std::uint16_t> tag) {
  const std::lock_guard lock{mutex_};
  if (slots_.empty() || write_ - next_ == slots_.size()) return nullptr;
  Slot& slot = slots_[write_ % slots_.size()];
  slot.mbuf->data_off = RTE_PKTMBUF_HEADROOM;
  std::byte* const at = reach(*slot.mbuf, bytes.size());
  if (at == nullptr) {
    ++faults;
    return nullptr;
  }
  std::memcpy(at, bytes.data(), bytes.size());
  slot.mbuf->pkt_len = static_cast<std::uint32_t>(bytes.size());
  slot.mbuf->data_len = static_cast<std::uint16_t>(bytes.size());
  slot.mbuf->nb_segs = 1;
  slot.mbuf->next = nullptr;
  slot.mbuf->ol_flags = verified ? RTE_MBUF_F_RX_L4_CKSUM_GOOD : 0;
  if (tag) slot.mbuf->ol_flags |= RTE_MBUF_F_RX_VLAN | RTE_MBUF_F_RX_VLAN_STRIPPED;
  slot.mbuf->vlan_tci = tag.value_or(0xbad);
  slot.done = true;
  ++write_;
  return at;
}

unsigned RingNic::at_home() {
  const std::lock_guard lock{mutex_};
  unsigned count = 0;
  for (const Slot& slot : slots_) count += DirectPool::is_at_home(*slot.mbuf) ? 1 : 0;
  return count;
}

}  // namespace millrace::vswitch::testing
