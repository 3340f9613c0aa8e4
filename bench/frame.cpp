#include "bench/frame.hpp"

#include <algorithm>
#include <cstring>

#include "base/check.hpp"
#include "base/endian.hpp"

namespace millrace::bench {

namespace {

namespace wire = virtio::wire;
using base::be16;
using base::be32;

constexpr std::uint16_t segment_size = 1448;
constexpr std::size_t ethernet = 14, ip = 20, udp = 8, tcp = 20;
constexpr std::size_t ip_sum_at = ethernet + 10, tcp_sum_at = ethernet + ip + 16;

std::uint32_t sum_of(std::span<const std::byte> bytes) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i + 1 < bytes.size(); i += 2) {
    sum += std::to_integer<std::uint32_t>(bytes[i]) << 8 |
           std::to_integer<std::uint32_t>(bytes[i + 1]);
  }
  return sum;
}

std::uint16_t folded(std::uint32_t sum) {
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(sum);
}

}  // namespace

FrameShape::FrameShape(const Mac& from, const Mac& to, std::uint32_t size, bool tso)
    : bytes_(size) {
  CHECK(size >= least && size <= most);
  const auto put = [this](std::size_t at, auto value) {
    std::memcpy(bytes_.data() + at, &value, sizeof value);
  };
  for (std::size_t i = 0; i < bytes_.size(); ++i) bytes_[i] = static_cast<std::byte>(i * 7);
  put(0, to);
  put(6, from);
  put(12, be16{0x0800});
  constexpr auto at_ip = ethernet, at_next = ethernet + ip;
  std::fill_n(bytes_.begin() + at_ip, ip + (tso ? tcp : udp), std::byte{0});
  put(at_ip, std::uint8_t{0x45});
  put(at_ip + 2, be16{static_cast<std::uint16_t>(size - ethernet)});
  put(at_ip + 8, std::uint8_t{64});
  put(at_ip + 9, static_cast<std::uint8_t>(tso ? 6 : 17));
  put(at_ip + 12, be32{0x0a000001});
  put(at_ip + 16, be32{0x0a000002});
  const std::span<const std::byte> all{bytes_};
  put(at_ip + 10, be16{static_cast<std::uint16_t>(~folded(sum_of(all.subspan(at_ip, ip))))});
  put(at_next, be16{1024});
  put(at_next + 2, be16{1025});
  const auto length = static_cast<std::uint16_t>(size - at_next);
  stamp_at_ = at_next + (tso ? tcp : udp);
  if (!tso) {
    put(at_next + 4, be16{length});  // and no checksum
    return;
  }
  put(at_next + 12, std::uint8_t{0x50});
  put(at_next + 13, std::uint8_t{0x10});  // ACK
  // What a driver leaves for the device to complete: the sum of the pseudo header.
  put(at_next + 16, be16{folded(sum_of(all.subspan(at_ip + 12, 8)) + 6 + length)});
  header_.flags = wire::net_header_flag::needs_csum;
  header_.csum_start = base::le16{static_cast<std::uint16_t>(at_next)};
  header_.csum_offset = base::le16{16};
  if (length > segment_size + tcp) {
    header_.gso_type = wire::net_gso::tcp4;
    header_.gso_size = base::le16{segment_size};
    header_.hdr_len = base::le16{static_cast<std::uint16_t>(stamp_at_)};
  }
}

bool FrameShape::matches(std::span<const std::byte> received) const {
  const auto same = [&](std::size_t from, std::size_t to) {
    return std::memcmp(received.data() + from, bytes_.data() + from, to - from) == 0;
  };
  const auto after = stamp_at_ + sizeof(Stamp);
  if (received.size() != bytes_.size() || !same(after, bytes_.size())) return false;
  if (header_.flags == 0) return same(0, stamp_at_);
  return same(0, ip_sum_at) && same(ip_sum_at + 2, tcp_sum_at) && same(tcp_sum_at + 2, stamp_at_);
}

}  // namespace millrace::bench
