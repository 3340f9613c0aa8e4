#include "virtio/packed_ring.hpp"

#include <algorithm>
#include <utility>

#include "virtio/features.hpp"

namespace millrace::virtio {

using base::le16;
using base::le64;

namespace {

constexpr std::uint16_t index_mask = 0x7fff;

constexpr std::uint16_t encode(PackedPlace place) {
  return static_cast<std::uint16_t>(place.index | (place.wrap ? wire::event_wrap : 0));
}

}  // namespace

base::Result<PackedRing, Fault> PackedRing::open(const RingSetup& setup, const GuestMemory& memory,
                                                 wire::InflightPacked* inflight) {
  if (setup.size < limits::queue_size_min || setup.size > limits::queue_size_max) {
    return base::Unexpected{Fault::bad_queue_size};
  }
  PackedRing ring;
  ring.setup_ = setup;
  ring.size_ = setup.size;
  ring.event_index_ = (setup.features & feature::event_idx) != 0;
  ring.indirect_ = (setup.features & feature::indirect_desc) != 0;
  ring.given_.resize(setup.size);
  ring.taken_.resize(std::min(setup.size, limits::chain_descriptors_max));
  ring.outstanding_.open(setup.size, (setup.features & feature::in_order) != 0);
  ring.accounts_ = inflight != nullptr || ring.outstanding_.in_order();
  if (const Fault fault = ring.map(memory); fault != Fault::none) return base::Unexpected{fault};

  ring.available_ = {static_cast<std::uint16_t>(setup.base & index_mask),
                     (setup.base & wire::event_wrap) != 0};
  if (ring.available_.index >= setup.size) return base::Unexpected{Fault::position_bad};
  ring.used_ = ring.available_;
  if (inflight != nullptr) {
    if (const Fault fault = ring.recover(inflight); fault != Fault::none) {
      return base::Unexpected{fault};
    }
  }
  return ring;
}

// The slots between the used and the available place are those of the buffers that we hold.
Fault PackedRing::recover(wire::InflightPacked* inflight) {
  auto opened = PackedInflight::open(inflight, size_, ring_, used_, resubmit_);
  if (!opened) return opened.error();
  inflight_ = std::move(*opened);
  for (const PackedResubmit& buffer : resubmit_) {
    held_slots_ += static_cast<std::uint32_t>(buffer.descriptors.size());
    outstanding_.hold(buffer.descriptors.back().id.host());
  }
  if (held_slots_ > size_) return Fault::inflight_bad;
  available_ = used_;
  available_.advance(held_slots_, size_);
  return Fault::none;
}

Fault PackedRing::map(const GuestMemory& memory) noexcept {
  if (setup_.descriptors % wire::packed_descriptor_align != 0 ||
      setup_.driver_area % wire::event_align != 0 || setup_.device_area % wire::event_align != 0) {
    return Fault::ring_misaligned;
  }
  auto* ring = memory.from_user(setup_.descriptors, size_ * sizeof(wire::PackedDescriptor));
  auto* driver = memory.from_user(setup_.driver_area, sizeof(wire::EventSuppression));
  auto* device = memory.from_user(setup_.device_area, sizeof(wire::EventSuppression));
  if (ring == nullptr || driver == nullptr || device == nullptr) {
    return Fault::ring_outside_memory;
  }
  // A region may itself lie at an odd address of ours.
  const auto misaligned = [](const std::byte* at, std::size_t to) {
    return reinterpret_cast<std::uintptr_t>(at) % to != 0;
  };
  if (misaligned(ring, 8) || misaligned(driver, 4) || misaligned(device, 4)) {
    return Fault::ring_misaligned;
  }
  ring_ = reinterpret_cast<wire::PackedDescriptor*>(ring);
  driver_event_ = reinterpret_cast<const wire::EventSuppression*>(driver);
  device_event_ = reinterpret_cast<wire::EventSuppression*>(device);
  static_cast<void>(memory.user_to_guest(setup_.descriptors, ring_guest_));
  static_cast<void>(memory.user_to_guest(setup_.device_area, event_guest_));
  memory_ = &memory;
  hints_ = {};
  return Fault::none;
}

bool PackedRing::set_memory(const GuestMemory& memory) noexcept {
  const Fault fault = map(memory);
  if (fault != Fault::none) fault_ = fault;
  return fault == Fault::none;
}

void PackedRing::prefetch(std::size_t count) noexcept {
  if (fault_ != Fault::none) return;
  const auto end = static_cast<std::uint32_t>(std::min<std::size_t>(count, size_));
  std::uint32_t i = ahead(asked_descriptors_, end);
  PackedPlace at = available_;
  at.advance(i, size_);
  for (; i < end; i += of_a_line) {
    __builtin_prefetch(&ring_[at.index], 1);
    at.advance(std::min<std::uint32_t>(of_a_line, size_), size_);
  }
  asked_descriptors_ = at;
}

template <class Each>
void PackedRing::peek(std::size_t count, Each each) noexcept {
  if (fault_ != Fault::none) return;
  const auto end = static_cast<std::uint32_t>(std::min<std::size_t>(count, size_ - held_slots_));
  std::uint32_t i = ahead(asked_buffers_, end);
  PackedPlace at = available_;
  at.advance(i, size_);
  for (; i < end; ++i) {
    const auto& descriptor = ring_[at.index];
    if (!is_available(load_once(&descriptor.flags).host(), at.wrap)) break;
    each(load_once(&descriptor.address).host());
    at.advance(1, size_);
  }
  asked_buffers_ = at;
}

void PackedRing::prefetch_to_read(std::size_t count) noexcept {
  peek(count, [this](std::uint64_t at) { prefetch_read(*memory_, at, hints_.data); });
}

void PackedRing::prefetch_to_write(std::size_t count, bool one_line) noexcept {
  peek(count, [&](std::uint64_t at) { prefetch_write(*memory_, at, hints_.data, one_line); });
}

// What is published is said by the descriptors themselves.
void PackedRing::look(std::size_t count) noexcept {
  prefetch(count);
}

Take PackedRing::take_any(Chain& chain, std::uint16_t head_flags) noexcept {
  ChainBuilder builder{chain, *memory_, hints_, indirect_};
  std::uint16_t id = 0, slots = 0, entry = 0;
  Fault fault = read_chain(builder, head_flags, id, slots);
  if (fault == Fault::none && id >= size_) fault = Fault::head_out_of_range;
  if (fault == Fault::none && outstanding_.holds(id)) fault = Fault::head_in_flight;
  if (fault != Fault::none) return fail(fault);
  if (inflight_.tracks()) {
    // Checked before it is written down, so that a bad chain leaves no trace.
    if (builder.empty()) return fail(Fault::chain_empty);
    entry = inflight_.take({taken_.data(), taken_count_});
  }
  const Ticket ticket{id, slots, entry};
  fault = builder.finish(ticket);
  if (fault != Fault::none) return fail(fault);
  hold(ticket);
  return Take::chain;
}

// The buffer id is in the chain's last descriptor (§2.8.6).
Fault PackedRing::read_chain(ChainBuilder& builder, std::uint16_t head_flags, std::uint16_t& id,
                             std::uint16_t& slots) noexcept {
  PackedPlace at = available_;
  taken_count_ = 0;
  for (std::uint16_t flags = head_flags;;) {
    // The flags were read on their own, so that the rest is not older than they are.
    const auto& shared = ring_[at.index];
    const wire::PackedDescriptor descriptor{load_once(&shared.address), load_once(&shared.length),
                                            load_once(&shared.id), le16{flags}};
    if (taken_count_ == taken_.size()) return Fault::chain_too_long;
    taken_[taken_count_++] = descriptor;
    if (const Fault fault = builder.add_packed(descriptor); fault != Fault::none) return fault;
    ++slots;
    id = descriptor.id.host();
    if ((flags & wire::descriptor_next) == 0) return Fault::none;
    if (held_slots_ + slots == size_) return Fault::chain_loop;
    at.advance(1, size_);
    flags = load_acquire(&ring_[at.index].flags).host();
  }
}

Take PackedRing::resubmit(Chain& chain) noexcept {
  const PackedResubmit& buffer = resubmit_[resubmit_next_];
  ChainBuilder builder{chain, *memory_, hints_, indirect_};
  for (const auto& descriptor : buffer.descriptors) {
    const Fault fault = builder.add_packed(descriptor);
    if (fault != Fault::none) return fail(fault);
  }
  const Ticket ticket{buffer.descriptors.back().id.host(),
                      static_cast<std::uint16_t>(buffer.descriptors.size()), buffer.entry};
  if (const Fault fault = builder.finish(ticket); fault != Fault::none) return fail(fault);
  outstanding_.push(ticket);
  ++resubmit_next_;
  return Take::chain;
}

Ticket PackedRing::take_back() noexcept {
  const Ticket ticket = outstanding_.pop();
  if (inflight_.tracks()) inflight_.untake(ticket.inflight());
  outstanding_.release(ticket.id());
  return ticket;
}

void PackedRing::rewind(Mark mark) noexcept {
  const PackedPlace to{mark.available, mark.wrap};
  while (available_ != to) {
    const Ticket ticket = take_back();
    held_slots_ -= ticket.slots();
    if (available_.index < ticket.slots()) available_.wrap = !available_.wrap;
    const std::uint32_t back = available_.index + size_ - ticket.slots();
    available_.index = static_cast<std::uint16_t>(back >= size_ ? back - size_ : back);
  }
  for (; resubmit_next_ != mark.resubmitted; --resubmit_next_) {
    static_cast<void>(outstanding_.pop());  // the predecessor's mark stays in the region
  }
}

// The first descriptor of the batch comes last: the driver stops there until the batch is whole.
void PackedRing::show() noexcept {
  if (given_count_ == 0) return;
  const std::span<const Given> batch{given_.data(), given_count_};
  const PackedPlace before = used_;
  std::uint32_t slots = 0;
  for (const Given& given : batch) {
    slots += given.ticket.slots();
    if (!accounts_) continue;
    outstanding_.release(given.ticket.id());
    if (inflight_.tracks()) inflight_.give(given.ticket.inflight());
  }
  held_slots_ -= slots;
  used_.advance(slots, size_);
  if (inflight_.tracks()) inflight_.prepare(used_);
  PackedPlace at = before;
  for (const Given& given : batch) {
    if (&given != batch.data()) put_used(at, given);
    at.advance(given.ticket.slots(), size_);
  }
  put_used(before, batch.front());
  if (inflight_.tracks()) {
    for (const Given& given : batch) inflight_.commit(given.ticket.inflight());
    inflight_.finish();
  }
  given_count_ = 0;
  unasked_ += slots;
}

// §2.8.8. Length, id and flags are one word, so the driver never sees half a used descriptor.
void PackedRing::put_used(PackedPlace at, const Given& given) noexcept {
  std::uint16_t flags = given.bytes != 0 ? wire::descriptor_write : 0;
  if (at.wrap) flags |= wire::descriptor_available | wire::descriptor_used;
  static_assert(offsetof(wire::PackedDescriptor, length) == 8 &&
                offsetof(wire::PackedDescriptor, id) == 12 &&
                offsetof(wire::PackedDescriptor, flags) == 14);
  auto* descriptor = reinterpret_cast<std::byte*>(ring_ + at.index);
  auto* tail = reinterpret_cast<le64*>(descriptor + offsetof(wire::PackedDescriptor, length));
  store_release(tail, le64{given.bytes | std::uint64_t{given.ticket.id()} << 32 |
                           std::uint64_t{flags} << 48});
  if (log_ != nullptr) {
    log_->mark(ring_guest_ + at.index * sizeof(wire::PackedDescriptor),
               sizeof(wire::PackedDescriptor));
  }
}

// §2.8.14. The driver stores its wish, then looks at the ring; we store used descriptors, then look
// at its wish. Without the fence between, both can miss each other.
bool PackedRing::wants_call() noexcept {
  const auto fresh = std::exchange(unasked_, 0);
  if (fresh == 0) return false;
  const auto event = load_once(driver_event_);
  const auto flags = event.flags.host() & wire::event_flags_mask;
  if (flags != wire::event_descriptor || !event_index_) return flags != wire::event_disable;
  const auto offset_wrap = event.offset_wrap.host();
  const PackedPlace wish{static_cast<std::uint16_t>(offset_wrap & index_mask),
                         (offset_wrap & wire::event_wrap) != 0};
  if (wish.index >= size_) return true;  // nonsense costs a call
  // How far back from where we are, over two laps.
  const std::uint32_t here = used_.index + (used_.wrap ? 0 : size_);
  const std::uint32_t there = wish.index + (wish.wrap ? 0 : size_);
  const std::uint32_t wished = (here + 2 * size_ - there) % (2 * size_);
  return fresh >= 2 * size_ || (wished != 0 && wished <= fresh);
}

bool PackedRing::publish() noexcept {
  show();
  full_fence();
  return wants_call();
}

bool PackedRing::arm() noexcept {
  if (fault_ != Fault::none) return false;
  if (arms_ != nullptr) arms_->add();
  if (event_index_) {
    store_event(encode(available_), wire::event_descriptor);
  } else {
    store_event(0, wire::event_enable);
  }
  notify_off_ = false;
  full_fence();
  if (resubmits() != 0) return true;
  return held_slots_ != size_ &&
         is_available(load_once(&ring_[available_.index].flags).host(), available_.wrap);
}

void PackedRing::disarm() noexcept {
  if (notify_off_) return;
  notify_off_ = true;
  store_event(0, wire::event_disable);
}

void PackedRing::store_event(std::uint16_t offset_wrap, std::uint16_t flags) noexcept {
  store_once(device_event_, {le16{offset_wrap}, le16{flags}});
  if (log_ != nullptr) log_->mark(event_guest_, sizeof(wire::EventSuppression));
}

std::uint32_t PackedRing::position() const noexcept {
  return encode(available_) | std::uint32_t{encode(used_)} << 16;
}

}  // namespace millrace::virtio
