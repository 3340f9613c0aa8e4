#include "switch/mac_table.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <memory>
#include <new>

#include "base/check.hpp"

namespace millrace::vswitch {

namespace {
constexpr std::size_t huge_page = 2u << 20;
}

void MacTable::Unmap::operator()(Bucket*) const noexcept {
  ::munmap(memory, bytes);
}

MacTable::MacTable(const MacTableConfig& config)
    : seed_{config.seed},
      limit_ticks_{std::numeric_limits<std::uint32_t>::max()},
      renew_ticks_{1u << 30},
      addresses_max_{config.addresses_max},
      bucket_count_{std::bit_ceil(std::max<std::size_t>(2, config.addresses_max / (ways / 2)))} {
  if (config.ageing_ticks != 0) {
    const auto ageing = std::min(config.ageing_ticks, 1u << 30);
    renew_ticks_ = std::max(1u, ageing / 4);
    limit_ticks_ = ageing + renew_ticks_;
  }
  const std::size_t bytes = bucket_count_ * sizeof(Bucket);
  const bool huge = bytes >= huge_page;
  const std::size_t mapped = huge ? bytes + huge_page : bytes;
  // Fresh pages are zero and cost nothing until an address lands there.
  void* memory =
      ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc{};
  void* begin = memory;
  std::size_t room = mapped;
  if (huge) {
    // In large pages where the system gives them: look-ups go anywhere.
    begin = std::align(huge_page, bytes, begin, room);
    static_cast<void>(::madvise(begin, bytes, MADV_HUGEPAGE));
  }
  buckets_ = {static_cast<Bucket*>(begin), Unmap{memory, mapped}};
}

std::array<std::size_t, 2> MacTable::homes(MacKey key) const noexcept {
  __extension__ using Wide = unsigned __int128;
  const Wide product = Wide{key ^ seed_} * (std::rotl(seed_, 32) | 1);
  std::uint64_t hash =
      static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
  hash *= 0x9fb21c651e98df25ull;
  const std::size_t mask = bucket_count_ - 1;
  const std::size_t first = (hash >> 8) & mask;
  const std::size_t second = (hash >> 36) & mask;
  return {first, second == first ? second ^ 1 : second};
}

// A place without an address has key 0.
MacTable::Place MacTable::locate(MacKey key) const noexcept {
  if (key == 0) return {};
  for (const std::size_t home : homes(key)) {
    Bucket& bucket = buckets_[home];
    for (unsigned i = 0; i < ways; ++i) {
      if (bucket.keys[i] == key) return {&bucket, i};
    }
  }
  return {};
}

void MacTable::prefetch_homes(MacKey key) const noexcept {
  for (const std::size_t home : homes(key)) {
    const Bucket& bucket = buckets_[home];
    __builtin_prefetch(&bucket.keys);
    __builtin_prefetch(&bucket.stamps);
  }
}

bool MacTable::expired(const Bucket& bucket, unsigned way, std::uint32_t now) const noexcept {
  return bucket.fixed[way] == 0 && now - bucket.stamps[way] >= limit_ticks_;
}

PortId MacTable::find_in_table(MacKey key, std::uint32_t now) noexcept {
  const Place at = locate(key);
  const bool here = at.bucket != nullptr && !expired(*at.bucket, at.way, now);
  const PortId port = here ? at.bucket->ports[at.way] : no_port;
  memo_of(key, now) = {key, epoch_, port};
  return port;
}

void MacTable::clear(Bucket& bucket, unsigned way) noexcept {
  if (bucket.fixed[way] == 0) --learned_[bucket.ports[way]];
  --size_;
  ++epoch_;
  bucket.keys[way] = 0;
  bucket.fixed[way] = 0;
  bucket.moves[way] = 0;
}

MacTable::Place MacTable::vacancy(MacKey key, std::uint32_t now) noexcept {
  Place best;
  unsigned best_free = 0;
  for (const std::size_t home : homes(key)) {
    Bucket& bucket = buckets_[home];
    unsigned empty = 0, way = 0;
    for (unsigned i = 0; i < ways; ++i) {
      if (bucket.keys[i] != 0 && expired(bucket, i, now)) clear(bucket, i);
      if (bucket.keys[i] != 0) continue;
      ++empty;
      way = i;
    }
    if (empty > best_free) {
      best = {&bucket, way};
      best_free = empty;
    }
  }
  return best;
}

MacTable::Learned MacTable::insert(MacKey key, PortId port, std::uint32_t quota,
                                   std::uint32_t now) noexcept {
  if (learned_[port] >= quota || size_ >= addresses_max_) return Learned::refused;
  const Place at = vacancy(key, now);
  if (at.bucket == nullptr) return Learned::refused;
  at.bucket->keys[at.way] = key;
  at.bucket->stamps[at.way] = now;
  at.bucket->ports[at.way] = port;
  ++learned_[port];
  ++size_;
  ++epoch_;
  return Learned::news;
}

bool MacTable::move(Place at, PortId port, std::uint32_t quota, std::uint32_t now) noexcept {
  Bucket& bucket = *at.bucket;
  if (learned_[port] >= quota) return false;
  --learned_[bucket.ports[at.way]];
  ++learned_[port];
  ++epoch_;
  bucket.ports[at.way] = port;
  bucket.stamps[at.way] = now;
  return true;
}

MacTable::Learned MacTable::learn_in_table(MacKey key, PortId port, std::uint32_t quota,
                                           std::uint32_t now) noexcept {
  const Place at = locate(key);
  if (at.bucket == nullptr) return insert(key, port, quota, now);
  Bucket& bucket = *at.bucket;
  if (bucket.fixed[at.way] != 0) {
    if (bucket.ports[at.way] != port) return Learned::forbidden;
    memo_of(key, now) = {key, epoch_, port};
    return Learned::known;
  }
  const std::uint32_t age = now - bucket.stamps[at.way];
  if (bucket.ports[at.way] == port) {
    if (age < renew_ticks_) {
      memo_of(key, now) = {key, epoch_, port};
      return Learned::known;
    }
    bucket.stamps[at.way] = now;
    return Learned::news;
  }
  if (age >= move_window_ticks || age >= limit_ticks_) bucket.moves[at.way] = 0;
  if (bucket.moves[at.way] >= moves_max) return Learned::refused;
  if (!move(at, port, quota, now)) return Learned::refused;
  ++bucket.moves[at.way];
  return Learned::news;
}

void MacTable::learn_remote(MacKey key, PortId port, std::uint32_t quota,
                            std::uint32_t now) noexcept {
  const Place at = locate(key);
  if (at.bucket == nullptr) {
    static_cast<void>(insert(key, port, quota, now));
    return;
  }
  if (at.bucket->fixed[at.way] != 0) return;
  if (at.bucket->ports[at.way] == port) {
    at.bucket->stamps[at.way] = now;
  } else {
    static_cast<void>(move(at, port, quota, now));
  }
}

void MacTable::forget_stamp(MacKey key, std::uint32_t now) noexcept {
  ++epoch_;
  const Place at = locate(key);
  if (at.bucket != nullptr) at.bucket->stamps[at.way] = now - renew_ticks_;
}

bool MacTable::add_static(MacKey key, PortId port, std::uint32_t now) noexcept {
  Place at = locate(key);
  if (at.bucket == nullptr) at = vacancy(key, now);
  for (const std::size_t home : homes(key)) {
    Bucket& bucket = buckets_[home];
    for (unsigned i = 0; i < ways && at.bucket == nullptr; ++i) {
      if (bucket.fixed[i] == 0) at = {&bucket, i};
    }
  }
  if (at.bucket == nullptr) return false;
  if (at.bucket->keys[at.way] != 0) clear(*at.bucket, at.way);
  at.bucket->keys[at.way] = key;
  at.bucket->ports[at.way] = port;
  at.bucket->fixed[at.way] = 1;
  at.bucket->moves[at.way] = 0;
  ++size_;
  ++epoch_;
  return true;
}

void MacTable::expire(std::size_t first, std::size_t count, std::uint32_t now) noexcept {
  for (std::size_t b = first; b < first + count && b < bucket_count_; ++b) {
    Bucket& bucket = buckets_[b];
    for (unsigned i = 0; i < ways; ++i) {
      if (bucket.keys[i] != 0 && expired(bucket, i, now)) clear(bucket, i);
    }
  }
}

void MacTable::flush(std::size_t first, std::size_t count, PortId port, bool statics) noexcept {
  for (std::size_t b = first; b < first + count && b < bucket_count_; ++b) {
    Bucket& bucket = buckets_[b];
    for (unsigned i = 0; i < ways; ++i) {
      if (bucket.keys[i] == 0 || (port != no_port && bucket.ports[i] != port)) continue;
      if (bucket.fixed[i] == 0 || statics) clear(bucket, i);
    }
  }
}

}  // namespace millrace::vswitch
