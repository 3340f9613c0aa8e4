#include "guest/balloon.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

namespace millrace::guest {

namespace wire = virtio::wire;
namespace bit = virtio::wire::balloon_feature;
using wire::BalloonConfig, wire::BalloonStat;

namespace {

constexpr std::uint64_t page = wire::balloon_page_size;

// In host order: it is read on the machine that wrote it. Whoever changes a field changes the
// version.
constexpr std::uint32_t record_version = 1;
struct BalloonRecord {
  std::uint32_t version, size;
  std::uint32_t configured, pages;  // in pages, as the configuration and the last command have it
};

base::le32 pages_of(std::uint64_t bytes) {
  constexpr std::uint64_t most = std::numeric_limits<std::uint32_t>::max();
  return base::le32{static_cast<std::uint32_t>(std::min(bytes / page, most))};
}

}  // namespace

Balloon::Balloon(const std::string& name, const BalloonSettings& settings, const Means& means)
    : Device{name, queues_max, means.pool}, settings_{settings}, reclaimer_{means.reclaimer} {
  space_.num_pages = pages_of(settings.size);
  if (settings.stats_s != 0) {
    stats_timer_ =
        means.loop.every(std::chrono::seconds{settings.stats_s}, [this] { want_stats(); });
  }
}

std::uint64_t Balloon::features() const {
  std::uint64_t out = ring_features;
  if (settings_.stats_s != 0) out |= bit::stats_vq;
  if (settings_.deflate_on_oom) out |= bit::deflate_on_oom;
  if (settings_.reporting) out |= bit::page_reporting;
  return out;
}

// A driver that begins has an empty balloon; a front-end that goes on says what there is.
void Balloon::set_features(std::uint64_t features) {
  Device::set_features(features);
  space_.actual = base::le32{0};
}

std::span<const std::byte> Balloon::config() const {
  return std::as_bytes(std::span{&space_, 1});
}

base::Result<void> Balloon::write_config(std::uint32_t offset, std::span<const std::byte> bytes) {
  if (offset != offsetof(BalloonConfig, actual) || bytes.size() != sizeof space_.actual) {
    return base::fail("only the field actual of a balloon's configuration can be written");
  }
  std::memcpy(&space_.actual, bytes.data(), sizeof space_.actual);
  return {};
}

base::Result<std::uint64_t> Balloon::set_size(std::uint64_t bytes) {
  const auto pages = pages_of(bytes);
  commanded_ = true;
  if (pages.host() != space_.num_pages.host()) {
    space_.num_pages = pages;
    keep();
    config_changed();
  }
  return pages.host() * page;
}

// The operator's last word counts: a command's to this process, then one to the process before,
// unless the configuration was changed since.
void Balloon::set_kept(std::shared_ptr<virtio::KeptArea> area) {
  kept_ = std::move(area);
  if (kept_ == nullptr) return;
  const auto bytes = kept_->load();
  BalloonRecord record{};
  if (!commanded_ && bytes.size() == sizeof record) {
    std::memcpy(&record, bytes.data(), sizeof record);
  }
  const bool taken = record.version == record_version && record.size == sizeof record &&
                     record.configured == pages_of(settings_.size).host() &&
                     record.pages != space_.num_pages.host();
  if (taken) space_.num_pages = base::le32{record.pages};
  keep();
  if (taken) config_changed();
}

void Balloon::keep() {
  if (kept_ == nullptr) return;
  const BalloonRecord record{.version = record_version,
                             .size = sizeof record,
                             .configured = pages_of(settings_.size).host(),
                             .pages = space_.num_pages.host()};
  kept_->store(std::as_bytes(std::span{&record, 1}));
}

unsigned Balloon::stats_queue() const {
  return (negotiated() & bit::stats_vq) != 0 ? 2 : queues_max;
}

unsigned Balloon::report_queue() const {
  if ((negotiated() & bit::page_reporting) == 0) return queues_max;
  return stats_queue() == queues_max ? 2 : 3;
}

std::unique_ptr<virtio::QueueWorker> Balloon::make_worker(std::unique_ptr<virtio::Queue> queue) {
  const unsigned index = queue->index();
  if (index == stats_queue()) return std::make_unique<StatsWorker>(std::move(queue), stats_);
  if (index > 1 && index != report_queue()) return nullptr;
  const auto kind = index == 0   ? BalloonQueue::inflate
                    : index == 1 ? BalloonQueue::deflate
                                 : BalloonQueue::report;
  return std::make_unique<BalloonWorker>(std::move(queue), kind, reclaimer_,
                                         counters_[static_cast<unsigned>(kind)], reclaimed_);
}

void Balloon::want_stats() {
  const auto index = stats_queue();
  if (index == queues_max || worker(index) == nullptr) return;
  stats_.wanted.store(true, std::memory_order_relaxed);
  pool().at(queue_status(index).reactor).wake();
}

std::vector<Figure> Balloon::figures() const {
  const auto named = [this](BalloonQueue kind) {
    return counters_[static_cast<unsigned>(kind)].bytes.get();
  };
  const auto said = [this](BalloonStat stat) {
    return stats_.values[static_cast<unsigned>(stat)].get();
  };
  return {{"target_bytes", space_.num_pages.host() * page},
          {"actual_bytes", space_.actual.host() * page},
          {"inflated_bytes", named(BalloonQueue::inflate)},
          {"deflated_bytes", named(BalloonQueue::deflate)},
          {"reported_bytes", named(BalloonQueue::report)},
          {"reclaimed_bytes", reclaimed_.reclaimed.load()},
          {"kept_bytes", reclaimed_.kept.load()},
          {"pinned_bytes", reclaimed_.pinned.load()},
          {"refused_bytes", reclaimed_.refused.load()},
          {"stats_updates", stats_.updates.get()},
          {"guest_free_bytes", said(BalloonStat::free_memory)},
          {"guest_total_bytes", said(BalloonStat::total_memory)},
          {"guest_available_bytes", said(BalloonStat::available_memory)},
          {"guest_cache_bytes", said(BalloonStat::disk_caches)},
          {"guest_major_faults", said(BalloonStat::major_faults)},
          {"guest_minor_faults", said(BalloonStat::minor_faults)}};
}

}  // namespace millrace::guest
