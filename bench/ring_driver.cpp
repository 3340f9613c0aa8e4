#include "bench/ring_driver.hpp"

#include <utility>

#include "base/check.hpp"
#include "virtio/features.hpp"
#include "virtio/shared.hpp"

namespace millrace::bench {

namespace wire = virtio::wire;

namespace {

// virtio 1.2 §2.7.10: whether a device that waits for `event` is told of what is new since `old`.
bool passes(std::uint16_t event, std::uint16_t now, std::uint16_t old) {
  return static_cast<std::uint16_t>(now - event - 1) < static_cast<std::uint16_t>(now - old);
}

std::uint16_t flags_of(const Segment& segment) {
  return segment.writable ? wire::descriptor_write : 0;
}

// A split queue's chain in the `count` descriptors of which `at`, number `first`, is the first.
void link(wire::Descriptor* at, unsigned first, std::span<const Segment> chain, unsigned count) {
  for (unsigned i = 0; i < count; ++i) {
    const bool last = i + 1 == count;
    const auto flags =
        static_cast<std::uint16_t>(flags_of(chain[i]) | (last ? 0 : wire::descriptor_next));
    at[i] = {base::le64{chain[i].address}, base::le32{chain[i].length}, base::le16{flags},
             base::le16{static_cast<std::uint16_t>(last ? 0 : first + i + 1)}};
  }
}

}  // namespace

RingDriver::RingDriver(SocketGuest& guest, unsigned ring, unsigned segments)
    : guest_{guest},
      event_index_{(guest.features() & virtio::feature::event_idx) != 0},
      indirect_{segments > 1 && (guest.features() & virtio::feature::indirect_desc) != 0},
      ring_{ring},
      segments_{segments},
      slots_{indirect_ ? 1 : segments},
      places_{guest.ring(ring).size / slots_} {
  CHECK(places_ > 0);
  if (indirect_) tables_ = guest.allocate(places_ * table_size(segments));
  free_.reserve(places_);
  for (unsigned i = places_; i > 0; --i) free_.push_back(static_cast<std::uint16_t>(i - 1));
}

unsigned RingDriver::take_place() {
  const unsigned place = free_.back();
  free_.pop_back();
  return place;
}

bool RingDriver::free_place(unsigned place) {
  broken_ = place >= places_ || free_.size() == places_;
  if (!broken_) free_.push_back(static_cast<std::uint16_t>(place));
  return !broken_;
}

SplitDriver::SplitDriver(SocketGuest& guest, unsigned ring, unsigned segments)
    : RingDriver{guest, ring, segments},
      mask_{static_cast<std::uint16_t>(guest.ring(ring).size - 1)} {
  CHECK(!guest.packed());
  const auto& at = guest.ring(ring);
  descriptors_ = reinterpret_cast<wire::Descriptor*>(guest.at(at.descriptors));
  available_ = reinterpret_cast<wire::Available*>(guest.at(at.available));
  heads_ = reinterpret_cast<base::le16*>(available_ + 1);
  used_ = reinterpret_cast<const wire::Used*>(guest.at(at.used));
  elements_ = reinterpret_cast<const wire::UsedElement*>(used_ + 1);
  kick_event_ = reinterpret_cast<const base::le16*>(elements_ + at.size);
  // With an event index that word is nothing to the device: its own event stays where it is, as
  // that of a driver that looks by itself does.
  virtio::store_once(&available_->flags, base::le16{wire::available_no_interrupt});
}

void SplitDriver::add(std::span<const Segment> chain) {
  const unsigned place = take_place();
  const auto head = static_cast<std::uint16_t>(place * slots_);
  if (indirect_) {
    const auto table = table_of(place);
    link(reinterpret_cast<wire::Descriptor*>(guest_.at(table)), 0, chain, segments_);
    const auto bytes = static_cast<std::uint32_t>(segments_ * sizeof(wire::Descriptor));
    descriptors_[head] = {base::le64{table}, base::le32{bytes},
                          base::le16{wire::descriptor_indirect}, base::le16{0}};
  } else {
    link(descriptors_ + head, head, chain, segments_);
  }
  heads_[next_++ & mask_] = base::le16{head};
}

bool SplitDriver::publish() {
  if (!show()) return false;
  virtio::full_fence();
  return wants_kick();
}

bool SplitDriver::show() {
  if (published_ == next_) return false;
  published_ = next_;
  virtio::store_release(&available_->index, base::le16{next_});
  return true;
}

bool SplitDriver::wants_kick() {
  const auto old = std::exchange(asked_, published_);
  if (event_index_) return passes(virtio::load_once(kick_event_).host(), published_, old);
  return (virtio::load_once(&used_->flags).host() & wire::used_no_notify) == 0;
}

std::optional<Completed> SplitDriver::reap() {
  if (broken()) return std::nullopt;
  if (reaped_ == seen_) {
    seen_ = virtio::load_acquire(&used_->index).host();
    if (reaped_ == seen_) return std::nullopt;
  }
  const auto element = elements_[reaped_++ & mask_];
  // A head that is none is no place either.
  const auto place = element.id.host() % slots_ == 0 ? element.id.host() / slots_ : places_;
  if (!free_place(place)) return std::nullopt;
  return Completed{place, element.length.host()};
}

PackedDriver::PackedDriver(SocketGuest& guest, unsigned ring, unsigned segments)
    : RingDriver{guest, ring, segments}, size_{guest.ring(ring).size} {
  CHECK(guest.packed());
  const auto& at = guest.ring(ring);
  descriptors_ = reinterpret_cast<wire::PackedDescriptor*>(guest.at(at.descriptors));
  auto* const driver = reinterpret_cast<wire::EventSuppression*>(guest.at(at.available));
  virtio::store_once(&driver->flags, base::le16{wire::event_disable});
  device_ = reinterpret_cast<const wire::EventSuppression*>(guest.at(at.used));
}

std::uint16_t PackedDriver::available_flags() const {
  return wrap_ ? wire::descriptor_available : wire::descriptor_used;
}

void PackedDriver::advance(std::uint16_t& index, bool& wrap, unsigned by) const {
  index = static_cast<std::uint16_t>(index + by);
  if (index < size_) return;
  index = static_cast<std::uint16_t>(index - size_);
  wrap = !wrap;
}

void PackedDriver::add(std::span<const Segment> chain) {
  const auto place = static_cast<std::uint16_t>(take_place());
  if (indirect_) {
    auto* const table = reinterpret_cast<wire::PackedDescriptor*>(guest_.at(table_of(place)));
    for (unsigned i = 0; i < segments_; ++i) {
      table[i] = {base::le64{chain[i].address}, base::le32{chain[i].length}, base::le16{0},
                  base::le16{flags_of(chain[i])}};
    }
    const auto bytes = static_cast<std::uint32_t>(segments_ * sizeof(wire::PackedDescriptor));
    put({table_of(place), bytes, false}, place, wire::descriptor_indirect);
    return;
  }
  for (unsigned i = 0; i < segments_; ++i) {
    const bool last = i + 1 == segments_;
    put(chain[i], place,
        static_cast<std::uint16_t>(flags_of(chain[i]) | (last ? 0 : wire::descriptor_next)));
  }
}

// One descriptor of the ring.
void PackedDriver::put(const Segment& segment, std::uint16_t place, std::uint16_t flags) {
  auto& descriptor = descriptors_[next_];
  flags = static_cast<std::uint16_t>(flags | available_flags());
  descriptor.address = base::le64{segment.address};
  descriptor.length = base::le32{segment.length};
  descriptor.id = base::le16{place};
  if (held_ == nullptr) {  // shown last of all: the device must not see the rest before
    held_ = &descriptor;
    held_flags_ = flags;
  } else {
    virtio::store_release(&descriptor.flags, base::le16{flags});
  }
  advance(next_, wrap_, 1);
  ++added_;
}

bool PackedDriver::publish() {
  if (!show()) return false;
  virtio::full_fence();
  return wants_kick();
}

bool PackedDriver::show() {
  if (held_ == nullptr) return false;
  virtio::store_release(&held_->flags, base::le16{held_flags_});
  held_ = nullptr;
  return true;
}

bool PackedDriver::wants_kick() {
  const auto added = std::exchange(added_, std::uint16_t{0});
  const auto asked = virtio::load_once(device_);
  const auto flags = asked.flags.host() & wire::event_flags_mask;
  if (flags != wire::event_descriptor || !event_index_) return flags != wire::event_disable;
  const auto offset_wrap = asked.offset_wrap.host();
  const bool wrap = (offset_wrap & wire::event_wrap) != 0;
  auto event = static_cast<std::uint16_t>(offset_wrap & ~wire::event_wrap);
  if (wrap != wrap_) event = static_cast<std::uint16_t>(event - size_);
  return passes(event, next_, static_cast<std::uint16_t>(next_ - added));
}

std::optional<Completed> PackedDriver::reap() {
  if (broken()) return std::nullopt;
  const auto& descriptor = descriptors_[reap_next_];
  const auto flags = virtio::load_acquire(&descriptor.flags).host();
  const bool available = (flags & wire::descriptor_available) != 0,
             used = (flags & wire::descriptor_used) != 0;
  if (available != used || used != reap_wrap_) return std::nullopt;
  const Completed done{descriptor.id.host(), descriptor.length.host()};
  if (!free_place(done.id)) return std::nullopt;
  advance(reap_next_, reap_wrap_, slots_);
  return done;
}

}  // namespace millrace::bench
