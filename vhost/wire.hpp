// Layouts and numbers of the vhost-user protocol ("Vhost-user Protocol" specification, QEMU
// docs/interop/vhost-user.rst). All numbers are in the machine's native byte order ("Message
// Specification"). No behaviour.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace millrace::vhost::wire {

// "Front-end message types".
enum class Request : std::uint32_t {
  get_features = 1,
  set_features = 2,
  set_owner = 3,
  reset_owner = 4,
  set_mem_table = 5,
  set_log_base = 6,
  set_log_fd = 7,
  set_vring_num = 8,
  set_vring_addr = 9,
  set_vring_base = 10,
  get_vring_base = 11,
  set_vring_kick = 12,
  set_vring_call = 13,
  set_vring_err = 14,
  get_protocol_features = 15,
  set_protocol_features = 16,
  get_queue_num = 17,
  set_vring_enable = 18,
  send_rarp = 19,
  net_set_mtu = 20,
  set_backend_req_fd = 21,
  get_config = 24,
  set_config = 25,
  get_inflight_fd = 31,
  set_inflight_fd = 32,
  reset_device = 34,
  get_max_mem_slots = 36,
  add_mem_reg = 37,
  rem_mem_reg = 38,
  set_status = 39,
  get_status = 40,
};

// "Back-end message types".
enum class BackendRequest : std::uint32_t { config_change = 2 };

// "Header": the flags word.
inline constexpr std::uint32_t version = 1, version_mask = 0x3;
inline constexpr std::uint32_t flag_reply = 1u << 2, flag_need_reply = 1u << 3;

// "Protocol features".
namespace protocol {
inline constexpr std::uint64_t mq = 1ull << 0;
inline constexpr std::uint64_t log_shmfd = 1ull << 1;
inline constexpr std::uint64_t rarp = 1ull << 2;
inline constexpr std::uint64_t reply_ack = 1ull << 3;
inline constexpr std::uint64_t mtu = 1ull << 4;
inline constexpr std::uint64_t backend_req = 1ull << 5;
inline constexpr std::uint64_t config = 1ull << 9;
inline constexpr std::uint64_t backend_send_fd = 1ull << 10;
inline constexpr std::uint64_t inflight_shmfd = 1ull << 12;
inline constexpr std::uint64_t reset_device = 1ull << 13;
inline constexpr std::uint64_t configure_mem_slots = 1ull << 15;
inline constexpr std::uint64_t status = 1ull << 16;
}  // namespace protocol

// "Header".
struct Header {
  std::uint32_t request;
  std::uint32_t flags;
  std::uint32_t size;  // of the payload, bytes
};
static_assert(sizeof(Header) == 12 && std::is_trivially_copyable_v<Header>);

// "A vring state description".
struct VringState {
  std::uint32_t index;
  std::uint32_t num;
};
static_assert(sizeof(VringState) == 8);

// "A vring address description". Ring addresses are user addresses, `log` is a guest address.
struct VringAddr {
  std::uint32_t index;
  std::uint32_t flags;
  std::uint64_t descriptors;
  std::uint64_t used;
  std::uint64_t available;
  std::uint64_t log;
};
static_assert(sizeof(VringAddr) == 40);
inline constexpr std::uint32_t vring_flag_log = 1u << 0;  // VHOST_VRING_F_LOG

// SET_VRING_KICK, _CALL, _ERR: bits 0 to 7 the index, bit 8 "no descriptor comes with this".
inline constexpr std::uint64_t vring_index_mask = 0xff, vring_no_fd = 0x100;

// "Memory regions description": MemoryHeader, then `count` MemoryRegions.
struct MemoryHeader {
  std::uint32_t count;
  std::uint32_t padding;
};
struct MemoryRegion {
  std::uint64_t guest_address;
  std::uint64_t size;
  std::uint64_t user_address;
  std::uint64_t file_offset;  // "mmap offset"
};
static_assert(sizeof(MemoryHeader) == 8 && sizeof(MemoryRegion) == 32);

// "Single memory region description".
struct SingleRegion {
  std::uint64_t padding;
  MemoryRegion region;
};
static_assert(sizeof(SingleRegion) == 40);

// "Log description".
struct Log {
  std::uint64_t size;
  std::uint64_t offset;
};
static_assert(sizeof(Log) == 16);

// "Virtio device config space": ConfigHeader, then `size` bytes.
struct ConfigHeader {
  std::uint32_t offset;
  std::uint32_t size;
  std::uint32_t flags;
};
static_assert(sizeof(ConfigHeader) == 12);

// "Inflight description". Front-ends send it with or without the four bytes of tail padding.
struct Inflight {
  std::uint64_t size;
  std::uint64_t offset;
  std::uint16_t queues;
  std::uint16_t queue_size;
  std::uint32_t padding;
};
static_assert(sizeof(Inflight) == 24);
inline constexpr std::uint32_t inflight_size_min = 20;

// Linux, SCM_MAX_FD: the descriptors of one sendmsg(2), and so the regions of one SET_MEM_TABLE.
inline constexpr std::uint32_t message_fds_max = 253;
// Bytes of device configuration in one message; the specification's own struct holds 256, the Rust
// front-ends allow 4096.
inline constexpr std::uint32_t config_bytes_max = 4096;
inline constexpr std::uint32_t payload_max =
    sizeof(MemoryHeader) + message_fds_max * sizeof(MemoryRegion);
static_assert(payload_max >= sizeof(ConfigHeader) + config_bytes_max);

}  // namespace millrace::vhost::wire
