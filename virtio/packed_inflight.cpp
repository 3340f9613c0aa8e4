#include "virtio/packed_inflight.hpp"

#include <algorithm>

#include "base/check.hpp"
#include "virtio/shared.hpp"

namespace millrace::virtio {
namespace {

// Flags of a descriptor that the driver made available in the lap with this wrap counter.
constexpr std::uint16_t available_flags(bool wrap) {
  return wrap ? wire::descriptor_available : wire::descriptor_used;
}

bool is_available(std::uint16_t flags, bool wrap) {
  constexpr std::uint16_t both = wire::descriptor_available | wire::descriptor_used;
  return (flags & both) == available_flags(wrap);
}

}  // namespace

struct PackedInflight::Image {
  std::vector<wire::InflightPackedEntry> entries;
  std::vector<bool> seen;
};

base::Result<PackedInflight, Fault> PackedInflight::open(wire::InflightPacked* region,
                                                         std::uint32_t size,
                                                         wire::PackedDescriptor* ring,
                                                         PackedPlace& place,
                                                         std::vector<PackedResubmit>& resubmit) {
  PackedInflight out{region, size};
  const auto version = load_acquire(&region->version);
  if (version == 0) {
    out.initialise(place);
    return out;
  }
  if (version != wire::inflight_version) return base::Unexpected{Fault::inflight_bad};
  const Fault fault = out.recover(ring, place, resubmit);
  if (fault != Fault::none) return base::Unexpected{fault};
  return out;
}

// The version comes last: a crash before it leaves a fresh region.
void PackedInflight::initialise(PackedPlace place) {
  for (std::uint32_t i = 0; i < size_; ++i) {
    next_[i] = static_cast<std::uint16_t>(i + 1);  // the last one names `size_`: the list's end
    store_once(&entries_[i].inflight, std::uint8_t{0});
    store_once(&entries_[i].next, next_[i]);
    store_once(&entries_[i].counter, std::uint64_t{0});
  }
  free_head_ = old_free_head_ = 0;
  used_ = old_used_ = place;
  store_once(&region_->features, std::uint64_t{0});
  store_once(&region_->entries, static_cast<std::uint16_t>(size_));
  store_heads(0, 0);
  store_places(place, place);
  store_release(&region_->version, wire::inflight_version);
}

Fault PackedInflight::recover(wire::PackedDescriptor* ring, PackedPlace& place,
                              std::vector<PackedResubmit>& resubmit) {
  if (load_once(&region_->entries) != size_) return Fault::inflight_bad;
  if (const Fault fault = settle_last_batch(ring, place); fault != Fault::none) return fault;
  Image image;
  image.seen.assign(size_, false);
  for (std::uint32_t i = 0; i < size_; ++i) {
    const auto& entry = entries_[i];
    wire::InflightPackedEntry copy{};
    copy.inflight = load_once(&entry.inflight);
    copy.next = load_once(&entry.next);
    copy.last = load_once(&entry.last);
    copy.count = load_once(&entry.count);
    copy.counter = load_once(&entry.counter);
    copy.id = load_once(&entry.id);
    copy.flags = load_once(&entry.flags);
    copy.length = load_once(&entry.length);
    copy.address = load_once(&entry.address);
    if (copy.inflight > 1) return Fault::inflight_bad;
    image.entries.push_back(copy);
    next_[i] = copy.next;
  }
  if (const Fault fault = find_free(image); fault != Fault::none) return fault;
  return find_inflight(image, resubmit);
}

// Did the driver see the last batch? Then it counts; else it never happened.
Fault PackedInflight::settle_last_batch(wire::PackedDescriptor* ring, PackedPlace& place) {
  const auto places = load_once(&region_->places);
  const auto heads = load_once(&region_->heads);
  const PackedPlace used{places.used_index, places.used_wrap != 0};
  const PackedPlace old{places.old_used_index, places.old_used_wrap != 0};
  if (used.index >= size_ || old.index >= size_ || heads.free_head > size_ ||
      heads.old_free_head > size_) {
    return Fault::inflight_bad;
  }
  const bool seen =
      used != old && !is_available(load_acquire(&ring[old.index].flags).host(), old.wrap);
  if (used != old && !seen) {
    // Later slots of the batch may say "used" already, and must not once the first one does.
    std::uint32_t slots = (used.index + size_ - old.index) % size_;
    if (slots == 0) slots = size_;
    for (PackedPlace at = old; slots != 0; --slots) {
      store_release(&ring[at.index].flags, base::le16{available_flags(at.wrap)});
      at.advance(1, size_);
    }
  }
  place = used_ = old_used_ = seen ? used : old;
  free_head_ = old_free_head_ = seen ? heads.free_head : heads.old_free_head;
  store_heads(free_head_, free_head_);
  store_places(used_, used_);
  return Fault::none;
}

Fault PackedInflight::find_free(Image& image) {
  for (std::uint16_t at = free_head_; at != size_; at = next_[at]) {
    if (at > size_ || image.seen[at]) return Fault::inflight_bad;
    image.seen[at] = true;
    if (image.entries[at].inflight != 0) store_release(&entries_[at].inflight, std::uint8_t{0});
    image.entries[at].inflight = 0;
  }
  return Fault::none;
}

Fault PackedInflight::find_inflight(const Image& image, std::vector<PackedResubmit>& resubmit) {
  auto seen = image.seen;
  std::vector<bool> ids(size_, false);
  for (std::uint32_t i = 0; i < size_; ++i) {
    const auto& first = image.entries[i];
    if (first.inflight == 0) continue;
    PackedResubmit buffer;
    buffer.entry = static_cast<std::uint16_t>(i);
    std::uint16_t at = buffer.entry;
    for (std::uint32_t n = 0; n < first.count; ++n) {
      if (at >= size_ || seen[at]) return Fault::inflight_bad;
      seen[at] = true;
      const auto& entry = image.entries[at];
      buffer.descriptors.push_back({base::le64{entry.address}, base::le32{entry.length},
                                    base::le16{entry.id}, base::le16{entry.flags}});
      last_[i] = at;
      at = entry.next;
    }
    if (buffer.descriptors.empty() || last_[i] != first.last) return Fault::inflight_bad;
    const auto id = buffer.descriptors.back().id.host();
    if (id >= size_ || ids[id]) return Fault::inflight_bad;
    ids[id] = true;
    counter_ = std::max(counter_, first.counter + 1);
    resubmit.push_back(std::move(buffer));
  }
  if (std::find(seen.begin(), seen.end(), false) != seen.end()) return Fault::inflight_bad;
  std::stable_sort(resubmit.begin(), resubmit.end(),
                   [&image](const PackedResubmit& a, const PackedResubmit& b) {
                     return image.entries[a.entry].counter < image.entries[b.entry].counter;
                   });
  return Fault::none;
}

// The specification's order: a crash at any store leaves either the old free list or the new one.
std::uint16_t PackedInflight::take(std::span<const wire::PackedDescriptor> descriptors) noexcept {
  const std::uint16_t first = free_head_;
  CHECK(first < size_);
  auto& head = entries_[first];
  store_release(&head.count, std::uint16_t{0});
  store_release(&head.counter, counter_++);
  store_release(&head.inflight, std::uint8_t{1});
  std::uint16_t count = 0;
  for (const auto& descriptor : descriptors) {
    const std::uint16_t at = free_head_;
    CHECK(at < size_);
    if (++count == descriptors.size()) {
      last_[first] = at;
      store_release(&head.last, at);
    }
    store_release(&head.count, count);
    auto& entry = entries_[at];
    store_once(&entry.address, descriptor.address.host());
    store_once(&entry.length, descriptor.length.host());
    store_once(&entry.flags, descriptor.flags.host());
    store_once(&entry.id, descriptor.id.host());
    free_head_ = next_[at];
    store_heads(free_head_, old_free_head_);
  }
  old_free_head_ = free_head_;
  store_heads(free_head_, free_head_);
  return first;
}

void PackedInflight::link_free(std::uint16_t entry) noexcept {
  const auto last = last_[entry];
  next_[last] = free_head_;
  store_release(&entries_[last].next, free_head_);
  free_head_ = entry;
}

// Once the heads are stored the entry is free, whatever its mark says.
void PackedInflight::untake(std::uint16_t entry) noexcept {
  link_free(entry);
  old_free_head_ = free_head_;
  store_heads(free_head_, free_head_);
  store_release(&entries_[entry].inflight, std::uint8_t{0});
}

void PackedInflight::give(std::uint16_t entry) noexcept {
  link_free(entry);
  store_heads(free_head_, old_free_head_);
}

void PackedInflight::prepare(PackedPlace used) noexcept {
  used_ = used;
  store_places(used_, old_used_);
}

void PackedInflight::commit(std::uint16_t entry) noexcept {
  store_release(&entries_[entry].inflight, std::uint8_t{0});
}

void PackedInflight::finish() noexcept {
  old_free_head_ = free_head_;
  old_used_ = used_;
  store_heads(free_head_, free_head_);
  store_places(used_, used_);
}

void PackedInflight::store_heads(std::uint16_t free_head, std::uint16_t old_free_head) noexcept {
  store_release(&region_->heads, {free_head, old_free_head});
}

void PackedInflight::store_places(PackedPlace used, PackedPlace old) noexcept {
  store_release(&region_->places, {used.index,
                                   old.index,
                                   static_cast<std::uint8_t>(used.wrap),
                                   static_cast<std::uint8_t>(old.wrap),
                                   {}});
}

}  // namespace millrace::virtio
