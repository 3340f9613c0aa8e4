#include "bench/ring_driver.hpp"

#include "base/check.hpp"
#include "virtio/shared.hpp"

namespace millrace::bench {

namespace wire = virtio::wire;

RingDriver::RingDriver(SocketGuest& guest, unsigned ring, unsigned segments)
    : guest_{guest}, ring_{ring}, segments_{segments}, places_{guest.ring(ring).size / segments} {
  CHECK(places_ > 0);
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
  virtio::store_once(&available_->flags, base::le16{wire::available_no_interrupt});
}

void SplitDriver::add(std::span<const Segment> chain) {
  const unsigned place = take_place();
  const auto head = static_cast<std::uint16_t>(place * segments_);
  for (unsigned i = 0; i < segments_; ++i) {
    const bool last = i + 1 == segments_;
    const auto flags = static_cast<std::uint16_t>((chain[i].writable ? wire::descriptor_write : 0) |
                                                  (last ? 0 : wire::descriptor_next));
    descriptors_[head + i] = {base::le64{chain[i].address}, base::le32{chain[i].length},
                              base::le16{flags},
                              base::le16{static_cast<std::uint16_t>(last ? 0 : head + i + 1)}};
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

bool SplitDriver::wants_kick() const {
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
  const auto place = element.id.host() % segments_ == 0 ? element.id.host() / segments_ : places_;
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
  for (unsigned i = 0; i < segments_; ++i) {
    auto& descriptor = descriptors_[next_];
    const auto flags = static_cast<std::uint16_t>(available_flags() |
                                                  (chain[i].writable ? wire::descriptor_write : 0) |
                                                  (i + 1 == segments_ ? 0 : wire::descriptor_next));
    descriptor.address = base::le64{chain[i].address};
    descriptor.length = base::le32{chain[i].length};
    descriptor.id = base::le16{place};
    if (held_ == nullptr) {  // shown last of all: the device must not see the rest before
      held_ = &descriptor;
      held_flags_ = flags;
    } else {
      virtio::store_release(&descriptor.flags, base::le16{flags});
    }
    advance(next_, wrap_, 1);
  }
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

bool PackedDriver::wants_kick() const {
  const auto flags = virtio::load_once(&device_->flags).host() & wire::event_flags_mask;
  return flags != wire::event_disable;
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
  advance(reap_next_, reap_wrap_, segments_);
  return done;
}

}  // namespace millrace::bench
