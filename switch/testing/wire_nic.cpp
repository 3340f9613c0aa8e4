#include "switch/testing/wire_nic.hpp"

#include <rte_ethdev.h>
#include <rte_mbuf.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.hpp"

namespace millrace::vswitch::testing {

namespace {

WireNic* the_wire_nic = nullptr;

int done_at_once(void*, std::uint16_t) {
  return RTE_ETH_TX_DESC_DONE;
}

}  // namespace

std::uint16_t wire_nic_receive(void*, rte_mbuf** out, std::uint16_t count) {
  WireNic& nic = *the_wire_nic;
  const std::lock_guard lock{nic.mutex_};
  const std::size_t first = nic.handed_;
  const std::size_t left = std::min<std::size_t>(count, nic.coming_.size() - first);
  std::copy_n(nic.coming_.begin() + static_cast<std::ptrdiff_t>(first), left, out);
  nic.handed_ = first + left;
  return static_cast<std::uint16_t>(left);
}

std::uint16_t wire_nic_prepare(void*, rte_mbuf** mbufs, std::uint16_t count) {
  WireNic& nic = *the_wire_nic;
  std::copy_n(mbufs, count, nic.prepared_.begin());
  nic.prepared_count_ = count;
  return count;
}

std::uint16_t wire_nic_send(void*, rte_mbuf** mbufs, std::uint16_t count) {
  WireNic& nic = *the_wire_nic;
  for (unsigned i = 0; i < count; ++i) {
    nic.keep(*mbufs[i]);
    rte_pktmbuf_free(mbufs[i]);
  }
  nic.prepared_count_ = 0;
  return count;
}

WireNic::WireNic() : sent_(256) {
  UplinkConfig config;
  config.name = config.device = "net_null_wire,no-rx=1";
  device_ = *EthdevDevice::open(config);
  the_wire_nic = this;
  auto& calls = rte_eth_fp_ops[device_->queues().front().device];
  calls.rx_pkt_burst = wire_nic_receive;
  calls.tx_pkt_prepare = wire_nic_prepare;
  calls.tx_pkt_burst = wire_nic_send;
  calls.tx_descriptor_status = done_at_once;
}

WireNic::~WireNic() {
  while (handed_ < coming_.size()) rte_pktmbuf_free(coming_[handed_++]);
  device_.reset();
}

EthdevQueueConfig WireNic::queue(const Abilities& abilities) const {
  auto out = device_->queues().front();
  out.vlan_insert = abilities.insert;
  out.vlan_strip = abilities.strip;
  out.checksum_offload = abilities.checksum;
  out.tso_offload = abilities.tso;
  out.zero_copy_min = abilities.zero_copy_min;
  out.tx_ring = 1024;
  out.pads = true;
  return out;
}

std::vector<WireNic::Sent> WireNic::sent() {
  return {sent_.begin(),
          sent_.begin() + static_cast<std::ptrdiff_t>(std::exchange(sent_count_, 0))};
}

void WireNic::keep(const rte_mbuf& mbuf) noexcept {
  CHECK(sent_count_ < sent_.size());
  Sent& to = sent_[sent_count_++];
  to.size = 0;
  const auto append = [&to](const void* data, std::size_t size) {
    CHECK(to.size + size <= to.bytes.size());
    std::memcpy(to.bytes.data() + to.size, data, size);
    to.size += size;
  };
  const auto* first = rte_pktmbuf_mtod(&mbuf, const std::uint8_t*);
  append(first, 12);
  to.tagged = (mbuf.ol_flags & RTE_MBUF_F_TX_VLAN) != 0;
  if (to.tagged) {
    const std::array<std::uint8_t, 4> tag{0x81, 0, static_cast<std::uint8_t>(mbuf.vlan_tci >> 8),
                                          static_cast<std::uint8_t>(mbuf.vlan_tci)};
    append(tag.data(), tag.size());
  }
  append(first + 12, mbuf.data_len - 12u);
  for (const rte_mbuf* more = mbuf.next; more != nullptr; more = more->next) {
    append(rte_pktmbuf_mtod(more, const std::uint8_t*), more->data_len);
  }
  to.segments = mbuf.nb_segs;
  to.l2 = mbuf.l2_len, to.l3 = mbuf.l3_len, to.l4 = mbuf.l4_len, to.segment_size = mbuf.tso_segsz;
  to.tso = (mbuf.ol_flags & RTE_MBUF_F_TX_TCP_SEG) != 0;
  to.checksum = (mbuf.ol_flags & RTE_MBUF_F_TX_L4_MASK) != 0;
  to.prepared =
      std::find(prepared_.begin(), prepared_.begin() + static_cast<std::ptrdiff_t>(prepared_count_),
                &mbuf) != prepared_.begin() + static_cast<std::ptrdiff_t>(prepared_count_);
}

void WireNic::receive(const std::vector<Bytes>& frames, bool strips, bool verified) {
  CHECK(received_all() && frames.size() <= burst_max);
  const std::lock_guard lock{mutex_};
  std::vector<rte_mbuf*> coming;
  for (const Bytes& frame : frames) {
    rte_mbuf* mbuf = rte_pktmbuf_alloc(device_->queues().front().pool);
    Bytes left = frame;
    if (strips && frame.size() >= 18 && get16(frame, 12) == 0x8100) {
      left.erase(left.begin() + 12, left.begin() + 16);
      mbuf->vlan_tci = static_cast<std::uint16_t>(get16(frame, 14));
      mbuf->ol_flags |= RTE_MBUF_F_RX_VLAN | RTE_MBUF_F_RX_VLAN_STRIPPED;
    }
    if (verified) mbuf->ol_flags |= RTE_MBUF_F_RX_L4_CKSUM_GOOD;
    std::memcpy(rte_pktmbuf_append(mbuf, static_cast<std::uint16_t>(left.size())), left.data(),
                left.size());
    coming.push_back(mbuf);
  }
  coming_ = std::move(coming);
  handed_ = 0;
}

bool WireNic::received_all() {
  const std::lock_guard lock{mutex_};
  return handed_ == coming_.size();
}

}  // namespace millrace::vswitch::testing
