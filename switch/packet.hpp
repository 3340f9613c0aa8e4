// Packet: a view of a payload and a copy of its headers.
//
// The first bytes of a frame (up to header_max: L2 to L4) are fetched once, when the frame is taken
// from its ring; every decision uses them and they are what the receiver gets, so that a guest
// cannot show one header to the switch and another to the receiver. The rest is named, not copied:
// segments of the source guest's memory, of an mbuf or of a parcel.
//
// Life: a source fills Packets in a burst it owns, hands the burst to Bridge::forward and owns the
// packets again on return; nobody keeps a pointer. What must outlive the call (a link to another
// reactor) is copied out into a Parcel. `completion` is the door for ports that need the payload
// longer (a NIC without a copy): such a port calls Completion::hold during deliver() and release()
// afterwards. Thread: one reactor.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace millrace::vswitch {

using PortId = std::uint16_t;
inline constexpr PortId no_port = 0xffff;
inline constexpr unsigned ports_max = 4096;

struct View {
  const std::byte* data;
  std::uint32_t size;
};

enum class Gso : std::uint8_t { none, tcp4, tcp6, udp_l4 };  // udp_l4: USO, datagrams of gso_size

// What the frame still needs, or has had checked (virtio 1.2 §5.1.6).
struct Offload {
  bool checksum_needed = false;    // the L4 checksum is partial: complete it at start + offset
  bool checksum_verified = false;  // the L4 checksum was found right
  bool ecn = false;                // TCP with CWR semantics
  Gso gso = Gso::none;
  std::uint16_t checksum_start = 0;  // from the first byte of the frame
  std::uint16_t checksum_offset = 0;
  std::uint16_t gso_size = 0;       // payload bytes of each segment, > 0 when gso != none
  std::uint16_t header_length = 0;  // L2 to L4, computed by us from the fetched header, not trusted

  // Nothing is left to do: any receiver takes it as it is.
  [[nodiscard]] bool done() const noexcept { return !checksum_needed && gso == Gso::none; }
};

// Lends the payload of packets out beyond deliver(). Thread: the source's reactor.
class Completion {
 public:
  static constexpr std::uint32_t refused = 0xffff'ffff;
  // During deliver(): the bytes behind the views of the packet with this token stay as they are
  // until release() of what is answered; once for each holder. `refused`: not now, copy them.
  [[nodiscard]] virtual std::uint32_t hold(std::uint32_t token) noexcept = 0;
  // Nobody reads them any more through what hold() answered.
  virtual void release(std::uint32_t receipt) noexcept = 0;

 protected:
  ~Completion() = default;
};

struct alignas(64) Packet {
  static constexpr std::size_t header_max = 128;
  static constexpr std::size_t views_max = 72;  // 64 KiB in 1 KiB buffers and some
  static constexpr std::uint32_t length_max = 65'535 + 18;

  std::array<std::byte, header_max> header;  // the first header_size bytes of the frame
  std::uint16_t header_size = 0;             // a source fetches min(length, header_max)
  std::uint16_t view_count = 0;
  std::uint32_t length = 0;  // whole frame, bytes, without FCS
  Offload offload;
  PortId source = no_port;
  // The VLAN it travels in (0: untagged world), and PCP and DEI of the tag that it came with (4
  // bits). Found by the switch, where the tag is not apart.
  std::uint16_t vlan = 0;
  std::uint8_t priority = 0;
  bool tag_apart = false;            // see Bridge::forward_apart(); elsewhere it says nothing
  std::uint32_t flow_hash = 0;       // 0 where nobody needs it
  Completion* completion = nullptr;  // null: its payload is nobody's beyond deliver()
  std::uint32_t token = 0;
  std::array<View, views_max> views;  // the bytes after the header

  [[nodiscard]] std::span<const std::byte> headers() const noexcept {
    return {header.data(), header_size};
  }
  [[nodiscard]] std::span<const View> payload() const noexcept {
    return {views.data(), view_count};
  }
};

// All of a packet but its views and whose they are (`completion`, `token`).
inline void copy_all_but_views(const Packet& from, Packet& to) noexcept {
  std::memcpy(to.header.data(), from.header.data(), from.header_size);
  to.header_size = from.header_size;
  to.length = from.length;
  to.offload = from.offload;
  to.source = from.source;
  to.vlan = from.vlan;
  to.priority = from.priority;
  to.flow_hash = from.flow_hash;
}

// An ordinary frame is two lines: its headers, and what is known of it with its only view.
static_assert(offsetof(Packet, views) + sizeof(View) == Packet::header_max + 64);

// Most packets of one visit to a source. A burst of 64 KiB packets is bounded by bytes instead; see
// burst_bytes_max.
inline constexpr std::size_t burst_max = 32;
inline constexpr std::uint64_t burst_bytes_max =
    512 * 1024;  // what the kernel's vhost uses for fairness

}  // namespace millrace::vswitch
