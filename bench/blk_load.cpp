#include "bench/blk_load.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstring>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "base/clock.hpp"
#include "bench/ring_driver.hpp"
#include "virtio/features.hpp"
#include "virtio/wire/blk.hpp"

namespace millrace::bench {

namespace wire = virtio::wire;
using base::fail;
using base::Result;

namespace {

constexpr unsigned segments = 3;  // header, data, status
constexpr std::uint32_t rings_bytes = 4u << 20;
constexpr std::uint8_t no_status = 0xff;
constexpr std::uint64_t page = 4096;
constexpr std::uint64_t blocks_max = 0xffff'ffff;  // a load on a larger disk uses its start
constexpr std::uint64_t verified_max = 1u << 24;
constexpr unsigned depth_max = 8192;
constexpr std::uint32_t block_max = 1u << 20;
constexpr std::chrono::seconds connect_patience{5};

// xorshift64*: a few cycles a number. `bound` below 2^32.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_{seed | 1} {}
  std::uint64_t below(std::uint64_t bound) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    // The upper half scaled: bounds are below 2^32 here.
    return (state_ * 0x2545F4914F6CDD1Dull >> 32) * bound >> 32;
  }

 private:
  std::uint64_t state_;
};

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

// The disk as it was found, and where in the guest's memory the requests are.
struct Disk {
  BlkLoadConfig config;
  std::unique_ptr<SocketGuest> guest;
  std::uint64_t capacity = 0, blocks = 0;  // bytes; blocks of config.block in use
  std::uint64_t headers = 0, statuses = 0, data = 0;
};

// The loop, for one ring format.
template <class Driver>
class LoadOn final : public BlkLoad {
 public:
  explicit LoadOn(Disk disk)
      : disk_{std::move(disk)}, driver_{*disk_.guest, 0, segments}, sent_(driver_.places()) {}

  Result<LoadResult> run(const LoadTime& time) override;
  Result<std::uint64_t> verify() override;
  [[nodiscard]] std::uint64_t capacity() const override { return disk_.capacity; }
  [[nodiscard]] std::uint64_t features() const override { return disk_.guest->features(); }

 private:
  // Puts one request up; its data are those at data_of(driver.next_place()).
  void add(bool write, std::uint64_t block) {
    const auto& config = disk_.config;
    const auto place = driver_.next_place();
    const auto header_at = disk_.headers + place * sizeof(wire::BlkHeader);
    const auto type = static_cast<std::uint32_t>(write ? wire::BlkType::out : wire::BlkType::in);
    const wire::BlkHeader header{base::le32{type}, base::le32{0},
                                 base::le64{block * (config.block / wire::blk_sector_size)}};
    std::memcpy(disk_.guest->at(header_at), &header, sizeof header);
    *disk_.guest->at(disk_.statuses + place) = std::byte{no_status};
    const std::array<Segment, segments> chain{
        Segment{header_at, sizeof header, false},
        Segment{data_of(place), config.block, !write},
        Segment{disk_.statuses + place, 1, true},
    };
    sent_[place] = {base::cycles(), block, place, write};
    driver_.add(chain);
    ++in_flight_;
  }

  void publish(LoadResult& result) {
    if (!driver_.publish()) return;
    driver_.kick();
    ++result.kicks;
  }

  struct Sent {
    std::uint64_t at = 0, block = 0;
    unsigned place = 0;
    bool write = false;
  };
  // A finished request; none where none is.
  std::optional<Sent> reap() {
    const auto done = driver_.reap();
    if (!done) return std::nullopt;
    const auto& sent = sent_[done->id];
    --in_flight_;
    const auto status = *disk_.guest->at(disk_.statuses + sent.place);
    failed_ = failed_ || status != std::byte{0};
    return sent;
  }

  [[nodiscard]] std::uint64_t data_of(unsigned place) const {
    return disk_.data + std::uint64_t{place} * disk_.config.block;
  }
  [[nodiscard]] std::span<std::byte> data(unsigned place) {
    return {disk_.guest->at(data_of(place)), disk_.config.block};
  }
  // Why nothing more is worth doing; empty: all is well.
  [[nodiscard]] std::string trouble() const {
    if (failed_) return "a request failed: the device gave a status that is not OK";
    if (driver_.broken()) return "the device gave back a buffer that it did not have";
    return {};
  }
  Result<void> finish();

  Disk disk_;
  Driver driver_;
  std::vector<Sent> sent_;
  unsigned in_flight_ = 0;
  bool failed_ = false;
};

// Waits for what is in flight, so that the next run starts with an idle device.
template <class Driver>
Result<void> LoadOn<Driver>::finish() {
  const auto deadline = base::cycles() + base::ns_to_cycles(patience_ns);
  while (in_flight_ > 0 && trouble().empty()) {
    if (!reap() && base::cycles() > deadline) return fail(stood_still(in_flight_));
  }
  return trouble().empty() ? Result<void>{} : fail(trouble());
}

template <class Driver>
Result<LoadResult> LoadOn<Driver>::run(const LoadTime& time) {
  const auto& config = disk_.config;
  Random random{base::cycles()};
  LoadResult result;
  base::Histogram latency;
  std::uint64_t position = 0;
  Pace pace{time};
  for (;;) {
    while (in_flight_ < config.depth) {
      const auto block = config.sequential ? position++ % disk_.blocks : random.below(disk_.blocks);
      add(random.below(100) < config.write_percent, block);
    }
    publish(result);
    unsigned reaped = 0;
    while (const auto sent = reap()) {
      ++reaped;
      if (pace.counts()) latency.add(base::cycles_to_ns(base::cycles() - sent->at));
    }
    result.operations += pace.counts() ? reaped : 0;
    if (const auto why = trouble(); reaped > 0 && !why.empty()) return fail(why);
    const auto state = pace.round(reaped, result, latency);
    if (state == Pace::State::stalled) return fail(stood_still(in_flight_));
    if (state == Pace::State::over) break;
  }
  if (auto ok = finish(); !ok) return base::Unexpected{ok.error()};
  result.bytes = result.operations * config.block;
  result.latency = latency.snapshot();
  return result;
}

template <class Driver>
Result<std::uint64_t> LoadOn<Driver>::verify() {
  if (disk_.blocks > verified_max) return fail("a disk that is verified has a smaller span");
  LoadResult result;
  std::vector<std::uint32_t> order(disk_.blocks);
  std::iota(order.begin(), order.end(), 0u);
  for (const bool write : {true, false}) {
    std::shuffle(order.begin(), order.end(), std::mt19937_64{disk_.blocks});
    std::size_t next = 0, done = 0;
    auto deadline = base::cycles() + base::ns_to_cycles(patience_ns);
    while (done < order.size()) {
      while (in_flight_ < disk_.config.depth && next < order.size()) {
        if (write) fill(data(driver_.next_place()), order[next]);
        add(write, order[next++]);
      }
      publish(result);
      while (const auto sent = reap()) {
        ++done;
        deadline = base::cycles() + base::ns_to_cycles(patience_ns);
        if (!write && !holds(data(sent->place), sent->block)) {
          return fail("block " + std::to_string(sent->block) + " does not hold what was written");
        }
      }
      if (!trouble().empty()) return fail(trouble());
      if (base::cycles() > deadline) return fail(stood_still(in_flight_));
    }
  }
  return order.size();
}

Result<void> find_disk(Disk& disk) {
  const auto& config = disk.config;
  GuestConfig guest;
  guest.rings = 1;
  guest.listen = config.listen;
  guest.size = static_cast<std::uint16_t>(std::bit_ceil(config.depth * segments));
  guest.features = wire::blk_feature::ro | wire::blk_feature::blk_size |
                   wire::blk_feature::seg_max | wire::blk_feature::flush |
                   (config.packed ? virtio::feature::ring_packed : 0);
  const std::uint64_t places = guest.size / segments;
  guest.memory = rings_bytes + places * (config.block + sizeof(wire::BlkHeader) + 1);
  guest.memory = (guest.memory + page - 1) / page * page;
  auto made = SocketGuest::connect(config.socket, guest, connect_patience);
  if (!made) return base::Unexpected{made.error()};
  disk.guest = *std::move(made);
  if (config.packed && !disk.guest->packed()) return fail("this back-end has no packed rings");
  if (config.write_percent > 0 && (disk.guest->features() & wire::blk_feature::ro) != 0) {
    return fail("this disk is read-only");
  }
  const auto bytes = disk.guest->frontend().get_config(0, wire::blk_config_size);
  if (!bytes) return base::Unexpected{bytes.error()};
  wire::BlkConfig seen{};
  std::memcpy(&seen, bytes->data(), std::min(bytes->size(), sizeof seen));
  disk.capacity = seen.capacity.host() * wire::blk_sector_size;
  const auto used = config.span == 0 ? disk.capacity : std::min(disk.capacity, config.span);
  disk.blocks = used / config.block;
  if (disk.blocks == 0) return fail("the disk is smaller than one request");
  disk.blocks = std::min(disk.blocks, blocks_max);
  disk.headers = disk.guest->allocate(places * sizeof(wire::BlkHeader));
  disk.statuses = disk.guest->allocate(places);
  disk.data = disk.guest->allocate(places * config.block, page);
  return {};
}

}  // namespace

Result<std::unique_ptr<BlkLoad>> BlkLoad::make(const BlkLoadConfig& config) {
  if (config.depth == 0 || config.depth > depth_max) {
    return fail("the depth is 1 to " + std::to_string(depth_max));
  }
  if (config.block == 0 || config.block % wire::blk_sector_size != 0 || config.block > block_max) {
    return fail("the size of a request is a multiple of 512, 1 MiB at most");
  }
  Disk disk;
  disk.config = config;
  if (auto ok = find_disk(disk); !ok) return fail(config.socket + ": " + ok.error().message);
  if (disk.guest->packed()) {
    return std::unique_ptr<BlkLoad>{std::make_unique<LoadOn<PackedDriver>>(std::move(disk))};
  }
  return std::unique_ptr<BlkLoad>{std::make_unique<LoadOn<SplitDriver>>(std::move(disk))};
}

}  // namespace millrace::bench
