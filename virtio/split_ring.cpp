#include "virtio/split_ring.hpp"

#include <algorithm>
#include <bit>
#include <utility>

#include "virtio/features.hpp"

namespace millrace::virtio {

using base::le16;
using base::le32;

base::Result<SplitRing, Fault> SplitRing::open(const RingSetup& setup, const GuestMemory& memory,
                                               wire::InflightSplit* inflight) {
  if (setup.size < limits::queue_size_min || setup.size > limits::queue_size_max ||
      !std::has_single_bit(setup.size)) {
    return base::Unexpected{Fault::bad_queue_size};
  }
  SplitRing ring;
  ring.setup_ = setup;
  ring.size_ = setup.size;
  ring.mask_ = setup.size - 1;
  ring.event_index_ = (setup.features & feature::event_idx) != 0;
  ring.indirect_ = (setup.features & feature::indirect_desc) != 0;
  ring.given_.resize(setup.size);
  ring.outstanding_.open(setup.size, (setup.features & feature::in_order) != 0);
  ring.accounts_ = inflight != nullptr || ring.outstanding_.in_order();
  if (const Fault fault = ring.map(memory); fault != Fault::none) return base::Unexpected{fault};

  const auto used = load_once(&ring.used_->index).host();
  if (inflight != nullptr) {
    auto opened = SplitInflight::open(inflight, setup.size, used, ring.resubmit_);
    if (!opened) return base::Unexpected{opened.error()};
    ring.inflight_ = *opened;
    for (const auto head : ring.resubmit_) ring.outstanding_.hold(head);
  }
  ring.used_next_ = used;
  ring.last_available_ = static_cast<std::uint16_t>(used + ring.resubmit_.size());
  ring.cached_available_ = ring.last_available_;
  return ring;
}

Fault SplitRing::map(const GuestMemory& memory) noexcept {
  if (setup_.descriptors % wire::split_descriptor_align != 0 ||
      setup_.driver_area % wire::available_align != 0 ||
      setup_.device_area % wire::used_align != 0) {
    return Fault::ring_misaligned;
  }
  // The event words behind the rings exist only with EVENT_IDX.
  const std::uint64_t event = event_index_ ? sizeof(le16) : 0;
  auto* table = memory.from_user(setup_.descriptors, size_ * sizeof(wire::Descriptor));
  auto* available =
      memory.from_user(setup_.driver_area, sizeof(wire::Available) + size_ * sizeof(le16) + event);
  auto* used = memory.from_user(setup_.device_area,
                                sizeof(wire::Used) + size_ * sizeof(wire::UsedElement) + event);
  if (table == nullptr || available == nullptr || used == nullptr) {
    return Fault::ring_outside_memory;
  }
  // A region may itself lie at an odd address of ours.
  const auto misaligned = [](const std::byte* at, std::size_t to) {
    return reinterpret_cast<std::uintptr_t>(at) % to != 0;
  };
  if (misaligned(table, 8) || misaligned(available, 2) || misaligned(used, 4)) {
    return Fault::ring_misaligned;
  }
  table_ = reinterpret_cast<const wire::Descriptor*>(table);
  available_ = reinterpret_cast<const wire::Available*>(available);
  available_ring_ = reinterpret_cast<const le16*>(available_ + 1);
  used_ = reinterpret_cast<wire::Used*>(used);
  used_ring_ = reinterpret_cast<wire::UsedElement*>(used_ + 1);
  available_event_ = reinterpret_cast<le16*>(used_ring_ + size_);
  used_guest_ = setup_.log_address;
  if (!setup_.log_ring) static_cast<void>(memory.user_to_guest(setup_.device_area, used_guest_));
  memory_ = &memory;
  hints_ = {};
  return Fault::none;
}

bool SplitRing::set_memory(const GuestMemory& memory) noexcept {
  const Fault fault = map(memory);
  if (fault != Fault::none) fault_ = fault;
  return fault == Fault::none;
}

bool SplitRing::look_again() noexcept {
  const auto index = load_acquire(&available_->index).host();
  if (!may_be(index, last_available_)) return false;
  cached_available_ = index;
  return true;
}

SplitRing::Window SplitRing::window(std::uint16_t& asked, std::size_t count) const noexcept {
  const auto end = std::min<std::size_t>(count, published());
  const auto done = static_cast<std::int16_t>(asked - last_available_);
  const auto first = std::min(end, static_cast<std::size_t>(std::max<std::int16_t>(done, 0)));
  asked = static_cast<std::uint16_t>(last_available_ + end);
  return {first, end};
}

void SplitRing::prefetch(std::size_t count) noexcept {
  if (fault_ != Fault::none) return;
  const auto [first, end] = window(asked_descriptors_, count);
  for (std::size_t i = first; i < end; ++i) {
    const auto head = load_once(&available_ring_[(last_available_ + i) & mask_]).host();
    __builtin_prefetch(&table_[head & mask_]);
  }
  for (std::size_t i = first; i < end; i += 64 / sizeof(wire::UsedElement)) {
    __builtin_prefetch(&used_ring_[(used_next_ + i) & mask_], 1);
  }
}

template <class Each>
void SplitRing::peek(std::size_t count, Each each) noexcept {
  if (fault_ != Fault::none) return;
  const auto [first, end] = window(asked_buffers_, count);
  for (std::size_t i = first; i < end; ++i) {
    const auto head = load_once(&available_ring_[(last_available_ + i) & mask_]).host();
    each(load_once(&table_[head & mask_].address).host());
  }
}

void SplitRing::prefetch_to_read(std::size_t count) noexcept {
  peek(count, [this](std::uint64_t at) { prefetch_read(*memory_, at, hints_.data); });
}

void SplitRing::prefetch_to_write(std::size_t count, bool one_line) noexcept {
  peek(count, [&](std::uint64_t at) { prefetch_write(*memory_, at, hints_.data, one_line); });
}

void SplitRing::look(std::size_t count) noexcept {
  if (fault_ != Fault::none) return;
  // Nonsense is take()'s to find, whose caller tells of it.
  if (published() == 0 && !look_again()) return;
  prefetch(count);
}

Take SplitRing::take_again(Chain& chain) noexcept {
  if (fault_ != Fault::none) return Take::fault;
  const Take result = hand_out(chain, resubmit_[resubmit_next_]);
  if (result == Take::chain) ++resubmit_next_;
  return result;
}

Take SplitRing::hand_out(Chain& chain, std::uint16_t head) noexcept {
  const Ticket ticket{head, 1, 0};
  ChainBuilder builder{chain, *memory_, hints_, indirect_};
  Fault fault = builder.walk_split(table_, size_, head);
  if (fault == Fault::none) fault = builder.finish(ticket);
  if (fault != Fault::none) return fail(fault);
  outstanding_.push(ticket);
  return Take::chain;
}

void SplitRing::take_back() noexcept {
  const auto head = outstanding_.pop().id();
  if (inflight_.tracks()) inflight_.untake(head);
  outstanding_.release(head);
}

void SplitRing::rewind(Mark mark) noexcept {
  for (; last_available_ != mark.available; --last_available_) take_back();
  for (; resubmit_next_ != mark.resubmitted; --resubmit_next_) {
    static_cast<void>(outstanding_.pop());  // the predecessor's mark stays in the region
  }
}

void SplitRing::show() noexcept {
  if (given_count_ == 0) return;
  if (accounts_) {
    const std::span<const std::uint16_t> heads{given_.data(), given_count_};
    if (inflight_.tracks()) {
      for (const auto head : heads) inflight_.give(head);
    }
    // From here on the driver may use these heads again.
    for (const auto head : heads) outstanding_.release(head);
    store_release(&used_->index, le16{used_next_});
    if (inflight_.tracks()) inflight_.commit(heads, used_next_);
  } else {
    store_release(&used_->index, le16{used_next_});
  }
  if (log_ != nullptr) log_given();
  unasked_ += given_count_;
  given_count_ = 0;
}

void SplitRing::log_given() noexcept {
  const std::uint32_t first = shown() & mask_;
  const std::uint32_t in_one_piece = std::min(given_count_, size_ - first);
  const auto log_entries = [this](std::uint32_t at, std::uint32_t count) {
    log_used(sizeof(wire::Used) + at * sizeof(wire::UsedElement),
             count * sizeof(wire::UsedElement));
  };
  log_entries(first, in_one_piece);
  if (in_one_piece < given_count_) log_entries(0, given_count_ - in_one_piece);
  log_used(offsetof(wire::Used, index), sizeof(le16));
}

// §2.7.7.2 and §2.7.10. The driver stores its wish, then looks at the used index; we store the used
// index, then look at its wish. Without the fence between, both can miss each other.
bool SplitRing::wants_call() noexcept {
  const auto fresh = std::exchange(unasked_, 0);
  if (fresh == 0) return false;
  if (!event_index_) {
    return (load_once(&available_->flags).host() & wire::available_no_interrupt) == 0;
  }
  const auto event = load_once(&available_ring_[size_]).host();
  return static_cast<std::uint16_t>(shown() - event - 1) < fresh;
}

bool SplitRing::publish() noexcept {
  show();
  full_fence();
  return wants_call();
}

bool SplitRing::arm() noexcept {
  if (fault_ != Fault::none) return false;
  if (arms_ != nullptr) arms_->add();
  if (event_index_) {
    store_once(available_event_, le16{last_available_});
    log_used(sizeof(wire::Used) + size_ * sizeof(wire::UsedElement), sizeof(le16));
  } else {
    store_once(&used_->flags, le16{0});
    log_used(0, sizeof(le16));
    notify_off_ = false;
  }
  full_fence();
  return resubmits() != 0 || load_once(&available_->index).host() != last_available_;
}

// With EVENT_IDX there is nothing to turn off: the driver kicks once as it passes the armed index,
// and `flags` must be 0 (§2.7.10.1).
void SplitRing::disarm() noexcept {
  if (event_index_ || notify_off_) return;
  notify_off_ = true;
  store_once(&used_->flags, le16{wire::used_no_notify});
  log_used(0, sizeof(le16));
}

}  // namespace millrace::virtio
