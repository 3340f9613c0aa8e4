#include "switch/ethdev_queue.hpp"

#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "base/clock.hpp"
#include "switch/copy_header.hpp"
#include "switch/ethdev_bond.hpp"
#include "switch/ethdev_lending.hpp"
#include "switch/gso.hpp"
#include "switch/header.hpp"

namespace millrace::vswitch {

namespace {

constexpr std::uint16_t tso_size_min = 256, tso_size_max = 9'216;
// What Ethernet sends at least, without FCS. A device may stop its queue over a shorter one.
constexpr std::uint32_t frame_min = 60;
constexpr std::array<std::byte, frame_min> zeros{};
constexpr std::uint64_t empty_gap_ns = 5'000;  // a look at an empty queue may cost a system call
constexpr std::uint64_t nap_ns = 1'000'000, long_nap_ns = 10'000'000;
constexpr std::uint64_t loan_nap_ns = 50'000;
constexpr std::uint64_t slow_ns = 20'000'000;     // a burst at 10 Mbit/s
constexpr std::uint64_t calm_ns = 2'000'000'000;  // no frame for so long: longer naps

// Fetches the header and names the rest. False: a frame that no packet can describe.
bool describe(const rte_mbuf& mbuf, Packet& packet) noexcept {
  if (mbuf.pkt_len > Packet::length_max) return false;
  packet.length = mbuf.pkt_len;
  packet.header_size = 0;
  packet.view_count = 0;
  packet.offload = {};
  packet.offload.checksum_verified =
      (mbuf.ol_flags & RTE_MBUF_F_RX_L4_CKSUM_MASK) == RTE_MBUF_F_RX_L4_CKSUM_GOOD;
  packet.flow_hash = 0;
  packet.completion = nullptr;
  packet.tag_apart = false;
  if (mbuf.next == nullptr) [[likely]] {
    const auto* data = rte_pktmbuf_mtod(&mbuf, const std::byte*);
    const std::uint32_t fetch = std::min<std::uint32_t>(mbuf.data_len, Packet::header_max);
    copy_header(packet.header.data(), data, fetch);
    packet.header_size = static_cast<std::uint16_t>(fetch);
    if (fetch == mbuf.data_len) return true;
    packet.views[packet.view_count++] = {data + fetch, mbuf.data_len - fetch};
    return true;
  }
  for (const rte_mbuf* segment = &mbuf; segment != nullptr; segment = segment->next) {
    const auto* data = rte_pktmbuf_mtod(segment, const std::byte*);
    std::size_t size = segment->data_len;
    const std::size_t fetch = std::min(size, Packet::header_max - packet.header_size);
    std::memcpy(packet.header.data() + packet.header_size, data, fetch);
    packet.header_size = static_cast<std::uint16_t>(packet.header_size + fetch);
    size -= fetch;
    if (size == 0) continue;
    if (packet.view_count == Packet::views_max) return false;
    packet.views[packet.view_count++] = {data + fetch, static_cast<std::uint32_t>(size)};
  }
  return true;
}

// Appends bytes to a chain of mbufs, growing it as needed.
class Appender {
 public:
  Appender(rte_mbuf& head, rte_mempool& pool) noexcept : head_{head}, last_{&head}, pool_{pool} {}

  [[nodiscard]] bool add(const std::byte* data, std::size_t size) noexcept {
    while (size > 0) {
      if (rte_pktmbuf_tailroom(last_) == 0 && !grow()) return false;
      const std::size_t part = std::min<std::size_t>(size, rte_pktmbuf_tailroom(last_));
      std::memcpy(rte_pktmbuf_mtod_offset(last_, std::byte*, last_->data_len), data, part);
      last_->data_len = static_cast<std::uint16_t>(last_->data_len + part);
      head_.pkt_len += static_cast<std::uint32_t>(part);
      data += part;
      size -= part;
    }
    return true;
  }

 private:
  [[nodiscard]] bool grow() noexcept {
    rte_mbuf* next = rte_pktmbuf_alloc(&pool_);
    if (next == nullptr) return false;
    last_->next = next;
    last_ = next;
    ++head_.nb_segs;
    return true;
  }

  rte_mbuf& head_;
  rte_mbuf* last_;
  rte_mempool& pool_;
};

}  // namespace

EthdevQueue::EthdevQueue(const EthdevQueueConfig& config, base::Reactor& reactor, Bridge& bridge,
                         PortCounters& counters, PortId port)
    : config_{config},
      reactor_{reactor},
      bridge_{bridge},
      counters_{counters},
      port_{port},
      empty_gap_cycles_{base::ns_to_cycles(empty_gap_ns)},
      calm_cycles_{base::ns_to_cycles(calm_ns)},
      slow_cycles_{base::ns_to_cycles(slow_ns)},
      tend_cycles_{base::ns_to_cycles(bond_tend_ns)},
      segment_{std::make_unique<Packet>()} {
  if (config_.direct != nullptr) {
    direct_ = std::make_unique<DirectReceive>(*config_.direct, config_.direct_frame_max, regions_);
    regions_ = std::make_shared<const DmaRegions>();
  }
  if (config_.gro) gro_ = std::make_unique<Gro>();
  if (config_.zero_copy_min == 0) return;
  loans_ = std::make_unique<WireLoans>(config_.tx_ring);
  lending_ = std::make_unique<Lending>();
  regions_ = std::make_shared<const DmaRegions>();
}

EthdevQueue::~EthdevQueue() = default;

void EthdevQueue::start() noexcept {
  if (std::exchange(polled_, true)) return;
  forget_device();  // from now on poll() looks
  // Gives this thread a cache in every mempool; without one it works, a little slower.
  if (rte_lcore_id() == LCORE_ID_ANY) static_cast<void>(rte_thread_register());
  found_at_ = reactor_.round_cycles();
  // An interrupt's eventfd is drained by nobody who must: its edges are what counts.
  if (config_.wake_fd >= 0) {
    static_cast<void>(config_.interrupts ? reactor_.watch(config_.wake_fd)
                                         : reactor_.watch_level(config_.wake_fd));
  }
  reactor_.add(*this);
}

void EthdevQueue::stop() noexcept {
  if (!std::exchange(polled_, false)) return;
  reactor_.remove(*this);
  if (config_.wake_fd >= 0) reactor_.unwatch(config_.wake_fd);
  if (loans_ != nullptr && loans_->any()) lending_->leftovers.begin(*this);
}

void EthdevQueue::forget_device() noexcept {
  if (lending_ != nullptr) lending_->leftovers.end();
}

bool EthdevQueue::poll() noexcept {
  const bool reaped = loans_ != nullptr && reap();
  if (reactor_.round_cycles() - empty_at_ < empty_gap_cycles_) return reaped;
  return receive() != 0 || reaped;
}

unsigned EthdevQueue::receive() noexcept {
  if (config_.bond != BondMode::none && reactor_.round_cycles() - tended_at_ >= tend_cycles_) {
    tended_at_ = reactor_.round_cycles();
    bond_tend(config_.device, config_.bond, config_.queue);
  }
  if (direct_ != nullptr) direct_->begin(reactor_.round_cycles());
  Mbufs mbufs;
  const unsigned count = rte_eth_rx_burst(config_.device, config_.queue, mbufs.data(), burst_max);
  (count == 0 ? empty_at_ : found_at_) = reactor_.round_cycles();
  if (count == 0) return 0;
  figures_.received.add(count);
  std::size_t first = 0;
  if (direct_ != nullptr) {
    if (bridge_.mirrors_direct(port_)) mirror_direct({mbufs.data(), count});
    first = direct_->accept({mbufs.data(), count}, counters_);
    direct_->note_copied(count - first);
  }
  // Some drivers leave a frame where the device has put it: in memory.
  for (auto i = first; i < count; ++i) __builtin_prefetch(rte_pktmbuf_mtod(mbufs[i], void*));
  forward(std::span{mbufs}.subspan(first, count - first));
  rte_pktmbuf_free_bulk(mbufs.data(), count);
  return count;
}

void EthdevQueue::mirror_direct(std::span<rte_mbuf* const> mbufs) noexcept {
  auto& packets = bridge_.burst();
  std::size_t filled = 0;
  for (const rte_mbuf* mbuf : mbufs.first(direct_->acceptable(mbufs))) {
    // In several pieces it is too long, and dropped.
    if (mbuf->nb_segs != 1 || !describe(*mbuf, packets[filled])) continue;
    take_tag(*mbuf, packets[filled++]);
  }
  bridge_.mirror_direct(port_, std::span{packets}.first(filled));
}

void EthdevQueue::forward(std::span<rte_mbuf* const> mbufs) noexcept {
  auto& packets = bridge_.burst();
  std::array<Gro::Place, burst_max> places;
  std::size_t filled = 0, untagged = 0;
  for (rte_mbuf* mbuf : mbufs) {
    if (!describe(*mbuf, packets[filled])) {
      counters_.drop_malformed.add();
      continue;
    }
    take_tag(*mbuf, packets[filled]);
    untagged += packets[filled].tag_apart ? 1 : 0;
    places[filled++] = mbuf->next == nullptr ? rte_pktmbuf_mtod(mbuf, const std::byte*) : nullptr;
  }
  if (untagged != 0) figures_.untagged.add(untagged);
  auto all = std::span{packets}.first(filled);
  if (gro_ != nullptr && filled > 1) {
    const auto left = gro_->join(all, std::span{places}.first(filled));
    figures_.joined.add(filled - left);
    all = all.first(left);
  }
  config_.vlan_strip ? bridge_.forward_apart(port_, all) : bridge_.forward(port_, all);
}

void EthdevQueue::take_tag(const rte_mbuf& mbuf, Packet& packet) noexcept {
  if (!config_.vlan_strip || (mbuf.ol_flags & RTE_MBUF_F_RX_VLAN_STRIPPED) == 0) return;
  const std::uint16_t vlan = mbuf.vlan_tci & 0xfff;
  if (config_.vlans != nullptr && vlan != 0 && !config_.vlans->test(vlan)) return;
  packet.tag_apart = true;
  packet.vlan = vlan;
  packet.priority = static_cast<std::uint8_t>(mbuf.vlan_tci >> 12);
}

// What came until now is the guest's; what comes from now on until the device is stopped is lost,
// as much as its ring holds.
bool EthdevQueue::halt() noexcept {
  direct_->end();
  if (polled_) {
    for (unsigned left = config_.rx_ring; left != 0 && receive() != 0; --left) {
    }
  }
  stop();
  if (direct_->out() == 0) return false;
  halted_ = true;
  forget_device();
  return true;
}

void EthdevQueue::resume(int wake_fd) noexcept {
  config_.wake_fd = wake_fd;
  halted_ = false;
  start();
}

// With a descriptor a frame that waits wakes the reactor; without, one more look and a nap. A frame
// that came before the interrupt was on is found by the look after it.
bool EthdevQueue::arm() noexcept {
  if (loans_ != nullptr && reap()) return true;
  if (config_.interrupts && config_.wake_fd >= 0) {
    static_cast<void>(rte_eth_dev_rx_intr_enable(config_.device, config_.queue));
    return receive() != 0;
  }
  return config_.wake_fd < 0 && receive() != 0;
}

void EthdevQueue::disarm() noexcept {
  if (!config_.interrupts || config_.wake_fd < 0) return;
  static_cast<void>(rte_eth_dev_rx_intr_disable(config_.device, config_.queue));
  std::uint64_t count = 0;  // the descriptor is the driver's own, and does not block
  if (::read(config_.wake_fd, &count, sizeof(count)) == sizeof(count))
    figures_.interrupts.add(count);
}

// Some drivers have the calls for interrupts and never get one: until one was seen, naps.
std::uint64_t EthdevQueue::sleep_ns_max() const noexcept {
  if (loans_ != nullptr && loans_->any()) return loan_nap_ns;      // nothing tells that one is over
  if (direct_ != nullptr && direct_->waits()) return loan_nap_ns;  // nor that a buffer came
  if (config_.wake_fd >= 0 && (!config_.interrupts || figures_.interrupts.get() != 0)) {
    return sleep_for_ever;
  }
  return reactor_.round_cycles() - found_at_ > calm_cycles_ ? long_nap_ns : nap_ns;
}

void EthdevQueue::deliver(std::span<const Packet* const> packets) noexcept {
  if (halted_) [[unlikely]]
    return counters_.drop_no_queue.add(packets.size());
  loans_ == nullptr ? deliver_all<false, false>(packets) : deliver_all<true, false>(packets);
}

void EthdevQueue::deliver_apart(std::span<const Packet* const> packets) noexcept {
  if (halted_) [[unlikely]]
    return counters_.drop_no_queue.add(packets.size());
  loans_ == nullptr ? deliver_all<false, true>(packets) : deliver_all<true, true>(packets);
}

template <bool lends, bool apart>
void EthdevQueue::deliver_all(std::span<const Packet* const> packets) noexcept {
  for (const Packet* packet : packets) {
    const Offload& offload = packet->offload;
    if (offload.gso == Gso::none) {
      send<lends, apart>(*packet);
    } else if (takes_whole(offload)) {
      send<lends, apart>(*packet);
    } else {
      counters_.segmented.add();
      send_segments<lends, apart>(*packet);
    }
  }
  flush();
}

// A device may stop its queue over a segment size that it does not like: guests choose that size.
bool EthdevQueue::takes_whole(const Offload& offload) const noexcept {
  return config_.tso_offload && offload.gso != Gso::udp_l4 && offload.gso_size >= tso_size_min &&
         offload.gso_size <= tso_size_max;
}

template <bool lends, bool apart>
void EthdevQueue::send_segments(const Packet& whole) noexcept {
  Segmenter segmenter{whole};
  while (segmenter.next(*segment_)) send<lends, apart>(*segment_);
}

template <bool lends, bool apart>
void EthdevQueue::send(const Packet& packet) noexcept {
  const Offload& offload = packet.offload;
  if (config_.mac && std::memcmp(&packet.header[6], config_.mac->data(), 6) != 0) {
    return counters_.drop_source.add();
  }
  const std::uint32_t frame = offload.gso == Gso::none
                                  ? packet.length
                                  : std::uint32_t{offload.header_length} + offload.gso_size;
  const std::uint32_t tag = apart ? ethernet::tag_size : 0;
  if (frame + tag > config_.frame_max) return counters_.drop_too_long.add();
  [[maybe_unused]] std::uint32_t receipt = Completion::refused;
  rte_mbuf* mbuf = nullptr;
  if constexpr (lends) mbuf = lend(packet, receipt);
  if (mbuf == nullptr) mbuf = copy(packet);
  if (mbuf == nullptr) return counters_.drop_ring_full.add();
  if (offload.checksum_needed && !request_offload(packet, *mbuf)) {
    const base::be16 checksum{complete_checksum(packet)};
    std::memcpy(
        rte_pktmbuf_mtod_offset(mbuf, std::byte*, offload.checksum_start + offload.checksum_offset),
        &checksum, sizeof(checksum));
    counters_.checksummed.add();
  }
  if constexpr (apart) {
    mbuf->ol_flags |= RTE_MBUF_F_TX_VLAN;
    mbuf->vlan_tci = static_cast<std::uint16_t>(packet.priority << 12 | packet.vlan);
    apart_ |= 1u << sending_count_;
    prepare_ = true;
  }
  if constexpr (lends) {
    lending_->of_sending[sending_count_] = {packet.completion, receipt, lending_->lent_bytes};
  }
  sending_[sending_count_++] = mbuf;
  if (sending_count_ == sending_.size()) flush();
}

// The usual frame fits into one buffer. False: nothing was written.
bool EthdevQueue::copy_at_once(const Packet& packet, rte_mbuf& mbuf) const noexcept {
  if (std::max(packet.length, frame_min) > rte_pktmbuf_tailroom(&mbuf)) return false;
  auto* const begin = rte_pktmbuf_mtod(&mbuf, std::byte*);
  auto* out = begin;
  copy_header(out, packet.header.data(), packet.header_size);
  out += packet.header_size;
  for (const View& view : packet.payload()) {
    const auto room = static_cast<std::uint32_t>(begin + packet.length - out);
    const std::uint32_t part = std::min(view.size, room);
    std::memcpy(out, view.data, part);
    out += part;
  }
  const auto written = static_cast<std::uint32_t>(out - begin);
  if (config_.pads && written < frame_min) std::memset(out, 0, frame_min - written);
  mbuf.pkt_len = config_.pads ? std::max(written, frame_min) : written;
  mbuf.data_len = static_cast<std::uint16_t>(mbuf.pkt_len);
  return true;
}

rte_mbuf* EthdevQueue::copy(const Packet& packet) noexcept {
  rte_mbuf* mbuf = rte_pktmbuf_alloc(config_.pool);
  if (mbuf == nullptr) return nullptr;
  if (copy_at_once(packet, *mbuf)) [[likely]]
    return mbuf;
  Appender appender{*mbuf, *config_.pool};
  bool whole = appender.add(packet.header.data(), packet.header_size);
  for (const View& view : packet.payload()) whole = whole && appender.add(view.data, view.size);
  if (config_.pads && mbuf->pkt_len < frame_min) {
    whole = whole && appender.add(zeros.data(), frame_min - mbuf->pkt_len);
  }
  if (whole) return mbuf;
  rte_pktmbuf_free(mbuf);
  return nullptr;
}

// Leaves checksum and segmentation to the driver; false where it cannot do what the packet asks.
bool EthdevQueue::request_offload(const Packet& packet, rte_mbuf& mbuf) noexcept {
  if (!config_.checksum_offload) return false;
  const Layers layers = parse_layers(packet);
  if (!layers.valid || packet.offload.checksum_start != layers.l2 + layers.l3) return false;
  const bool tcp = layers.protocol == ip::tcp;
  if (packet.offload.checksum_offset != (tcp ? 16 : 6)) return false;
  mbuf.l2_len = layers.l2 & 0x7fu;
  mbuf.l3_len = layers.l3 & 0x1ffu;
  mbuf.ol_flags |= layers.ipv6 ? RTE_MBUF_F_TX_IPV6 : RTE_MBUF_F_TX_IPV4;
  mbuf.ol_flags |= tcp ? RTE_MBUF_F_TX_TCP_CKSUM : RTE_MBUF_F_TX_UDP_CKSUM;
  if (packet.offload.gso != Gso::none) {
    mbuf.l4_len = layers.l4 & 0xffu;
    mbuf.tso_segsz = packet.offload.gso_size;
    mbuf.ol_flags |= RTE_MBUF_F_TX_TCP_SEG;
    if (!layers.ipv6) mbuf.ol_flags |= RTE_MBUF_F_TX_IP_CKSUM;
  }
  prepare_ = true;
  return true;
}

// What the driver does not take now is dropped: nothing is kept past deliver().
void EthdevQueue::flush() noexcept {
  auto count = static_cast<std::uint16_t>(std::exchange(sending_count_, 0));
  if (count == 0) return;
  std::uint64_t bytes = 0;
  std::array<std::uint32_t, burst_max> lengths;
  for (unsigned i = 0; i < count; ++i) lengths[i] = sending_[i]->pkt_len;
  if (lending_ != nullptr) {
    for (unsigned i = 0; i < count; ++i) lending_->segments[i] = sending_[i]->nb_segs;
  }
  std::uint16_t ready = count;
  if (std::exchange(prepare_, false)) {
    ready = rte_eth_tx_prepare(config_.device, config_.queue, sending_.data(), count);
  }
  const std::uint16_t sent =
      rte_eth_tx_burst(config_.device, config_.queue, sending_.data(), ready);
  for (unsigned i = 0; i < sent; ++i) bytes += lengths[i];
  if (lending_ != nullptr) note_sent(sent, count);
  if (apart_ != 0) note_tags(sent);
  figures_.sent.add(sent);
  counters_.rx_packets.add(sent);
  counters_.rx_bytes.add(bytes);
  if (sent == count) return;
  counters_.drop_ring_full.add(static_cast<unsigned>(count - sent));
  rte_pktmbuf_free_bulk(&sending_[sent], static_cast<unsigned>(count - sent));
}

// Of the first `sent` packets of sending_; a tag is a part of its frame, whoever puts it on.
void EthdevQueue::note_tags(std::uint16_t sent) noexcept {
  const std::uint64_t took = (std::uint64_t{1} << sent) - 1;
  const auto count = static_cast<unsigned>(std::popcount(std::exchange(apart_, 0) & took));
  figures_.tagged.add(count);
  counters_.rx_bytes.add(count * ethernet::tag_size);
}

}  // namespace millrace::vswitch
