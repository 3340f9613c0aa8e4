#include "virtio/split_inflight.hpp"

#include <algorithm>

namespace millrace::virtio {

base::Result<SplitInflight, Fault> SplitInflight::open(wire::InflightSplit* region,
                                                       std::uint32_t size, std::uint16_t used,
                                                       std::vector<std::uint16_t>& resubmit) {
  SplitInflight out{region};
  const auto version = load_acquire(&region->version);
  if (version == 0) {
    out.initialise(size, used);
    return out;
  }
  if (version != wire::inflight_version) return base::Unexpected{Fault::inflight_bad};
  const Fault fault = out.recover(size, used, resubmit);
  if (fault != Fault::none) return base::Unexpected{fault};
  return out;
}

// The version comes last: a crash before it leaves a fresh region.
void SplitInflight::initialise(std::uint32_t size, std::uint16_t used) {
  for (std::uint32_t i = 0; i < size; ++i) {
    store_once(&entries_[i].inflight, std::uint8_t{0});
    store_once(&entries_[i].next, std::uint16_t{0});
    store_once(&entries_[i].counter, std::uint64_t{0});
  }
  store_once(&region_->features, std::uint64_t{0});
  store_once(&region_->entries, static_cast<std::uint16_t>(size));
  store_once(&region_->last_batch_head, std::uint16_t{0});
  store_once(&region_->used_index, used);
  store_release(&region_->version, wire::inflight_version);
}

Fault SplitInflight::recover(std::uint32_t size, std::uint16_t used,
                             std::vector<std::uint16_t>& resubmit) {
  struct Entry {
    bool inflight;
    std::uint16_t next;
    std::uint64_t counter;
  };
  std::vector<Entry> copy;
  bool any = false;
  for (std::uint32_t i = 0; i < size; ++i) {
    const auto inflight = load_once(&entries_[i].inflight);
    if (inflight > 1) return Fault::inflight_bad;
    any = any || inflight == 1;
    copy.push_back({inflight == 1, load_once(&entries_[i].next), load_once(&entries_[i].counter)});
  }
  // How much of the last batch the driver saw and we did not write down.
  const auto batch = static_cast<std::uint16_t>(used - load_once(&region_->used_index));
  last_batch_head_ = load_once(&region_->last_batch_head);
  if (any && (batch > size || load_once(&region_->entries) != size)) return Fault::inflight_bad;
  if (any && last_batch_head_ >= size) return Fault::inflight_bad;
  if (!any) {  // nothing to serve, whatever ring it was used with before
    initialise(size, used);
    last_batch_head_ = 0;
    return Fault::none;
  }
  std::uint16_t head = last_batch_head_;
  for (std::uint16_t i = 0; i < batch; ++i) {
    if (head >= size) return Fault::inflight_bad;
    copy[head].inflight = false;
    store_once(&entries_[head].inflight, std::uint8_t{0});
    head = copy[head].next;
  }
  store_release(&region_->used_index, used);
  for (std::uint32_t i = 0; i < size; ++i) {
    if (!copy[i].inflight) continue;
    resubmit.push_back(static_cast<std::uint16_t>(i));
    counter_ = std::max(counter_, copy[i].counter + 1);
  }
  std::stable_sort(resubmit.begin(), resubmit.end(), [&copy](std::uint16_t a, std::uint16_t b) {
    return copy[a].counter < copy[b].counter;
  });
  return Fault::none;
}

void SplitInflight::untake(std::uint16_t head) noexcept {
  store_release(&entries_[head].inflight, std::uint8_t{0});
}

void SplitInflight::give(std::uint16_t head) noexcept {
  store_release(&entries_[head].next, last_batch_head_);
  last_batch_head_ = head;
  store_release(&region_->last_batch_head, head);
}

void SplitInflight::commit(std::span<const std::uint16_t> heads, std::uint16_t used) noexcept {
  for (const auto head : heads) store_release(&entries_[head].inflight, std::uint8_t{0});
  store_release(&region_->used_index, used);
}

}  // namespace millrace::virtio
