#include "bench/blk_load.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "base/clock.hpp"
#include "bench/dice.hpp"
#include "bench/disk_end.hpp"
#include "virtio/shared.hpp"

namespace millrace::bench {

using base::fail;
using base::Result;

namespace {

constexpr std::uint64_t verified_max = 1u << 24;
constexpr unsigned depth_max = 8192;
constexpr std::uint32_t block_max = 1u << 20;
constexpr double gap_max = 1e6;  // microseconds

// What a verified block holds: its own number in every eight bytes, mixed with the place in it.
void fill(std::span<std::byte> block, std::uint64_t number) {
  for (std::size_t at = 0; at + 8 <= block.size(); at += 8) {
    const std::uint64_t value = (number + 1) * 0x9e37'79b9'7f4a'7c15ull ^ at;
    std::memcpy(block.data() + at, &value, sizeof value);
  }
}

bool holds(std::span<const std::byte> block, std::uint64_t number) {
  for (std::size_t at = 0; at + 8 <= block.size(); at += 8) {
    std::uint64_t value = 0;
    std::memcpy(&value, block.data() + at, sizeof value);
    if (value != ((number + 1) * 0x9e37'79b9'7f4a'7c15ull ^ at)) return false;
  }
  return true;
}

bool is_zeros(std::span<const std::byte> block) {
  return std::ranges::all_of(block, [](std::byte each) { return each == std::byte{0}; });
}

// `zeros`: nothing is written, and what is read into buffers that hold something else is zeros.
template <class Driver>
Result<std::uint64_t> verify_disk(DiskEnd<Driver>& end, bool zeros) {
  if (end.disk().blocks > verified_max) return fail("a disk that is verified has a smaller span");
  std::vector<std::uint32_t> order(end.disk().blocks);
  std::iota(order.begin(), order.end(), 0u);
  for (const bool write : {true, false}) {
    if (write && zeros) continue;
    std::shuffle(order.begin(), order.end(), std::mt19937_64{end.disk().blocks});
    std::size_t next = 0, done = 0;
    auto deadline = base::cycles() + base::ns_to_cycles(patience_ns);
    while (done < order.size()) {
      while (end.in_flight() < end.disk().config.depth && next < order.size()) {
        if (write || zeros) fill(end.data(end.next_place()), order[next]);
        end.add(write, order[next++], base::cycles());
      }
      end.show();
      virtio::full_fence();
      end.kick();
      while (const auto sent = end.reap()) {
        ++done;
        deadline = base::cycles() + base::ns_to_cycles(patience_ns);
        const auto data = end.data(sent->place);
        if (write || (zeros ? is_zeros(data) : holds(data, sent->block))) continue;
        return fail("block " + std::to_string(sent->block) +
                    (zeros ? " does not read as zeros" : " does not hold what was written"));
      }
      if (!end.trouble().empty()) return fail(end.trouble());
      if (base::cycles() > deadline) return fail(stood_still(end.in_flight()));
    }
  }
  return order.size();
}

// The loop over all disks, for one ring format.
template <class Driver>
class LoadOn final : public BlkLoad {
 public:
  explicit LoadOn(std::vector<Disk> disks, const BlkLoadConfig& config) : config_{config} {
    for (auto& disk : disks) ends_.push_back(std::make_unique<DiskEnd<Driver>>(std::move(disk)));
  }

  Result<LoadResult> run(const LoadTime& time) override;
  Result<std::uint64_t> verify() override { return verify_all(false); }
  Result<std::uint64_t> verify_zeros() override { return verify_all(true); }
  [[nodiscard]] std::uint64_t capacity() const override { return ends_.front()->disk().capacity; }
  [[nodiscard]] std::uint64_t features() const override {
    return ends_.front()->disk().guest->features();
  }

 private:
  Result<std::uint64_t> verify_all(bool zeros) {
    std::uint64_t blocks = 0;
    for (auto& end : ends_) {
      const auto verified = verify_disk(*end, zeros);
      if (!verified) return verified;
      blocks += *verified;
    }
    return blocks;
  }
  // Keeps the depth. Answers whether the device has anything new to see.
  bool fill_up(DiskEnd<Driver>& end) {
    if (end.in_flight() == config_.depth) return false;
    const auto now = base::cycles();
    while (end.in_flight() < config_.depth) {
      const auto blocks = end.disk().blocks;
      const auto block = config_.sequential ? position_++ % blocks : dice_.below(blocks);
      const bool write = config_.write_percent > 0 && dice_.below(100) < config_.write_percent;
      end.add(write, block, now);
    }
    end.show();
    return true;
  }
  // Takes in what is done; calls `each` with how long it took, in TSC cycles: too little by what a
  // few of them cost here at most. Answers how many.
  template <class Each>
  unsigned reap(DiskEnd<Driver>& end, Each each) {
    auto sent = end.reap();
    if (!sent) return 0;
    constexpr unsigned few = 8;  // between two looks at the clock
    std::uint64_t now = 0;
    unsigned count = 0;
    for (; sent; sent = end.reap(), ++count) {
      if (count % few == 0) now = base::cycles();
      each(now - sent->at);
    }
    return count;
  }

  const BlkLoadConfig config_;
  std::vector<std::unique_ptr<DiskEnd<Driver>>> ends_;
  Dice dice_{base::cycles()};
  std::uint64_t position_ = 0;
};

template <class Driver>
Result<LoadResult> LoadOn<Driver>::run(const LoadTime& time) {
  LoadResult result;
  base::FineHistogram latency;
  Pace pace{time};
  const auto gap = base::ns_to_cycles(static_cast<std::uint64_t>(config_.gap_us * 1e3));
  std::uint64_t next = 0;  // no request before that
  // A turn is one look at every disk, with one fence between what is shown and whom to kick.
  for (auto state = Pace::State::running; state != Pace::State::over;) {
    bool shown = false;
    for (auto& end : ends_) {
      if (gap == 0 || base::cycles() >= next) shown |= fill_up(*end);
    }
    if (shown) virtio::full_fence();
    unsigned reaped = 0;
    for (auto& end : ends_) {
      result.kicks += end->kick() ? 1 : 0;
      const auto count = reap(*end, [&](std::uint64_t took) {
        if (pace.counts()) latency.add(base::cycles_to_ns(took));
      });
      if (count == 0) continue;
      reaped += count;
      if (gap > 0) next = base::cycles() + gap;
      if (!end->well()) return fail(end->trouble());
    }
    result.operations += pace.counts() ? reaped : 0;
    state = pace.round(reaped, result, latency);
    if (state == Pace::State::stalled) return fail(stood_still(ends_.front()->in_flight()));
  }
  for (auto& end : ends_) {
    if (auto ok = end->finish(); !ok) return base::Unexpected{ok.error()};
  }
  result.bytes = result.operations * config_.block;
  result.latency = latency.snapshot();
  return result;
}

template <class Driver>
std::unique_ptr<BlkLoad> load_on(std::vector<Disk> disks, const BlkLoadConfig& config) {
  return std::make_unique<LoadOn<Driver>>(std::move(disks), config);
}

}  // namespace

Result<std::unique_ptr<BlkLoad>> BlkLoad::make(const BlkLoadConfig& config) {
  if (config.depth == 0 || config.depth > depth_max) {
    return fail("the depth is 1 to " + std::to_string(depth_max));
  }
  if (config.block == 0 || config.block % virtio::wire::blk_sector_size != 0 ||
      config.block > block_max) {
    return fail("the size of a request is a multiple of 512, 1 MiB at most");
  }
  if (config.gap_us < 0 || config.gap_us > gap_max) return fail("--gap is 0 to 1000000");
  if (config.gap_us > 0 && (config.depth != 1 || !config.more.empty())) {
    return fail("--gap is for one disk and --depth 1");
  }
  std::vector<Disk> disks;
  std::vector<std::string> sockets{config.socket};
  sockets.insert(sockets.end(), config.more.begin(), config.more.end());
  for (const auto& socket : sockets) {
    auto one = config;
    one.socket = socket;
    auto disk = find_disk(one);
    if (!disk) return fail(socket + ": " + disk.error().message);
    disks.push_back(*std::move(disk));
  }
  return config.packed ? load_on<PackedDriver>(std::move(disks), config)
                       : load_on<SplitDriver>(std::move(disks), config);
}

}  // namespace millrace::bench
