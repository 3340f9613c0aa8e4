// PackedRing: the device's half of a packed virtqueue (virtio 1.2 §2.8).
//
// All shapes are checked by open(); the hot path holds pointers. Words of the guest are read once.
// After a fault nothing is taken any more; what was taken can still be given back.
//
// A position (vhost-user, "Vring base") holds two places: bits 0-14 the next available descriptor,
// bit 15 its wrap counter; bits 16-30 the next used descriptor, bit 31 its wrap counter.
// Thread: open() on control, the rest on the owning reactor.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "base/counter.hpp"
#include "base/result.hpp"
#include "virtio/chain_builder.hpp"
#include "virtio/outstanding.hpp"
#include "virtio/packed_inflight.hpp"
#include "virtio/ring.hpp"

namespace millrace::virtio {

class PackedRing {
 public:
  PackedRing() = default;  // holds nothing; not to be used

  // Starts at the available place of `setup.base`: the ring was drained when that was read, so the
  // used place is the same (and some front-ends send only the lower half). An inflight region that
  // was in use knows better, and then the base is not looked at. `inflight`: this queue's part of
  // the region, or nullptr. `memory` must outlive the ring or be replaced by set_memory().
  static base::Result<PackedRing, Fault> open(const RingSetup& setup, const GuestMemory& memory,
                                              wire::InflightPacked* inflight);

  [[nodiscard]] Take take(Chain& chain) noexcept;
  template <bool accounted>
  class BasicCursor;
  using Cursor = BasicCursor<false>;
  using AccountedCursor = BasicCursor<true>;
  // Of each buffer is written down that it was taken: in which order, or for a successor.
  [[nodiscard]] bool accounts() const noexcept { return accounts_; }
  void prefetch(std::size_t count) noexcept;
  void prefetch_to_read(std::size_t count) noexcept;
  void prefetch_to_write(std::size_t count, bool one_line = false) noexcept;
  void look(std::size_t count) noexcept;
  // After take() said `empty`. What was judged then may have changed, so the flags are judged
  // again.
  [[nodiscard]] base::Glance glance() const noexcept {
    const auto* const flags = &ring_[available_.index].flags;
    const auto seen = load_once(flags);
    if (is_available(seen.host(), available_.wrap)) return {};
    return {reinterpret_cast<const std::uint16_t*>(flags), std::bit_cast<std::uint16_t>(seen)};
  }
  [[nodiscard]] Mark mark() const noexcept {
    return {available_.index, available_.wrap, static_cast<std::uint32_t>(resubmit_next_)};
  }
  void rewind(Mark mark) noexcept;
  void give(const Ticket& ticket, std::uint32_t bytes) noexcept;
  void show() noexcept;
  [[nodiscard]] bool wants_call() noexcept;
  [[nodiscard]] bool publish() noexcept;
  [[nodiscard]] bool arm() noexcept;
  void disarm() noexcept;
  [[nodiscard]] std::uint32_t position() const noexcept;
  [[nodiscard]] Fault fault() const noexcept { return fault_; }

  void poison(Fault fault) noexcept { fault_ = fault; }
  // Finds its parts again in another snapshot. Where they are not there it poisons itself, keeps
  // the old one (which must live on) and returns false.
  [[nodiscard]] bool set_memory(const GuestMemory& memory) noexcept;
  void set_log(DirtyLog* log) noexcept { log_ = log; }
  void count_arms(base::Counter* counter) noexcept { arms_ = counter; }
  // Buffers taken since open(), those taken back not counted.
  [[nodiscard]] std::uint64_t taken() const noexcept { return outstanding_.taken(); }
  // Buffers given and not yet published (with IN_ORDER: whose turn it is).
  [[nodiscard]] std::uint32_t pending() const noexcept { return given_count_; }
  // Buffers of a predecessor that wait to be taken again.
  [[nodiscard]] std::size_t resubmits() const noexcept { return resubmit_.size() - resubmit_next_; }

 private:
  // Calls `each` with the addresses of the next buffers.
  template <class Each>
  void peek(std::size_t count, Each each) noexcept;
  struct Given {
    Ticket ticket;
    std::uint32_t bytes;
  };
  [[nodiscard]] Fault map(const GuestMemory& memory) noexcept;
  [[nodiscard]] Fault recover(wire::InflightPacked* inflight);
  [[nodiscard]] Take fail(Fault fault) noexcept {
    fault_ = fault;
    return Take::fault;
  }
  [[nodiscard]] Take resubmit(Chain& chain) noexcept;
  // §2.8.1: available to us when AVAIL is the lap's wrap counter and USED is not.
  [[nodiscard]] static bool is_available(std::uint16_t flags, bool wrap) noexcept {
    const bool available = (flags & wire::descriptor_available) != 0;
    const bool used = (flags & wire::descriptor_used) != 0;
    return available == wrap && used != wrap;
  }
  static constexpr std::uint32_t of_a_line = 64 / sizeof(wire::PackedDescriptor);
  // How many of the next `count` slots were asked for already, where that ended at `asked`, or in
  // the line of `asked`.
  [[nodiscard]] std::uint32_t ahead(PackedPlace asked, std::uint32_t count) const noexcept {
    const std::uint32_t distance = available_.distance(asked, size_);
    return distance < count + of_a_line ? std::min(distance, count) : 0;
  }
  [[nodiscard]] Take take_any(Chain& chain, std::uint16_t head_flags) noexcept;
  void hold(const Ticket& ticket) noexcept {
    outstanding_.hold(ticket.id());
    outstanding_.push(ticket);
    held_slots_ += ticket.slots();
    available_.advance(ticket.slots(), size_);
  }
  [[nodiscard]] Fault read_chain(ChainBuilder& builder, std::uint16_t head_flags, std::uint16_t& id,
                                 std::uint16_t& slots) noexcept;
  void put_used(PackedPlace at, const Given& given) noexcept;
  // The buffer that was taken last was not; where it began is the caller's to know.
  Ticket take_back() noexcept;
  void store_event(std::uint16_t offset_wrap, std::uint16_t flags) noexcept;

  wire::PackedDescriptor* ring_ = nullptr;
  const wire::EventSuppression* driver_event_ = nullptr;
  wire::EventSuppression* device_event_ = nullptr;
  const GuestMemory* memory_ = nullptr;
  DirtyLog* log_ = nullptr;
  base::Counter* arms_ = nullptr;

  std::uint32_t size_ = 0;
  PackedPlace available_;         // the next descriptor to take
  PackedPlace used_;              // the next used descriptor to write
  std::uint32_t held_slots_ = 0;  // between the two
  // How far descriptors, and the buffers' beginnings, were asked for ahead.
  PackedPlace asked_descriptors_, asked_buffers_;
  bool event_index_ = false, indirect_ = false, notify_off_ = false, accounts_ = false;
  Fault fault_ = Fault::none;
  ChainHints hints_;
  Outstanding outstanding_;
  PackedInflight inflight_;
  std::vector<Given> given_;  // not yet published
  std::uint32_t given_count_ = 0;
  std::uint32_t unasked_ = 0;                  // ring entries shown since wants_call()
  std::vector<wire::PackedDescriptor> taken_;  // the chain being taken, for the inflight region
  std::uint32_t taken_count_ = 0;
  std::vector<PackedResubmit> resubmit_;
  std::size_t resubmit_next_ = 0;
  std::uint64_t ring_guest_ = 0, event_guest_ = 0;  // guest addresses, for the log
  RingSetup setup_;
};

[[gnu::always_inline]] inline Take PackedRing::take(Chain& chain) noexcept {
  if (fault_ != Fault::none) [[unlikely]]
    return Take::fault;
  if (resubmit_next_ != resubmit_.size()) [[unlikely]]
    return resubmit(chain);
  if (held_slots_ == size_) return Take::empty;
  const auto& shared = ring_[available_.index];
  // The flags are read on their own, so that the rest is not older than they are.
  const auto flags = load_acquire(&shared.flags).host();
  if (!is_available(flags, available_.wrap)) return Take::empty;
  if (inflight_.tracks()) return take_any(chain, flags);
  const auto id = load_once(&shared.id).host();
  if (id < size_ && !outstanding_.holds(id) &&
      ChainBuilder::take_one(chain, *memory_, hints_, load_once(&shared.address).host(),
                             load_once(&shared.length).host(), flags)) [[likely]] {
    const Ticket ticket{id, 1, 0};
    ChainBuilder::name(chain, ticket);
    hold(ticket);
    return Take::chain;
  }
  return take_any(chain, flags);
}

[[gnu::always_inline]] inline void PackedRing::give(const Ticket& ticket,
                                                    std::uint32_t bytes) noexcept {
  const auto put = [this](const Ticket& done, std::uint32_t written) {
    CHECK(given_count_ < size_);
    given_[given_count_++] = {done, written};
  };
  if (accounts_) return outstanding_.complete(ticket, bytes, put);
  if (ticket.held()) outstanding_.let_go(ticket);
  put(ticket, bytes);
}

// See Ring.
template <bool accounted>
class PackedRing::BasicCursor {
 public:
  explicit BasicCursor(PackedRing& ring) noexcept
      : ring_{ring},
        available_{ring.available_},
        held_{ring.held_slots_},
        given_{ring.given_count_},
        holds_any_{ring.outstanding_.holds_any()},
        serves_{ring.fault_ == Fault::none && ring.resubmits() == 0 &&
                accounted == ring.accounts()} {}
  BasicCursor(const BasicCursor&) = delete;
  BasicCursor& operator=(const BasicCursor&) = delete;
  ~BasicCursor() {
    if constexpr (!accounted) ring_.outstanding_.pass(held_ - ring_.held_slots_);
    ring_.held_slots_ = held_;
    ring_.available_ = available_;
    ring_.given_count_ = given_;
  }

  [[nodiscard]] bool serves() const noexcept { return serves_; }
  [[nodiscard, gnu::always_inline]] Segment next(bool writable) noexcept {
    if (!serves_ || held_ == ring_.size_) return {};
    const auto& shared = ring_.ring_[available_.index];
    // The flags are read on their own, so that the rest is not older than they are.
    const auto flags = load_acquire(&shared.flags).host();
    if (!is_available(flags, available_.wrap)) return {};
    if (((flags & wire::descriptor_write) != 0) != writable) return {};
    id_ = load_once(&shared.id).host();
    if (id_ >= ring_.size_) return {};
    if ((accounted || holds_any_) && ring_.outstanding_.holds(id_)) return {};
    const auto address = load_once(&shared.address);
    const auto length = load_once(&shared.length);
    if constexpr (accounted) descriptor_ = {address, length, base::le16{id_}, base::le16{flags}};
    return ChainBuilder::one_piece(*ring_.memory_, ring_.hints_, address.host(), length.host(),
                                   flags);
  }
  [[gnu::always_inline]] Ticket take() noexcept {
    ++held_;
    available_.advance(1, ring_.size_);
    if constexpr (!accounted) return Ticket::passing(id_);
    ring_.outstanding_.hold(id_);
    std::uint16_t entry = 0;
    if (ring_.inflight_.tracks()) entry = ring_.inflight_.take({&descriptor_, 1});
    const Ticket ticket{id_, 1, entry};
    ring_.outstanding_.push(ticket);
    return ticket;
  }
  [[gnu::always_inline]] void give(const Ticket& ticket, std::uint32_t bytes) noexcept {
    if constexpr (accounted) {
      ring_.outstanding_.complete(ticket, bytes, [this](const Ticket& done, std::uint32_t written) {
        put_used(done, written);
      });
    } else {
      if (ticket.held()) [[unlikely]]
        ring_.outstanding_.let_go(ticket);
      put_used(ticket, bytes);
    }
  }
  struct Place {
    PackedPlace available;
    std::uint32_t held;
  };
  [[nodiscard]] Place place() const noexcept { return {available_, held_}; }
  void go_back(const Place& place) noexcept {
    if constexpr (accounted) {
      for (; held_ != place.held; --held_) static_cast<void>(ring_.take_back());
    }
    available_ = place.available;
    held_ = place.held;
  }

 private:
  [[gnu::always_inline]] void put_used(const Ticket& ticket, std::uint32_t bytes) noexcept {
    CHECK(given_ < ring_.size_);
    ring_.given_[given_++] = {ticket, bytes};
  }

  PackedRing& ring_;
  PackedPlace available_;
  std::uint16_t id_ = 0;
  wire::PackedDescriptor descriptor_{};  // of next(), for the inflight region
  std::uint32_t held_, given_;
  const bool holds_any_, serves_;
};

static_assert(Ring<PackedRing>);

}  // namespace millrace::virtio
