// SplitRing: the device's half of a split virtqueue (virtio 1.2 §2.7).
//
// All shapes are checked by open(); the hot path holds pointers and a mask. Words of the guest are
// read once. After a fault nothing is taken any more; what was taken can still be given back.
// Thread: open() on control, the rest on the owning reactor.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "base/counter.hpp"
#include "base/result.hpp"
#include "virtio/chain_builder.hpp"
#include "virtio/outstanding.hpp"
#include "virtio/ring.hpp"
#include "virtio/split_inflight.hpp"

namespace millrace::virtio {

class SplitRing {
 public:
  SplitRing() = default;  // holds nothing; not to be used

  // The ring goes on at the used index that is in memory: with no region the driver's buffers from
  // there on are served, whatever `setup.base` says. A predecessor that drained left used == base;
  // one that crashed left buffers it had taken and not given, and they come again. `inflight`: this
  // queue's part of the region, or nullptr. `memory` must outlive the ring or be replaced by
  // set_memory().
  static base::Result<SplitRing, Fault> open(const RingSetup& setup, const GuestMemory& memory,
                                             wire::InflightSplit* inflight);

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
  // After take() said `empty`.
  [[nodiscard]] base::Glance glance() const noexcept {
    return {reinterpret_cast<const std::uint16_t*>(&available_->index),
            std::bit_cast<std::uint16_t>(base::le16{last_available_})};
  }
  [[nodiscard]] Mark mark() const noexcept {
    return {last_available_, false, static_cast<std::uint32_t>(resubmit_next_)};
  }
  void rewind(Mark mark) noexcept;
  void give(const Ticket& ticket, std::uint32_t bytes) noexcept;
  void show() noexcept;
  [[nodiscard]] bool wants_call() noexcept;
  [[nodiscard]] bool publish() noexcept;
  [[nodiscard]] bool arm() noexcept;
  void disarm() noexcept;
  // The available index, that is the used index once drained.
  [[nodiscard]] std::uint32_t position() const noexcept { return last_available_; }
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
  [[nodiscard]] Fault map(const GuestMemory& memory) noexcept;
  [[nodiscard]] Take fail(Fault fault) noexcept {
    fault_ = fault;
    return Take::fault;
  }
  // Of the next `count` buffers those that were not asked for yet; `asked` is where that ended.
  struct Window {
    std::size_t first, end;
  };
  [[nodiscard]] Window window(std::uint16_t& asked, std::size_t count) const noexcept;
  // How many buffers the driver had published that were not taken, when we last looked.
  [[nodiscard]] std::uint32_t published() const noexcept {
    return static_cast<std::uint16_t>(cached_available_ - last_available_);
  }
  // False: the index cannot be.
  [[nodiscard]] bool look_again() noexcept;
  [[nodiscard]] Take take_again(Chain& chain) noexcept;
  [[nodiscard]] Take hand_out(Chain& chain, std::uint16_t head) noexcept;
  void put_used(std::uint16_t head, std::uint32_t bytes) noexcept {
    CHECK(given_count_ < size_);
    store_used(used_next_++, head, bytes);
    if (accounts_) given_[given_count_] = head;
    ++given_count_;
  }
  void store_used(std::uint16_t at, std::uint16_t head, std::uint32_t bytes) noexcept {
    wire::UsedElement& element = used_ring_[at & mask_];
    store_once(&element.id, base::le32{head});
    store_once(&element.length, base::le32{bytes});
  }
  // The used index that the driver sees.
  [[nodiscard]] std::uint16_t shown() const noexcept {
    return static_cast<std::uint16_t>(used_next_ - given_count_);
  }
  // Whether the driver's index can be, those before `next` being taken: there are no more buffers
  // that were not given back, as far as it sees, than the ring has places.
  [[nodiscard]] bool may_be(std::uint16_t index, std::uint16_t next) const noexcept {
    const std::uint32_t held = static_cast<std::uint16_t>(next - shown());
    return static_cast<std::uint16_t>(index - next) + held <= size_;
  }
  // The buffer that was taken last was not.
  void take_back() noexcept;
  void log_given() noexcept;
  void log_used(std::uint64_t offset, std::uint64_t size) noexcept {
    if (log_ != nullptr) log_->mark(used_guest_ + offset, size);
  }

  const wire::Descriptor* table_ = nullptr;
  const wire::Available* available_ = nullptr;
  const base::le16* available_ring_ = nullptr;  // used_event behind it
  wire::Used* used_ = nullptr;
  wire::UsedElement* used_ring_ = nullptr;
  base::le16* available_event_ = nullptr;
  const GuestMemory* memory_ = nullptr;
  DirtyLog* log_ = nullptr;
  base::Counter* arms_ = nullptr;

  std::uint32_t size_ = 0, mask_ = 0;
  std::uint16_t last_available_ = 0;    // the next entry to take
  std::uint16_t cached_available_ = 0;  // how far the driver had published when we last looked
  std::uint16_t used_next_ = 0;         // the next used entry to fill
  // How far descriptors, and the buffers' beginnings, were asked for ahead.
  std::uint16_t asked_descriptors_ = 0, asked_buffers_ = 0;
  std::uint32_t unasked_ = 0;  // buffers shown since wants_call()
  bool event_index_ = false, indirect_ = false, notify_off_ = false, accounts_ = false;
  Fault fault_ = Fault::none;
  ChainHints hints_;
  Outstanding outstanding_;
  SplitInflight inflight_;
  std::uint32_t given_count_ = 0;     // of the entries before used_next_, not yet shown
  std::vector<std::uint16_t> given_;  // their heads, where each buffer is accounted for
  std::vector<std::uint16_t> resubmit_;
  std::size_t resubmit_next_ = 0;
  std::uint64_t used_guest_ = 0;  // guest address of the used ring, for the log
  RingSetup setup_;
};

[[gnu::always_inline]] inline Take SplitRing::take(Chain& chain) noexcept {
  if (fault_ != Fault::none || resubmit_next_ != resubmit_.size()) [[unlikely]]
    return take_again(chain);
  if (published() == 0) {
    if (!look_again()) return fail(Fault::avail_index_jump);
    if (published() == 0) return Take::empty;
  }
  const auto head = load_once(&available_ring_[last_available_ & mask_]).host();
  if (head >= size_) return fail(Fault::head_out_of_range);
  if (outstanding_.holds(head)) return fail(Fault::head_in_flight);
  const auto first = copy_once(table_ + head);
  if (ChainBuilder::take_one(chain, *memory_, hints_, first.address.host(), first.length.host(),
                             first.flags.host())) [[likely]] {
    const Ticket ticket{head, 1, 0};
    ChainBuilder::name(chain, ticket);
    outstanding_.push(ticket);
  } else if (const Take result = hand_out(chain, head); result != Take::chain) {
    return result;
  }
  outstanding_.hold(head);
  if (inflight_.tracks()) inflight_.take(head);
  ++last_available_;
  return Take::chain;
}

[[gnu::always_inline]] inline void SplitRing::give(const Ticket& ticket,
                                                   std::uint32_t bytes) noexcept {
  if (accounts_) {
    outstanding_.complete(ticket, bytes, [this](const Ticket& done, std::uint32_t written) {
      put_used(done.id(), written);
    });
    return;
  }
  if (ticket.held()) outstanding_.let_go(ticket);
  put_used(ticket.id(), bytes);
}

// See Ring.
template <bool accounted>
class SplitRing::BasicCursor {
 public:
  explicit BasicCursor(SplitRing& ring) noexcept
      : ring_{ring},
        available_{ring.last_available_},
        cached_{ring.cached_available_},
        used_{ring.used_next_},
        holds_any_{ring.outstanding_.holds_any()},
        serves_{ring.fault_ == Fault::none && ring.resubmits() == 0 &&
                accounted == ring.accounts()} {
    if (!serves_) cached_ = available_;
  }
  BasicCursor(const BasicCursor&) = delete;
  BasicCursor& operator=(const BasicCursor&) = delete;
  ~BasicCursor() {
    if constexpr (!accounted) {
      ring_.outstanding_.pass(static_cast<std::uint16_t>(available_ - ring_.last_available_));
    }
    ring_.last_available_ = available_;
    ring_.given_count_ += static_cast<std::uint16_t>(used_ - ring_.used_next_);
    ring_.used_next_ = used_;
    CHECK(ring_.given_count_ <= ring_.size_);
  }

  [[nodiscard]] bool serves() const noexcept { return serves_; }
  [[nodiscard, gnu::always_inline]] Segment next(bool writable) noexcept {
    if (available_ == cached_ && !look_again()) return {};
    head_ = load_once(&ring_.available_ring_[available_ & ring_.mask_]).host();
    if (head_ >= ring_.size_) return {};
    if ((accounted || holds_any_) && ring_.outstanding_.holds(head_)) return {};
    const auto descriptor = copy_once(ring_.table_ + head_);
    const auto flags = descriptor.flags.host();
    if (((flags & wire::descriptor_write) != 0) != writable) return {};
    return ChainBuilder::one_piece(*ring_.memory_, ring_.hints_, descriptor.address.host(),
                                   descriptor.length.host(), flags);
  }
  [[gnu::always_inline]] Ticket take() noexcept {
    ++available_;
    if constexpr (!accounted) return Ticket::passing(head_);
    const Ticket ticket{head_, 1, 0};
    ring_.outstanding_.hold(head_);
    ring_.outstanding_.push(ticket);
    if (ring_.inflight_.tracks()) ring_.inflight_.take(head_);
    return ticket;
  }
  [[gnu::always_inline]] void give(const Ticket& ticket, std::uint32_t bytes) noexcept {
    if constexpr (accounted) {
      ring_.outstanding_.complete(ticket, bytes, [this](const Ticket& done, std::uint32_t written) {
        const auto at = static_cast<std::uint16_t>(used_ - ring_.shown());
        CHECK(at < ring_.size_);
        ring_.given_[at] = done.id();
        ring_.store_used(used_++, done.id(), written);
      });
    } else {
      if (ticket.held()) [[unlikely]]
        ring_.outstanding_.let_go(ticket);
      ring_.store_used(used_++, ticket.id(), bytes);
    }
  }

  [[nodiscard]] std::uint16_t place() const noexcept { return available_; }
  void go_back(std::uint16_t place) noexcept {
    if constexpr (accounted) {
      for (; available_ != place; --available_) ring_.take_back();
    }
    available_ = place;
  }

 private:
  // Nonsense is take()'s to find.
  [[nodiscard]] bool look_again() noexcept {
    if (!serves_) return false;
    const auto index = load_acquire(&ring_.available_->index).host();
    if (index == available_ || !ring_.may_be(index, available_)) return false;
    cached_ = ring_.cached_available_ = index;
    return true;
  }

  SplitRing& ring_;
  std::uint16_t available_, cached_, used_, head_ = 0;
  const bool holds_any_, serves_;
};

static_assert(Ring<SplitRing>);

}  // namespace millrace::virtio
