// The two sides of a NIC as its driver sees them: Sender puts frames up, Receiver takes them in.
// One thread drives both. Their guest outlives them.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.hpp"
#include "base/result.hpp"
#include "bench/frame.hpp"
#include "bench/net_load.hpp"
#include "bench/ring_driver.hpp"
#include "bench/socket_guest.hpp"

namespace millrace::bench {

inline constexpr unsigned rx_ring = 0, tx_ring = 1;
inline constexpr std::uint32_t rx_buffer = 4096;  // as stock drivers post them: a page
inline constexpr std::uint64_t nic_page = 4096;

// Connects a NIC with both rings and memory for their buffers. Fails in one line: nobody there, or
// a back-end without what `config` asks for.
base::Result<std::unique_ptr<SocketGuest>> connect_nic(const NetLoadConfig& config,
                                                       const std::string& socket);
// The same for a guest that no device serves.
base::Result<std::unique_ptr<SocketGuest>> lone_nic(const NetLoadConfig& config);

// How frames lie in the sender's memory: one after the other; none across a page, so that none is
// in two regions; or as Linux has a packet of TCP, its headers alone and the rest in pages.
enum class Buffers : std::uint8_t { tight, whole_pages, fragments };
Buffers buffers_of(const NetLoadConfig& config);

// Which of many addresses a frame goes to or comes from: written over the last bytes of one of a
// FrameShape's. `number` below 2^24.
void set_address(std::byte* mac, std::uint32_t number);

// How many frames to put up now, `put_up` of them being up since `begun` (TSC cycles), to keep to
// `rate` a second; 0: `burst`, which is also the most.
unsigned due(double rate, unsigned burst, std::uint64_t begun, std::uint64_t put_up);

// A NIC's transmit side: frames of one shape, a buffer for each place.
template <class Driver>
class Sender {
 public:
  Sender(SocketGuest& guest, const FrameShape& shape, Buffers kind = Buffers::tight)
      : guest_{guest},
        shape_{shape},
        head_{header_size +
              (kind == Buffers::fragments && shape.is_tcp() ? shape.stamp_at() : shape.size())},
        rest_{header_size + shape.size() - head_},
        chain_(1 + (rest_ + nic_page - 1) / nic_page),
        driver_{guest, tx_ring, static_cast<unsigned>(chain_.size())},
        stamp_at_{rest_ > 0 ? nic_page : header_size + shape.stamp_at()},
        buffer_{rest_ > 0 ? chain_.size() * nic_page : (head_ + 63) / 64 * 64} {
    if (kind == Buffers::whole_pages && buffer_ < nic_page) buffer_ = std::bit_ceil(buffer_);
    buffers_ = guest.allocate(driver_.places() * buffer_, nic_page);
    const auto head = shape.bytes().first(head_ - header_size), rest = shape.bytes().last(rest_);
    for (unsigned place = 0; place < driver_.places(); ++place) {
      auto* const at = guest.at(buffers_ + place * buffer_);
      std::memcpy(at, &shape.header(), header_size);
      std::ranges::copy(head, at + header_size);
      std::ranges::copy(rest, at + nic_page);
    }
    chain_.front().length = static_cast<std::uint32_t>(head_);
    for (std::size_t i = 1, left = rest_; i < chain_.size(); ++i, left -= nic_page) {
      chain_[i].length = static_cast<std::uint32_t>(std::min<std::size_t>(left, nic_page));
    }
  }
  // From now on frames go to (or come from) `count` addresses in turn, not in their order.
  void vary_destination(std::uint32_t count) { vary_at_ = 0, addresses_ = count; }
  void vary_source(std::uint32_t count) { vary_at_ = mac_size, addresses_ = count; }

  // Puts up to `count` frames up. Answers how many there was room for.
  unsigned send(unsigned count) {
    take_back();
    unsigned sent = 0;
    const auto now = base::cycles();
    for (; sent < count && driver_.room(); ++sent) {
      const auto at = buffers_ + driver_.next_place() * buffer_;
      auto* const frame = guest_.at(at) + header_size;
      if (addresses_ > 1) {
        set_address(frame + vary_at_, static_cast<std::uint32_t>(number_ * stride % addresses_));
      }
      const Stamp stamp{number_++, now};
      std::memcpy(guest_.at(at) + stamp_at_, &stamp, sizeof stamp);
      for (std::size_t i = 0; i < chain_.size(); ++i) chain_[i].address = at + i * nic_page;
      driver_.add(chain_);
    }
    if (driver_.publish()) {
      driver_.kick();
      ++kicks_;
    }
    return sent;
  }
  // Buffers that the device is done with. Answers how many.
  unsigned take_back() {
    unsigned count = 0;
    while (driver_.reap()) ++count;
    taken_ += count;
    return count;
  }
  [[nodiscard]] std::uint64_t kicks() const { return kicks_; }
  [[nodiscard]] std::uint64_t taken() const { return taken_; }  // frames the device is done with
  [[nodiscard]] bool broken() const { return driver_.broken(); }

 private:
  static constexpr std::size_t header_size = sizeof(virtio::wire::NetHeader), mac_size = 6;
  static constexpr std::uint64_t stride = 40'503;  // a prime: all addresses, far from each other

  SocketGuest& guest_;
  const FrameShape& shape_;
  const std::size_t head_, rest_;  // bytes in the first descriptor, and in all others
  std::vector<Segment> chain_;
  Driver driver_;
  const std::size_t stamp_at_;
  std::uint64_t buffer_, buffers_ = 0;
  std::size_t vary_at_ = 0;
  std::uint32_t addresses_ = 1;
  std::uint64_t number_ = 0, kicks_ = 0, taken_ = 0;
};

// A NIC's receive side: buffers of a page, frames in one or more of them.
template <class Driver>
class Receiver {
 public:
  explicit Receiver(SocketGuest& guest)
      : guest_{guest},
        driver_{guest, rx_ring, 1},
        buffers_{guest.allocate(std::uint64_t{driver_.places()} * rx_buffer, nic_page)} {
    refill();
  }

  [[nodiscard]] unsigned places() const { return driver_.places(); }
  // Calls `each` with the pieces of every frame that came, the net header taken off.
  template <class Each>
  unsigned receive(Each each) {
    unsigned frames = 0;
    while (const auto done = driver_.reap()) {
      const auto length = std::min(done->length, rx_buffer);
      std::span<const std::byte> piece{guest_.at(buffers_ + done->id * rx_buffer), length};
      if (left_ == 0) {
        if (piece.size() < sizeof(virtio::wire::NetHeader)) continue;
        virtio::wire::NetHeader header;
        std::memcpy(&header, piece.data(), sizeof header);
        left_ = std::max<unsigned>(header.num_buffers.host(), 1);
        piece = piece.subspan(sizeof header);
        pieces_.clear();
      }
      pieces_.push_back(piece);
      if (--left_ > 0) continue;
      ++frames;
      each(std::span<const std::span<const std::byte>>{pieces_});
    }
    return frames;
  }
  void refill() {
    while (driver_.room()) {
      const Segment segment{buffers_ + driver_.next_place() * std::uint64_t{rx_buffer}, rx_buffer,
                            true};
      driver_.add({&segment, 1});
    }
    if (driver_.publish()) driver_.kick();
  }
  [[nodiscard]] bool broken() const { return driver_.broken(); }

 private:
  SocketGuest& guest_;
  Driver driver_;
  const std::uint64_t buffers_;
  unsigned left_ = 0;  // buffers of the frame that is being received
  std::vector<std::span<const std::byte>> pieces_;
};

}  // namespace millrace::bench
