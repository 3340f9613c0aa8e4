#include "blk/disk.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "base/clock.hpp"
#include "blk/limits.hpp"
#include "virtio/features.hpp"

namespace millrace::blk {

namespace wire = virtio::wire;
namespace bit = virtio::wire::blk_feature;

namespace {

constexpr std::uint64_t sector_size = wire::blk_sector_size;

base::Result<void> check(const Config& config, const Geometry& geometry) {
  const auto bad = [&](const std::string& what) {
    return base::fail("disk " + config.name + ": " + what);
  };
  if (config.queues == 0 || config.queues > queues_max) {
    return bad("queues must be 1 to " + std::to_string(queues_max));
  }
  if (config.serial.size() > wire::blk_id_size) return bad("serial is longer than 20 bytes");
  const std::uint32_t block = config.block_size;
  if (block != 0 && (!std::has_single_bit(block) || block < 512 || block > 65536)) {
    return bad("block_size must be a power of two from 512 to 65536");
  }
  if (block != 0 && geometry.bytes % block != 0) {
    return bad("its size is not a multiple of block_size " + std::to_string(block));
  }
  if (config.segments_max == 0 || config.segments_max > limits::segments_max) {
    return bad("segments_max must be 1 to " + std::to_string(limits::segments_max));
  }
  if (config.size_max != 0 && config.size_max < 512) return bad("size_max must be 512 or more");
  if (config.discard_segments_max > limits::ranges_max) {
    return bad("discard_segments_max must be " + std::to_string(limits::ranges_max) + " at most");
  }
  return {};
}

// No queue is started any more.
void forget_memory(Backend& backend) {
  backend.leave_memory();
  backend.give_memory_back();
}

std::uint32_t sectors_of(std::uint64_t bytes) {
  constexpr std::uint64_t most = std::numeric_limits<std::uint32_t>::max();
  return static_cast<std::uint32_t>(std::min(bytes / sector_size, most));
}

}  // namespace

base::Result<std::unique_ptr<Device>> Disk::make(const Config& config, base::ReactorPool& pool,
                                                 std::unique_ptr<Backend> backend) {
  if (const auto ok = check(config, backend->geometry()); !ok) return base::Unexpected{ok.error()};
  return std::unique_ptr<Device>{new Disk{config, pool, std::move(backend)}};
}

Disk::Disk(const Config& config, base::ReactorPool& pool, std::unique_ptr<Backend> backend)
    : Device{config.name, config.queues, pool}, config_{config}, backend_{std::move(backend)} {
  self_ = std::make_shared<const Disk*>(this);
  for (unsigned i = 0; i < config.queues; ++i) {
    statistics_.push_back(std::make_unique<QueueStatistics>());
  }
  static_cast<void>(base::cycles_per_second());  // calibrated here, not on a reactor
  const std::string& id = config.serial.empty() ? config.name : config.serial;
  std::memcpy(state_.id.data(), id.data(), std::min(id.size(), state_.id.size()));
  fill_rules();
  fill_config_space();
  apply_write_mode();
}

void Disk::fill_rules() {
  const Geometry& geometry = backend_->geometry();
  Rules& rules = state_.rules;
  rules.bytes = geometry.bytes;
  state_.bytes = geometry.bytes;
  rules.block_size = config_.block_size != 0 ? config_.block_size : geometry.logical_block;
  rules.readonly = config_.readonly;
  rules.discard = !config_.readonly && geometry.can_discard;
  rules.write_zeroes = !config_.readonly;
  rules.may_unmap = geometry.can_unmap;
  const std::uint32_t ranges =
      config_.discard_segments_max != 0 ? config_.discard_segments_max : limits::ranges_default;
  rules.discard_ranges_max = rules.zero_ranges_max = ranges;
  const std::uint64_t asked = config_.discard_sectors_max != 0
                                  ? config_.discard_sectors_max
                                  : std::numeric_limits<std::uint32_t>::max();
  const auto most = [&](std::uint64_t backend_bytes) {
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(asked, sectors_of(backend_bytes)));
  };
  rules.discard_sectors_max = most(geometry.discard_max);
  rules.zero_sectors_max = most(geometry.zero_max);
}

void Disk::fill_config_space() {
  const Geometry& geometry = backend_->geometry();
  const Rules& rules = state_.rules;
  const std::uint32_t block = rules.block_size;
  wire::BlkConfig& out = space_;
  out.capacity = base::le64{geometry.bytes / sector_size};
  out.size_max = base::le32{config_.size_max};
  out.seg_max = base::le32{config_.segments_max};
  out.blk_size = base::le32{block};
  out.physical_block_exp = static_cast<std::uint8_t>(
      std::bit_width(std::max<std::uint32_t>(geometry.physical_block / block, 1)) - 1);
  out.alignment_offset =
      static_cast<std::uint8_t>(std::min<std::uint32_t>(geometry.alignment_offset / block, 255));
  out.min_io_size = base::le16{
      static_cast<std::uint16_t>(std::min<std::uint32_t>(geometry.io_min / block, 65535))};
  out.opt_io_size = base::le32{geometry.io_opt / block};
  out.writeback = config_.write_cache && !config_.readonly ? 1 : 0;
  out.num_queues = base::le16{static_cast<std::uint16_t>(config_.queues)};
  if (rules.discard) {
    out.max_discard_sectors = base::le32{rules.discard_sectors_max};
    out.max_discard_seg = base::le32{rules.discard_ranges_max};
    out.discard_sector_alignment =
        base::le32{std::max<std::uint32_t>(sectors_of(geometry.discard_granularity), 1)};
  }
  if (rules.write_zeroes) {
    out.max_write_zeroes_sectors = base::le32{rules.zero_sectors_max};
    out.max_write_zeroes_seg = base::le32{rules.zero_ranges_max};
    out.write_zeroes_may_unmap = rules.may_unmap ? 1 : 0;
  }
}

std::uint64_t Disk::features() const {
  namespace ring = virtio::feature;
  std::uint64_t out = ring::version_1 | ring::any_layout | ring::indirect_desc | ring::event_idx |
                      bit::seg_max | bit::blk_size | bit::topology | bit::mq | bit::flush;
  if (config_.size_max != 0) out |= bit::size_max;
  if (config_.packed) out |= ring::ring_packed;
  if (config_.in_order) out |= ring::in_order;
  if (config_.ring_reset) out |= ring::ring_reset;
  if (config_.readonly) return out | bit::ro;
  out |= bit::config_wce | bit::write_zeroes;
  if (state_.rules.discard) out |= bit::discard;
  return out;
}

// The write mode that a driver set stays across front-ends' repeated SET_FEATURES (a migration does
// that under a running driver): to fall back to a volatile cache behind its back would lose data. A
// new driver reads the truth in `writeback`.
void Disk::set_features(std::uint64_t features) {
  Device::set_features(features);
  apply_write_mode();
}

// §5.2.6.2: a driver that cannot flush is told of a write only when it is on the medium.
void Disk::apply_write_mode() {
  const bool can_flush = (negotiated() & bit::flush) != 0;
  state_.write_through = !config_.readonly && (space_.writeback == 0 || !can_flush);
}

bool Disk::any_started() const {
  for (unsigned i = 0; i < queues_max(); ++i) {
    if (worker(i) != nullptr) return true;
  }
  return false;
}

// What the backend keeps of the guest's memory goes by these three: it is told of memory before a
// queue can use it, and gives back what was left when the last queue that could has let go.
void Disk::start_queue(virtio::QueueStart start, Done done) {
  if (start.index < queues_max()) backend_->use_memory(start.memory);
  Device::start_queue(std::move(start), [this, self = std::weak_ptr{self_},
                                         done = std::move(done)](base::Result<void> result) {
    if (!result && !self.expired() && !any_started()) forget_memory(*backend_);
    done(std::move(result));
  });
}

void Disk::stop_queue(unsigned index, Stopped stopped) {
  Device::stop_queue(
      index, [this, self = std::weak_ptr{self_}, stopped = std::move(stopped)](std::uint32_t base) {
        if (!self.expired() && !any_started()) forget_memory(*backend_);
        stopped(base);
      });
}

void Disk::set_memory(std::shared_ptr<const virtio::GuestMemory> memory, Done done) {
  backend_->leave_memory();
  Device::set_memory(memory, [this, self = std::weak_ptr{self_}, memory,
                              done = std::move(done)](base::Result<void> result) {
    if (!self.expired()) {
      backend_->give_memory_back();
      if (any_started()) backend_->use_memory(memory);
    }
    done(std::move(result));
  });
}

std::span<const std::byte> Disk::config() const {
  return std::as_bytes(std::span{&space_, 1}).first(wire::blk_config_size);
}

base::Result<void> Disk::write_config(std::uint32_t offset, std::span<const std::byte> bytes) {
  if (offset != offsetof(wire::BlkConfig, writeback) || bytes.size() != 1 || config_.readonly) {
    return base::fail("only the writeback byte of a writable disk's configuration can be written");
  }
  const auto value = std::to_integer<std::uint8_t>(bytes.front());
  if (value > 1) return base::fail("writeback is 0 or 1");
  space_.writeback = value;
  apply_write_mode();
  return {};
}

Statistics Disk::statistics() const {
  Statistics out;
  const std::uint64_t now = base::cycles();
  for (const auto& queue : statistics_) {
    out.read_requests += queue->read_requests.get();
    out.read_bytes += queue->read_bytes.get();
    out.write_requests += queue->write_requests.get();
    out.write_bytes += queue->write_bytes.get();
    out.flush_requests += queue->flush_requests.get();
    out.discard_requests += queue->discard_requests.get();
    out.zero_requests += queue->zero_requests.get();
    out.io_errors += queue->io_errors.get();
    out.unsupported += queue->unsupported.get();
    out.in_flight += queue->in_flight.get();
    out.bounced += queue->bounced.get();
    out.buffered += queue->buffered.get();
    out.pinned += queue->pinned.get();
    out.polled += queue->polled.get();
    const std::uint64_t oldest = queue->oldest_cycles.get();
    if (oldest != 0 && oldest < now) {
      out.oldest_ns = std::max(out.oldest_ns, base::cycles_to_ns(now - oldest));
    }
    const auto latency = queue->latency.snapshot();
    for (std::size_t i = 0; i < latency.size(); ++i) out.latency[i] += latency[i];
  }
  return out;
}

base::Result<std::uint64_t> Disk::resize(std::uint64_t bytes) {
  const auto grown = backend_->resize(bytes);
  if (!grown) return base::fail("disk " + name() + ": " + grown.error().message);
  // A block that is only half there is not the guest's.
  const std::uint64_t whole = *grown - *grown % state_.rules.block_size;
  if (whole == state_.bytes.load()) return whole;
  state_.bytes = whole;
  space_.capacity = base::le64{whole / sector_size};
  config_changed();
  return whole;
}

std::unique_ptr<virtio::QueueWorker> Disk::make_worker(std::unique_ptr<virtio::Queue> queue) {
  CHECK(queue->index() < statistics_.size());
  QueueStatistics& statistics = *statistics_[queue->index()];
  auto channel = backend_->make_channel(Worker::depth(queue->size()), statistics);
  return std::make_unique<Worker>(std::move(queue), state_, config_.segments_max,
                                  std::move(channel), statistics);
}

}  // namespace millrace::blk
