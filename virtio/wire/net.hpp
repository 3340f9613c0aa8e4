// virtio-net on the wire: virtio 1.2 §5.1. Layout and numbers only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/endian.hpp"

namespace millrace::virtio::wire {

// Feature bits, §5.1.3.
namespace net_feature {
inline constexpr std::uint64_t csum = 1ull << 0;
inline constexpr std::uint64_t guest_csum = 1ull << 1;
inline constexpr std::uint64_t ctrl_guest_offloads = 1ull << 2;
inline constexpr std::uint64_t mtu = 1ull << 3;
inline constexpr std::uint64_t mac = 1ull << 5;
inline constexpr std::uint64_t guest_tso4 = 1ull << 7;
inline constexpr std::uint64_t guest_tso6 = 1ull << 8;
inline constexpr std::uint64_t guest_ecn = 1ull << 9;
inline constexpr std::uint64_t guest_ufo = 1ull << 10;
inline constexpr std::uint64_t host_tso4 = 1ull << 11;
inline constexpr std::uint64_t host_tso6 = 1ull << 12;
inline constexpr std::uint64_t host_ecn = 1ull << 13;
inline constexpr std::uint64_t host_ufo = 1ull << 14;
inline constexpr std::uint64_t mrg_rxbuf = 1ull << 15;
inline constexpr std::uint64_t status = 1ull << 16;
inline constexpr std::uint64_t ctrl_vq = 1ull << 17;
inline constexpr std::uint64_t ctrl_rx = 1ull << 18;
inline constexpr std::uint64_t ctrl_vlan = 1ull << 19;
inline constexpr std::uint64_t ctrl_rx_extra = 1ull << 20;
inline constexpr std::uint64_t guest_announce = 1ull << 21;
inline constexpr std::uint64_t mq = 1ull << 22;
inline constexpr std::uint64_t ctrl_mac_addr = 1ull << 23;
inline constexpr std::uint64_t vq_notf_coal = 1ull << 52;
inline constexpr std::uint64_t notf_coal = 1ull << 53;
inline constexpr std::uint64_t guest_uso4 = 1ull << 54;
inline constexpr std::uint64_t guest_uso6 = 1ull << 55;
inline constexpr std::uint64_t host_uso = 1ull << 56;
inline constexpr std::uint64_t hash_report = 1ull << 57;
inline constexpr std::uint64_t guest_hdrlen = 1ull << 59;
inline constexpr std::uint64_t rss = 1ull << 60;
inline constexpr std::uint64_t rsc_ext = 1ull << 61;
inline constexpr std::uint64_t standby = 1ull << 62;
inline constexpr std::uint64_t speed_duplex = 1ull << 63;
}  // namespace net_feature

// §5.1.6: struct virtio_net_hdr. `num_buffers` is absent (10 bytes) without VERSION_1 and
// MRG_RXBUF.
struct NetHeader {
  std::uint8_t flags;
  std::uint8_t gso_type;
  base::le16 hdr_len;
  base::le16 gso_size;
  base::le16 csum_start;
  base::le16 csum_offset;
  base::le16 num_buffers;
};
static_assert(sizeof(NetHeader) == 12 && std::is_trivially_copyable_v<NetHeader>);
inline constexpr std::size_t net_header_size = 12, net_header_size_legacy = 10;

// §5.1.6: struct virtio_net_hdr with VIRTIO_NET_F_HASH_REPORT, in both directions.
struct NetHashHeader {
  NetHeader header;
  base::le32 hash_value;
  base::le16 hash_report;
  base::le16 padding;
};
static_assert(sizeof(NetHashHeader) == 20 && std::is_trivially_copyable_v<NetHashHeader>);
inline constexpr std::size_t net_header_size_hash = 20;

// §5.1.6.4.3: what a hash may be computed over (bits of hash_types)...
namespace net_hash_type {
inline constexpr std::uint32_t ipv4 = 1u << 0, tcpv4 = 1u << 1, udpv4 = 1u << 2, ipv6 = 1u << 3,
                               tcpv6 = 1u << 4, udpv6 = 1u << 5, ip_ex = 1u << 6, tcp_ex = 1u << 7,
                               udp_ex = 1u << 8;
inline constexpr std::uint32_t all = (1u << 9) - 1;
}  // namespace net_hash_type
// ...and what one was computed over (§5.1.6.4.3.5).
namespace net_hash_report {
inline constexpr std::uint16_t none = 0, ipv4 = 1, tcpv4 = 2, udpv4 = 3, ipv6 = 4, tcpv6 = 5,
                               udpv6 = 6, ipv6_ex = 7, tcpv6_ex = 8, udpv6_ex = 9;
}

namespace net_header_flag {
inline constexpr std::uint8_t needs_csum = 1, data_valid = 2, rsc_info = 4;
}
namespace net_gso {
inline constexpr std::uint8_t none = 0, tcp4 = 1, udp = 3, tcp6 = 4, udp_l4 = 5, ecn = 0x80;
}

// §5.1.4.
struct NetConfig {
  std::uint8_t mac[6];
  base::le16 status;
  base::le16 max_virtqueue_pairs;
  base::le16 mtu;
  base::le32 speed;
  std::uint8_t duplex;
  std::uint8_t rss_max_key_size;
  base::le16 rss_max_indirection_table_length;
  base::le32 supported_hash_types;
};
static_assert(sizeof(NetConfig) == 24 && std::is_trivially_copyable_v<NetConfig>);
inline constexpr std::uint16_t net_status_link_up = 1, net_status_announce = 2;
inline constexpr std::uint16_t net_mtu_min = 68;

// Control virtqueue, §5.1.6.5: class and command, then its data, then one acknowledgement byte.
struct NetControl {
  std::uint8_t class_id;
  std::uint8_t command;
};
static_assert(sizeof(NetControl) == 2);
inline constexpr std::uint8_t net_control_ok = 0, net_control_error = 1;

namespace net_class {
inline constexpr std::uint8_t rx = 0, mac = 1, vlan = 2, announce = 3, mq = 4, guest_offloads = 5,
                              notf_coal = 6;
}
namespace net_rx_command {
inline constexpr std::uint8_t promisc = 0, allmulti = 1, alluni = 2, nomulti = 3, nouni = 4,
                              nobcast = 5;
}
namespace net_mac_command {
inline constexpr std::uint8_t table_set = 0, addr_set = 1;
}
namespace net_vlan_command {
inline constexpr std::uint8_t add = 0, del = 1;
}
namespace net_announce_command {
inline constexpr std::uint8_t ack = 0;
}
namespace net_mq_command {
inline constexpr std::uint8_t vq_pairs_set = 0, rss_config = 1, hash_config = 2;
}
namespace net_coal_command {
inline constexpr std::uint8_t tx_set = 0, rx_set = 1, vq_set = 2, vq_get = 3;
}

// §5.1.6.5.7: the head of struct virtio_net_rss_config; it is followed by the
// indirection table (le16 each), max_tx_vq (le16), the length of the key (u8) and the key.
struct NetRssHead {
  base::le32 hash_types;
  base::le16 indirection_table_mask;
  base::le16 unclassified_queue;
};
static_assert(sizeof(NetRssHead) == 8);
// §5.1.6.5.6: struct virtio_net_hash_config: types, 8 reserved bytes, length of the key, the key.
inline constexpr std::size_t net_hash_key_length_at = 12;
// §5.1.6.5.9.
struct NetCoalescing {
  base::le32 max_packets;
  base::le32 max_usecs;
};
static_assert(sizeof(NetCoalescing) == 8);
struct NetQueueCoalescing {  // virtio 1.3 §5.1.6.5.9: of one virtqueue
  base::le16 queue;
  base::le16 reserved;
  NetCoalescing coalescing;
};
static_assert(sizeof(NetQueueCoalescing) == 12);

}  // namespace millrace::virtio::wire
