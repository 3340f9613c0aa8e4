// TwoEnds: two guests whose frames go from a transmit ring through a switch into a receive ring, in
// every way that the rings can be and that guests lay out their buffers; what arrives is looked at
// to the byte, with the used entries, the dirty log and the inflight region.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <random>
#include <set>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "net/offload.hpp"
#include "net/testing/two_queues.hpp"
#include "switch/testing/two_ports.hpp"

namespace millrace::net::testing {

namespace nf = virtio::wire::net_feature;
namespace vf = virtio::feature;
using virtio::wire::NetHeader;
using vswitch::testing::TwoPorts;
using Cut = std::vector<std::size_t>;  // sizes of the pieces of a buffer

inline constexpr std::size_t page = 1526;
inline constexpr vswitch::Mac receiver_mac{0x52, 0x51, 0x52, 0x53, 0x54, 0x55};  // make_frame()'s
inline constexpr vswitch::Mac sender_mac{0x52, 0x61, 0x62, 0x63, 0x64, 0x65};

// packed, mergeable, indirect, event index, in order, dirty log, inflight region
using Ways = std::tuple<bool, bool, bool, bool, bool, bool, bool>;

inline std::uint64_t features_of(const Ways& ways) {
  const auto [packed, mergeable, indirect, event_index, in_order, logged, tracked] = ways;
  return vf::version_1 | (packed ? vf::ring_packed : 0) | (mergeable ? nf::mrg_rxbuf : 0) |
         (indirect ? vf::indirect_desc : 0) | (event_index ? vf::event_idx : 0) |
         (in_order ? vf::in_order : 0);
}

// How guests lay out their buffers.
enum class Shape {
  whole,   // one piece that holds the frame
  pages,   // sent behind a header of its own; received into single pieces of 1526 bytes
  pieces,  // several, of any size
};

inline std::vector<Shape> shapes_of(const Ways& ways) {
  if (std::get<1>(ways)) return {Shape::whole, Shape::pages, Shape::pieces};
  return {Shape::whole, Shape::pieces};  // a page does not hold every frame
}

// Byte `offset` of frame `number` is at [start + offset], and start is the number's own.
inline std::span<const std::uint8_t> pattern_of(std::size_t number, std::size_t size) {
  static const Bytes noise = [] {
    Bytes out(std::size_t{2} * vswitch::Packet::length_max);
    std::mt19937 random{1};
    for (auto& byte : out) byte = static_cast<std::uint8_t>(random());
    return out;
  }();
  const std::size_t start = number * 7919 % vswitch::Packet::length_max;
  return std::span{noise}.subspan(start, size);
}

inline Bytes numbered_frame(std::size_t number, std::size_t size) {
  const auto bytes = pattern_of(number, size);
  Bytes out(bytes.begin(), bytes.end());
  std::copy(receiver_mac.begin(), receiver_mac.end(), out.begin());
  std::copy(sender_mac.begin(), sender_mac.end(), out.begin() + 6);
  put16(out, 12, 0x88b5);  // for local experiments
  return out;
}

inline ::testing::AssertionResult same(const Bytes& got, const Bytes& sent) {
  if (got == sent) return ::testing::AssertionSuccess();
  const auto end = std::min(got.size(), sent.size());
  const auto at = std::mismatch(got.begin(), got.begin() + std::ptrdiff_t(end), sent.begin()).first;
  return ::testing::AssertionFailure() << got.size() << " bytes of " << sent.size()
                                       << ", the first other one at " << at - got.begin();
}

// Two guests and the switch between them.
class TwoEnds {
 public:
  TwoEnds(const Ways& ways, Shape shape, std::uint64_t sending = 0, std::uint64_t receiving = 0,
          std::uint32_t ring = 256)
      : ways_{ways},
        shape_{shape},
        header_size_{header_size(features_of(ways) | receiving)},
        queues{{.sender = features_of(ways) | sending,
                .receiver = features_of(ways) | receiving,
                .size = ring,
                .tracked = std::get<6>(ways)},
               TwoPorts::ids[0],
               {&board.bridge(), &board.counters(0)},
               {&board.bridge(), &board.counters(1)}} {
    board.connect({nullptr, queues.rx.get()});
    if (shape != Shape::pieces) {
      queues.sending.tables_for_several();
      queues.receiving.tables_for_several();
    }
    if (!logged()) return;
    queues.sending.start_log(*queues.tx);
    queues.receiving.start_log(*queues.rx);
  }
  // A successor would find nothing that was taken and not given back.
  void finish() {
    EXPECT_EQ(board.counters(1).rx_packets.get(), received_);
    EXPECT_EQ(board.counters(0).tx_packets.get(), sent_);
    for (std::size_t i = 0; i < 2; ++i) {
      vswitch::PortCounters& c = board.counters(i);
      EXPECT_EQ(c.drop_malformed.get() + c.drop_ring_full.get() + c.drop_too_long.get() +
                    c.drop_queue_fault.get() + c.drop_no_queue.get() + c.drop_source.get(),
                0u);
    }
    if (!std::get<6>(ways_)) return;
    EXPECT_EQ(queues.sending.left_in_flight(1), 0u);
    EXPECT_EQ(queues.receiving.left_in_flight(0), 0u);
  }

  [[nodiscard]] bool mergeable() const { return std::get<1>(ways_); }
  [[nodiscard]] bool logged() const { return std::get<5>(ways_); }

  // Sent as the shape says; the header asks for `request`.
  void send(const Bytes& frame, const NetHeader& request = {}) {
    Bytes all(header_of_sender());
    std::memcpy(all.data(), &request, sizeof request);
    all.insert(all.end(), frame.begin(), frame.end());
    Cut cut;
    if (shape_ == Shape::pages) cut = {header_of_sender()};
    if (shape_ == Shape::pieces) cut = random_cut(all.size(), 2 + random_() % 7);
    send_cut(all, cut);
  }
  // Header and frame in pieces of these sizes, and one with what is left.
  void send_cut(const Bytes& all, const Cut& cut) {
    std::vector<Bytes> pieces;
    auto from = all.begin();
    for (const std::size_t size : cut) {
      pieces.emplace_back(from, from + std::ptrdiff_t(size));
      from += std::ptrdiff_t(size);
    }
    if (from != all.end()) pieces.emplace_back(from, all.end());
    queues.sending.send(pieces);
    ++sent_;
  }
  // Buffers that just hold a frame of that size.
  void post_for(std::size_t size, std::size_t number) {
    const std::size_t bytes = header_size_ + size;
    if (shape_ == Shape::whole) {
      constexpr std::array<std::size_t, 3> more{0, 1, 64};
      queues.receiving.post({bytes + more.at(number % more.size())});
    } else if (mergeable()) {
      const Cut small{header_size_, 700, 800, page - 1500 - header_size_};
      for (std::size_t left = bytes; left > 0; left -= std::min(left, page)) {
        queues.receiving.post(shape_ == Shape::pages ? Cut{page} : small);
      }
    } else {
      Cut cut = random_cut(bytes, 5);
      cut.push_back(bytes - std::accumulate(cut.begin(), cut.end(), std::size_t{0}));
      queues.receiving.post(cut);
    }
  }
  // Sizes of all pieces but the last, at random.
  Cut random_cut(std::size_t bytes, std::size_t pieces) {
    std::set<std::size_t> at;
    while (at.size() + 1 < std::min(pieces, bytes)) at.insert(1 + random_() % (bytes - 1));
    Cut out;
    std::size_t before = 0;
    for (const std::size_t each : at) out.push_back(each - std::exchange(before, each));
    return out;
  }

  // Whether the loops for the usual buffers are going to take what is next: they ask the same. The
  // size of the piece that they are shown; 0: the next one is not for them.
  std::size_t usual_to_send() {
    return queues.tx->queue().with_ring([](auto& ring) -> std::size_t {
      return virtio::with_cursor(ring, [](auto& cursor) { return cursor.next(false).size; });
    });
  }
  std::size_t usual_to_receive() {
    return queues.rx->queue().with_ring([](auto& ring) -> std::size_t {
      return virtio::with_cursor(ring, [](auto& cursor) { return cursor.next(true).size; });
    });
  }
  // What the shape is for: the first frame that is under way takes the loops that it should.
  void expect_usual(std::size_t first_size) {
    const std::size_t sent = header_of_sender() + first_size;
    EXPECT_EQ(usual_to_send(), shape_ == Shape::whole ? sent : 0);
    const std::size_t room = usual_to_receive();
    if (shape_ == Shape::whole) {
      EXPECT_GE(room, header_size_ + first_size);
    } else {
      EXPECT_EQ(room, shape_ == Shape::pages ? page : 0);
    }
  }

  void run() {
    while (queues.tx->poll()) {
    }
  }
  struct Got {
    NetHeader header{};
    Bytes frame;
  };
  // The next frame, put together from its buffers.
  Got next() {
    Got got;
    auto part = queues.receiving.take_used();
    if (!part || part->bytes.size() < header_size_) {
      ADD_FAILURE() << (part ? "no header" : "no frame");
      return got;
    }
    ++received_;
    std::memcpy(&got.header, part->bytes.data(), sizeof got.header);
    got.frame.assign(part->bytes.begin() + std::ptrdiff_t(header_size_), part->bytes.end());
    for (unsigned i = 1; i < got.header.num_buffers.host(); ++i) {
      part = queues.receiving.take_used();
      if (!part) {
        ADD_FAILURE() << "fewer buffers than the header says";
        break;
      }
      got.frame.insert(got.frame.end(), part->bytes.begin(), part->bytes.end());
    }
    return got;
  }
  // The sender has so many back and the receiver no more; both logs are as they should be.
  void expect_all_settled(std::size_t frames) {
    for (std::size_t i = 0; i < frames; ++i) {
      const auto used = queues.sending.take_used();
      ASSERT_TRUE(used) << "frame " << i << " of " << frames << " did not come back";
      EXPECT_EQ(used->length, 0u);
    }
    EXPECT_TRUE(queues.sending.all_came_back());
    EXPECT_FALSE(queues.receiving.take_used());
    if (!logged()) return;
    EXPECT_TRUE(queues.sending.exactly_what_was_written_is_logged());
    EXPECT_TRUE(queues.receiving.exactly_what_was_written_is_logged());
  }
  [[nodiscard]] std::size_t header_of_sender() const {
    return header_size(queues.tx->queue().features());
  }

 private:
  const Ways ways_;
  const Shape shape_;
  const std::size_t header_size_;
  std::uint64_t sent_ = 0, received_ = 0;
  std::mt19937 random_{7};

 public:
  TwoPorts board{still_reactor(), {sender_mac, receiver_mac}};
  TwoQueues queues;
};

}  // namespace millrace::net::testing
