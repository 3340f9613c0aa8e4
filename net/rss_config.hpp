// RssConfig: how a driver wants received packets hashed and spread over its queues: the data of
// the commands RSS_CONFIG and HASH_CONFIG (virtio 1.2 §5.1.6.5.7 and §5.1.6.5.6).
// Reading is a reactor's and never allocates; making is control's.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "switch/steering.hpp"
#include "virtio/chain.hpp"

namespace millrace::net {

inline constexpr std::size_t rss_key_max = vswitch::Toeplitz::key_size;
inline constexpr std::uint16_t rss_entries_max = vswitch::Steering::entries_max;
inline constexpr std::uint32_t hash_types_offered = vswitch::hash_kind::all;

struct HashConfig {
  std::uint32_t types = 0;  // bits of hash_types_offered; none: nothing is hashed
  vswitch::Toeplitz::Key key{};
  bool operator==(const HashConfig&) const = default;
};

struct RssConfig {
  HashConfig hash;
  std::uint16_t mask = 0;          // entries less one
  std::uint16_t unclassified = 0;  // the queue pair of packets without a hash
  std::uint16_t transmit_pairs = 1;
  std::array<std::uint16_t, rss_entries_max> pairs{};  // by hash & mask
  bool operator==(const RssConfig&) const = default;
};

[[nodiscard]] bool is_valid(const HashConfig& config) noexcept;
// `pairs`: those that the device has.
[[nodiscard]] bool is_valid(const RssConfig& config, unsigned pairs) noexcept;

// From the command in `chain`. False: cut short, or not valid.
[[nodiscard]] bool read_hash(const virtio::Chain& chain, HashConfig& out) noexcept;
[[nodiscard]] bool read_rss(const virtio::Chain& chain, unsigned pairs, RssConfig& out) noexcept;

// nullptr where nothing is hashed.
[[nodiscard]] std::shared_ptr<const vswitch::PacketHash> make_hash(const HashConfig& config);
[[nodiscard]] std::shared_ptr<const vswitch::Steering> make_steering(const RssConfig& config);

// The report of a hash (virtio 1.2 §5.1.6.4.3.5): its kind as the receiver's header says it.
[[nodiscard]] std::uint16_t report_of(std::uint32_t hash_kind) noexcept;

}  // namespace millrace::net
