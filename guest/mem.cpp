#include "guest/mem.hpp"

#include <cstring>

#include "guest/mem_worker.hpp"

namespace millrace::guest {

namespace wire = virtio::wire;

Mem::Mem(const std::string& name, const MemSettings& settings, const Means& means)
    : Device{name, 1, means.pool}, reclaimer_{means.reclaimer}, state_{settings.requested} {}

// A driver that knows it does not look at memory that it has not plugged, which would make pages of
// it. A reset of the queue alone would lose the record behind its part of the inflight region.
std::uint64_t Mem::features() const {
  return (ring_features & ~virtio::feature::ring_reset) | wire::mem_feature::unplugged_inaccessible;
}

std::span<const std::byte> Mem::config() const {
  space_ = state_.config();
  return std::as_bytes(std::span{&space_, 1});
}

base::Result<void> Mem::write_config(std::uint32_t offset, std::span<const std::byte> bytes) {
  if (offset != 0 || bytes.size() != wire::mem_place_size) {
    return base::fail("only the place of a memory device can be written, all of it");
  }
  wire::MemConfig said{};
  std::memcpy(&said, bytes.data(), bytes.size());
  const MemPlace place{said.addr.host(), said.region_size.host(), said.block_size.host()};
  const auto now = state_.config();
  const bool moves = now.addr.host() != place.address || now.region_size.host() != place.size;
  if (moves && worker(0) != nullptr) {
    return base::fail("the region cannot move while a driver has the device");
  }
  return state_.set_place(place);
}

void Mem::set_kept(std::shared_ptr<virtio::KeptArea> area) {
  if (state_.set_kept(std::move(area))) config_changed();
}

void Mem::set_connected(bool connected) {
  Device::set_connected(connected);
  if (!connected) state_.forget();
}

base::Result<std::uint64_t> Mem::set_size(std::uint64_t bytes) {
  const auto news = state_.set_requested(bytes);
  if (!news) return base::fail(name() + ": " + news.error().message);
  if (*news) config_changed();
  return bytes;
}

std::unique_ptr<virtio::QueueWorker> Mem::make_worker(std::unique_ptr<virtio::Queue> queue) {
  return std::make_unique<MemWorker>(std::move(queue), state_, reclaimer_);
}

std::vector<Figure> Mem::figures() const {
  const auto now = state_.config();
  const auto& counters = state_.counters;
  return {{"requested_bytes", state_.requested()},
          {"plugged_bytes", now.plugged_size.host()},
          {"region_bytes", now.region_size.host()},
          {"block_bytes", now.block_size.host()},
          {"plug_requests", counters.plugged.get()},
          {"unplug_requests", counters.unplugged.get()},
          {"refused_requests", counters.refused.get()},
          {"wrong_requests", counters.wrong.get()},
          {"reclaimed_bytes", state_.reclaimed.reclaimed.load()},
          {"kept_bytes", state_.reclaimed.kept.load()},
          {"pinned_bytes", state_.reclaimed.pinned.load()},
          {"refused_bytes", state_.reclaimed.refused.load()}};
}

}  // namespace millrace::guest
