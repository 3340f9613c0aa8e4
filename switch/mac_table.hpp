// MacTable: which port an address was last seen on, for one reactor's shard.
//
// Buckets of eight entries; an address may live in one of two buckets, chosen by a hash with a
// secret seed, so a look-up reads at most two key lines and nobody can aim addresses at one bucket.
// Nothing is ever evicted to make room: a port that used up its quota, or a full pair of buckets,
// costs only the newcomer its entry (its frames flood). So one port's flood never costs another
// port an address.
//
// Ageing: an entry is forgotten between 1 and 1.25 times the ageing time after its last frame. Its
// stamp is renewed once a quarter of the ageing time at most, which is also when other shards are
// told. Time is counted in ticks of 2^tick_shift TSC cycles (about 1 ms).
//
// What the table answered, "not here" too, is remembered for the rest of the tick, or until
// anything in the table changes: neighbouring frames are mostly of the same few addresses. Where
// they are not, prefetch() asks for the lines of a burst's addresses before the first is looked up.
// Threads: made by control; then its reactor only. No allocation after make().
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#include "switch/packet.hpp"

namespace millrace::vswitch {

// An address in a VLAN: 48 bits of address (first byte lowest) and 12 of VLAN above. 0: none.
using MacKey = std::uint64_t;
inline constexpr unsigned key_vlan_shift = 48;
[[nodiscard]] inline MacKey mac_key(const std::byte* address, std::uint16_t vlan) noexcept {
  // In two loads: what goes through memory in parts is slow to read back as a whole.
  std::uint32_t low;
  std::uint16_t high;
  std::memcpy(&low, address, sizeof low);
  std::memcpy(&high, address + sizeof low, sizeof high);
  return low | MacKey{high} << 32 | MacKey{vlan} << key_vlan_shift;
}

struct MacTableConfig {
  unsigned addresses_max = 65'536;  // learned and static; the table has twice the room
  std::uint32_t ageing_ticks = 0;   // 0: never
  std::uint64_t seed = 0;           // a secret
};

class MacTable {
 public:
  static constexpr unsigned ways = 8;  // entries of a bucket
  static constexpr unsigned tick_shift = 21;
  static constexpr std::uint32_t move_window_ticks = 10'000;  // about 10 s
  static constexpr unsigned moves_max = 5;                    // of one address in a window

  enum class Learned : std::uint8_t {
    known,      // nothing to tell
    news,       // new, moved or renewed: tell the other shards
    refused,    // quota or room used up, or moving too often: the frame may pass
    forbidden,  // another port's static address
  };

  explicit MacTable(const MacTableConfig& config);

  // Notes that `key` was seen on `port`, which may hold `quota` learned addresses.
  [[nodiscard]] Learned learn(MacKey key, PortId port, std::uint32_t quota,
                              std::uint32_t now) noexcept {
    const Memo& memo = memo_of(key, now);
    if (memo.key == key && memo.epoch == epoch_ && memo.port == port) [[likely]]
      return Learned::known;
    return learn_in_table(key, port, quota, now);
  }
  // What another shard learned: no move guard, statics stay.
  void learn_remote(MacKey key, PortId port, std::uint32_t quota, std::uint32_t now) noexcept;
  // Makes the next frame of `key` news again (the other shards could not be told).
  void forget_stamp(MacKey key, std::uint32_t now) noexcept;
  // The port, or no_port.
  [[nodiscard]] PortId find(MacKey key, std::uint32_t now) noexcept {
    const Memo& memo = memo_of(key, now);
    if (memo.key == key && memo.epoch == epoch_) [[likely]]
      return memo.port;
    return find_in_table(key, now);
  }

  // Whether it pays to ask ahead: a small table is in the processor's caches anyhow.
  [[nodiscard]] bool large() const noexcept { return size_ >= large_size; }
  // `key` will be looked up soon.
  void prefetch(MacKey key, std::uint32_t now) noexcept {
    if (memo_of(key, now).key != key) [[unlikely]]
      prefetch_homes(key);
  }

  // Replaces a learned entry. False where both buckets are full of static ones.
  [[nodiscard]] bool add_static(MacKey key, PortId port, std::uint32_t now) noexcept;

  // Ageing and flushing work on buckets [first, first + count), so that a visit stays short.
  [[nodiscard]] std::size_t bucket_count() const noexcept { return bucket_count_; }
  void expire(std::size_t first, std::size_t count, std::uint32_t now) noexcept;
  // Removes entries of `port` (no_port: of all ports); static ones only if `statics`.
  void flush(std::size_t first, std::size_t count, PortId port, bool statics) noexcept;
  // Visits live entries: visit(key, port, age_ticks, is_static).
  template <class Visit>
  void for_each(std::size_t first, std::size_t count, std::uint32_t now, Visit visit) const {
    for (std::size_t b = first; b < first + count && b < bucket_count_; ++b) {
      for (unsigned i = 0; i < ways; ++i) {
        const Bucket& bucket = buckets_[b];
        if (bucket.keys[i] == 0 || expired(bucket, i, now)) continue;
        const bool is_static = bucket.fixed[i] != 0;
        visit(bucket.keys[i], bucket.ports[i], is_static ? 0 : now - bucket.stamps[i], is_static);
      }
    }
  }

  [[nodiscard]] std::uint32_t learned(PortId port) const noexcept { return learned_[port]; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  struct alignas(64) Bucket {
    std::array<MacKey, ways> keys;
    std::array<std::uint32_t, ways> stamps;
    std::array<PortId, ways> ports;
    std::array<std::uint8_t, ways> fixed;
    std::array<std::uint8_t, ways> moves;
  };
  static_assert(sizeof(Bucket) == 128);
  struct Place {
    Bucket* bucket = nullptr;
    unsigned way = 0;
  };
  struct Unmap {
    void* memory;
    std::size_t bytes;
    void operator()(Bucket*) const noexcept;
  };

  // `key` was on `port`, fresh or static, or nowhere, in that epoch: from then on nothing changed.
  struct Memo {
    MacKey key = 0;
    std::uint64_t epoch = 0;
    PortId port = no_port;
  };
  static constexpr unsigned memos = 64;
  static constexpr std::size_t large_size = 8192;  // about 1 MiB of lines

  // An epoch ends with its tick. The last byte of an address tells neighbours apart.
  [[nodiscard]] Memo& memo_of(MacKey key, std::uint32_t now) noexcept {
    if (now != epoch_tick_) epoch_tick_ = now, ++epoch_;
    return memos_[(key >> 40) % memos];
  }
  [[nodiscard]] Learned learn_in_table(MacKey key, PortId port, std::uint32_t quota,
                                       std::uint32_t now) noexcept;
  [[nodiscard]] PortId find_in_table(MacKey key, std::uint32_t now) noexcept;
  [[nodiscard]] std::array<std::size_t, 2> homes(MacKey key) const noexcept;
  [[nodiscard]] Place locate(MacKey key) const noexcept;
  void prefetch_homes(MacKey key) const noexcept;
  // A free way in the emptier of the two buckets; bucket is nullptr where both are full.
  [[nodiscard]] Place vacancy(MacKey key, std::uint32_t now) noexcept;
  [[nodiscard]] bool expired(const Bucket& bucket, unsigned way, std::uint32_t now) const noexcept;
  [[nodiscard]] Learned insert(MacKey key, PortId port, std::uint32_t quota,
                               std::uint32_t now) noexcept;
  [[nodiscard]] bool move(Place at, PortId port, std::uint32_t quota, std::uint32_t now) noexcept;
  void clear(Bucket& bucket, unsigned way) noexcept;

  std::uint64_t seed_;
  std::uint32_t limit_ticks_, renew_ticks_;
  std::size_t addresses_max_, bucket_count_, size_ = 0;
  std::unique_ptr<Bucket[], Unmap> buckets_;
  std::array<std::uint32_t, ports_max> learned_{};
  std::array<Memo, memos> memos_{};
  std::uint64_t epoch_ = 1;  // a new one with every change and every tick
  std::uint32_t epoch_tick_ = 0;
};

}  // namespace millrace::vswitch
