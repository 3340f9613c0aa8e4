#include "switch/direct_receive.hpp"

#include <rte_mbuf.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.hpp"
#include "base/clock.hpp"
#include "switch/header.hpp"

namespace millrace::vswitch {

namespace {

constexpr std::uint64_t pause_ns = 1'000'000;  // between tries to begin

}  // namespace

DirectReceive::DirectReceive(DirectPool& pool, std::uint32_t frame_max,
                             const std::shared_ptr<const DmaRegions>& regions)
    : pool_{pool},
      frame_max_{frame_max},
      pause_cycles_{base::ns_to_cycles(pause_ns)},
      regions_{regions},
      reason_{&figures_.copied_off} {}

void DirectReceive::tie(DirectSink& sink, std::uint16_t vlan) noexcept {
  CHECK(sink_ == nullptr && sink.taken() == 0);
  sink_ = &sink;
  vlan_ = vlan;
  may_place_ = true;
  next_try_ = 0;
  pool_.use(this);
}

void DirectReceive::untie() noexcept {
  CHECK(out() == 0);
  end();
  waits_ = false;
  figures_.placing.set(0);
  sink_ = nullptr;
  pool_.use(nullptr);
}

void DirectReceive::give_back() noexcept {
  if (sink_ != nullptr) sink_->give_back();
  hint_ = {};
}

void DirectReceive::begin(std::uint64_t now) noexcept {
  waits_ = false;  // unless the burst that follows finds it so
  if (placing_ || !may_place_ || now < next_try_) return;
  next_try_ = now + pause_cycles_;
  const std::uint64_t before = placed_;
  for (std::size_t i = sink_->taken(); i < pool_.out(); ++i) {
    std::byte* at = nullptr;
    std::uint64_t iova = 0;
    const auto taken = take(at, iova);
    if (taken == DirectSink::Taken::place) continue;
    if (taken == DirectSink::Taken::empty) reason_ = &figures_.copied_few;
    while (placed_ != before) unplace();
    return;
  }
  placing_ = true;
  figures_.placing.set(1);
}

// Notes why there is none, unless it is that the guest offers none now.
DirectSink::Taken DirectReceive::take(std::byte*& at, std::uint64_t& iova) noexcept {
  using Taken = DirectSink::Taken;
  const Taken taken = sink_->take(frame_max_, at);
  if (taken == Taken::small) reason_ = &figures_.copied_small;
  if (taken == Taken::off) reason_ = &figures_.copied_off;
  if (taken != Taken::place) return taken;
  const auto found = regions_->find(at, frame_max_, hint_);
  if (!found) {
    sink_->untake();
    reason_ = &figures_.copied_unmapped;
    return Taken::off;
  }
  iova = *found;
  ++placed_;
  return Taken::place;
}

bool DirectReceive::place(rte_mbuf& mbuf) noexcept {
  DirectPool::put_at_home(mbuf);
  if (!placing_) return true;
  std::byte* at = nullptr;
  std::uint64_t iova = 0;
  switch (take(at, iova)) {
    case DirectSink::Taken::place:
      DirectPool::put_at(mbuf, at, iova);
      return true;
    case DirectSink::Taken::empty:
      waits_ = true;
      figures_.no_buffer.add();
      return false;
    case DirectSink::Taken::small:
    case DirectSink::Taken::off:
      break;
  }
  placing_ = false;
  figures_.placing.set(0);
  return true;
}

void DirectReceive::unplace() noexcept {
  sink_->untake();
  --placed_;
}

std::size_t DirectReceive::acceptable(std::span<rte_mbuf* const> frames) const noexcept {
  std::size_t count = 0;
  for (std::size_t left = out(); count < frames.size() && left != 0; ++count) {
    left -= std::min<std::size_t>(left, frames[count]->nb_segs);
  }
  return count;
}

std::size_t DirectReceive::accept(std::span<rte_mbuf* const> frames,
                                  PortCounters& counters) noexcept {
  std::size_t count = 0;
  for (; count < frames.size() && out() != 0; ++count) give(*frames[count], counters);
  if (count != 0) sink_->publish();
  return count;
}

// A frame in several mbufs is longer than the device was told; each of them had a place of its own.
void DirectReceive::give(const rte_mbuf& mbuf, PortCounters& counters) noexcept {
  std::uint32_t bytes = mbuf.pkt_len;
  const bool stripped = vlan_ != 0 && (mbuf.ol_flags & RTE_MBUF_F_RX_VLAN_STRIPPED) != 0;
  counters.tx_packets.add();
  counters.tx_bytes.add(bytes + (stripped ? ethernet::tag_size : 0));
  if (bytes > frame_max_ || mbuf.nb_segs != 1) {
    counters.drop_too_long.add();
    bytes = 0;
  } else if (bytes < ethernet::header_size) {
    counters.drop_malformed.add();
    bytes = 0;
  } else if (!put_in_place(mbuf, bytes)) {
    counters.drop_vlan.add();
    bytes = 0;
  } else if (stripped) {
    figures_.untagged.add();
  }
  const bool verified =
      (mbuf.ol_flags & RTE_MBUF_F_RX_L4_CKSUM_MASK) == RTE_MBUF_F_RX_L4_CKSUM_GOOD;
  sink_->fill(bytes, verified);
  for (unsigned more = 1; more < mbuf.nb_segs && out() != 0; ++more) sink_->fill(0, false);
}

// Where the guest looks for it, without its tag. False: it is of another VLAN.
bool DirectReceive::put_in_place(const rte_mbuf& mbuf, std::uint32_t& bytes) noexcept {
  constexpr std::size_t tag_at = ethernet::addresses_size, after = tag_at + ethernet::tag_size;
  const auto* data = rte_pktmbuf_mtod(&mbuf, const std::byte*);
  std::byte* const place = sink_->first();
  const bool at_home = DirectPool::is_at_home(mbuf);
  CHECK(at_home || data == place);
  std::size_t tag = 0;  // bytes of one that is to be taken out
  if (vlan_ != 0) {
    unsigned control = mbuf.vlan_tci;
    if ((mbuf.ol_flags & RTE_MBUF_F_RX_VLAN_STRIPPED) == 0) {
      std::array<base::be16, 2> found{};  // the guest may be writing there
      if (bytes >= after) std::memcpy(found.data(), data + tag_at, sizeof found);
      if (found[0].host() != ethernet::customer_tag) return false;
      control = found[1].host();
      tag = ethernet::tag_size;
    }
    if ((control & 0xfff) != vlan_) return false;
  }
  if (at_home) std::memcpy(place, data, tag == 0 ? bytes : tag_at);
  if (tag != 0) {
    std::memmove(place + tag_at, data + after, bytes - after);
    bytes -= static_cast<std::uint32_t>(tag);
  }
  if (at_home) {
    figures_.copied_begun.add();
  } else if (tag != 0) {
    figures_.copied_vlan.add();
  } else {
    figures_.zero_copy_packets.add();
    figures_.zero_copy_bytes.add(bytes);
  }
  return true;
}

void DirectReceive::note_copied(std::size_t count) noexcept {
  if (sink_ != nullptr) reason_->add(count);
}

}  // namespace millrace::vswitch
