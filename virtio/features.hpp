// Feature bits of virtio 1.2 §6 that concern rings, and of the vhost-user protocol.
#pragma once

#include <cstdint>

namespace millrace::virtio::feature {

inline constexpr std::uint64_t notify_on_empty = 1ull << 24;
inline constexpr std::uint64_t any_layout = 1ull << 27;
inline constexpr std::uint64_t indirect_desc = 1ull << 28;
inline constexpr std::uint64_t event_idx = 1ull << 29;
inline constexpr std::uint64_t version_1 = 1ull << 32;
inline constexpr std::uint64_t access_platform = 1ull << 33;
inline constexpr std::uint64_t ring_packed = 1ull << 34;
inline constexpr std::uint64_t in_order = 1ull << 35;
inline constexpr std::uint64_t ring_reset = 1ull << 40;

// vhost-user: the front-end logs writes (VHOST_F_LOG_ALL), and protocol features exist.
inline constexpr std::uint64_t log_all = 1ull << 26;
inline constexpr std::uint64_t protocol_features = 1ull << 30;

}  // namespace millrace::virtio::feature
