// EthdevQueue: sends payloads where they lie.
//
// An mbuf with our copy of the headers goes first, so that the wire gets what the switch judged;
// mbufs follow that name the guest's bytes. Pieces that are too short to be worth a descriptor, and
// those that lie in memory of our own (what a tag pushed out of the headers), are copied behind the
// headers or between.
#include "switch/ethdev_lending.hpp"

#include <rte_ethdev.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace millrace::vswitch {

namespace {

// A descriptor of its own costs more than a copy of so many bytes.
constexpr std::uint32_t piece_min = 128;
// Devices of this family take no more by one descriptor.
constexpr std::uint32_t piece_max = 8192;
// Descriptors of the device's ring that loans of one queue may have.
constexpr std::uint32_t ring_share = 2;  // a half

}  // namespace

rte_mbuf* EthdevQueue::lend(const Packet& packet, std::uint32_t& receipt) noexcept {
  const std::uint32_t payload = packet.length - packet.header_size;
  const auto refuse = [](base::Counter& reason) {
    reason.add();
    return nullptr;
  };
  if (payload < config_.zero_copy_min) return refuse(figures_.copied_small);
  if (packet.completion == nullptr) return refuse(figures_.copied_not_lent);
  if (slow_) return refuse(figures_.copied_slow);
  if (loans_->pushed() - loans_->popped() + sending_count_ >= config_.tx_ring / ring_share) {
    return refuse(figures_.copied_busy);
  }
  // What we write later has to be in memory of our own.
  const Offload& offload = packet.offload;
  const std::uint32_t field = std::uint32_t{offload.checksum_start} + offload.checksum_offset + 2;
  if (offload.checksum_needed && field > packet.header_size) return refuse(figures_.copied_busy);
  if (!find_pieces(packet)) return refuse(figures_.copied_busy);
  if (lending_->lent_bytes < config_.zero_copy_min) return refuse(figures_.copied_unmapped);
  receipt = packet.completion->hold(packet.token);
  if (receipt == Completion::refused) return refuse(figures_.copied_not_lent);
  rte_mbuf* mbuf = chain_pieces(packet);
  if (mbuf != nullptr) return mbuf;
  packet.completion->release(std::exchange(receipt, Completion::refused));
  return refuse(figures_.copied_busy);
}

// False: there are too many.
bool EthdevQueue::find_pieces(const Packet& packet) noexcept {
  Lending& own = *lending_;
  own.piece_count = 0;
  own.lent_bytes = 0;
  for (const View& view : packet.payload()) {
    const auto iova = view.size >= piece_min ? regions_->find(view.data, view.size, own.hint)
                                             : std::optional<std::uint64_t>{};
    const std::uint32_t step = iova ? piece_max : std::uint32_t{RTE_MBUF_DEFAULT_DATAROOM};
    for (std::uint32_t at = 0; at < view.size; at += step) {
      if (own.piece_count == Lending::pieces_max) return false;
      const std::uint32_t size = std::min(step, view.size - at);
      own.pieces[own.piece_count++] = {view.data + at, size, iova ? *iova + at : 0,
                                       iova.has_value()};
      if (iova) own.lent_bytes += size;
    }
  }
  return true;
}

// Null: the pool is empty.
rte_mbuf* EthdevQueue::chain_pieces(const Packet& packet) noexcept {
  rte_mbuf* head = rte_pktmbuf_alloc(config_.pool);
  if (head == nullptr) return nullptr;
  std::memcpy(rte_pktmbuf_mtod(head, std::byte*), packet.header.data(), packet.header_size);
  head->data_len = packet.header_size;
  head->pkt_len = packet.header_size;
  rte_mbuf* last = head;
  const auto grow = [&] {
    last->next = rte_pktmbuf_alloc(config_.pool);
    if (last->next == nullptr) return false;
    last = last->next;
    ++head->nb_segs;
    return true;
  };
  for (std::size_t i = 0; i < lending_->piece_count; ++i) {
    const Lending::Piece& piece = lending_->pieces[i];
    if (piece.reached) {
      if (!grow()) break;
      // It is never written through this.
      rte_mbuf_ext_refcnt_update(&lending_->shared, 1);
      rte_pktmbuf_attach_extbuf(last, const_cast<std::byte*>(piece.data), piece.iova,
                                static_cast<std::uint16_t>(piece.size), &lending_->shared);
    } else {
      const bool fits = RTE_MBUF_DIRECT(last) && rte_pktmbuf_tailroom(last) >= piece.size;
      if (!fits && !grow()) break;
      std::memcpy(rte_pktmbuf_mtod_offset(last, std::byte*, last->data_len), piece.data,
                  piece.size);
    }
    last->data_len = static_cast<std::uint16_t>(last->data_len + piece.size);
    head->pkt_len += piece.size;
  }
  if (head->pkt_len == packet.length) return head;
  rte_pktmbuf_free(head);
  return nullptr;
}

// Of `count` packets the device took the first `sent`.
void EthdevQueue::note_sent(std::uint16_t sent, std::uint16_t count) noexcept {
  for (unsigned i = 0; i < count; ++i) {
    const auto [lender, receipt, bytes] = lending_->of_sending[i];
    if (i < sent) loans_->sent(lending_->segments[i]);
    if (receipt == Completion::refused) continue;
    if (i >= sent) {
      lender->release(receipt);
      continue;
    }
    if (!loans_->any()) loans_moved_at_ = reactor_.round_cycles();
    loans_->push(*lender, receipt);
    figures_.zero_copy_packets.add();
    figures_.zero_copy_bytes.add(bytes);
  }
}

bool EthdevQueue::reap() noexcept {
  const auto done = [this](std::uint32_t distance) {
    const auto offset = static_cast<std::uint16_t>(config_.tx_ring - 1 - distance);
    return rte_eth_tx_descriptor_status(config_.device, config_.queue, offset) ==
           RTE_ETH_TX_DESC_DONE;
  };
  if (!loans_->any()) {
    slow_ = slow_ && (figures_.sent.get() == 0 || !done(0));
    return false;
  }
  const unsigned over = loans_->reap(done);
  figures_.zero_copy_done.add(over);
  const std::uint64_t now = reactor_.round_cycles();
  if (over != 0) loans_moved_at_ = now;
  // Slow once, it has to be done with everything before it is lent more.
  slow_ = slow_ || now - loans_moved_at_ > slow_cycles_;
  return over != 0;
}

}  // namespace millrace::vswitch
