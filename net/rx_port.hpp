// RxPort: a guest's receive queue, as one endpoint of its switch port.
//
// deliver() copies each packet once, from where it lies into the guest's buffers, behind a
// virtio_net_hdr (virtio 1.2 §5.1.6.4). The first bytes come from Packet::header, never from the
// source's memory. What the guest did not negotiate is done here: checksums are completed, large
// packets are segmented. The driver is signalled once a burst.
//
// Kicks stay off for ever: a new buffer is found when a packet needs it. A device that serves this
// queue alone fills its buffers by itself (rx_port_direct.cpp).
// Thread: the owning reactor, but for the constructor (control).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "net/call_pacer.hpp"
#include "net/frame.hpp"
#include "net/offload.hpp"
#include "net/rx_filter.hpp"
#include "net/switch_side.hpp"
#include "switch/direct_sink.hpp"
#include "switch/packet_hash.hpp"
#include "switch/port.hpp"
#include "virtio/chain.hpp"
#include "virtio/queue.hpp"

namespace millrace::net {

// What a driver set up over the control queue, as far as a receive queue is concerned.
struct RxSettings {
  std::shared_ptr<const RxFilter> filter;           // nullptr: it is given every frame
  std::shared_ptr<const vswitch::PacketHash> hash;  // for reports; nullptr: there is none to report
  Pace pace;
};

class RxPort final : public virtio::QueueWorker, public vswitch::Port, public vswitch::DirectSink {
 public:
  // Buffers of one packet: num_buffers has 16 bits; 1024 of 64 bytes hold the longest packet.
  static constexpr std::size_t buffers_max = 1024;

  // `features`: negotiated. `mtu`: 0, or what the guest was told (virtio 1.2 §5.1.4.1: longer
  // frames must not reach it).
  RxPort(std::unique_ptr<virtio::Queue> queue, std::uint64_t features, std::uint16_t mtu,
         SwitchSides sides);

  void deliver(std::span<const vswitch::Packet* const> packets) noexcept override;
  // Puts other settings in place and hands back the filter and the hash before, for control to
  // drop.
  void swap_settings(RxSettings& settings) noexcept;

  bool poll() noexcept override { return pacer_.poll(queue(), *reactor_); }
  bool arm() noexcept override { return false; }
  void disarm() noexcept override {}
  [[nodiscard]] std::uint64_t sleep_ns_max() const noexcept override {
    return pacer_.sleep_ns_max();
  }
  // deliver() does all there is to do, but for calls that are held back.
  [[nodiscard]] bool may_rest() const noexcept override { return !pacer_.paces(); }

  [[nodiscard]] bool can_move() const noexcept override { return posted_.empty(); }
  void attached(base::Reactor& reactor) noexcept override;
  void enabled_changed(bool) noexcept override {}
  void quiesce() noexcept override;
  // What a device may fill is taken from it first, by control.
  [[nodiscard]] bool drained() noexcept override { return posted_first_ == posted_next_; }
  [[nodiscard]] bool memory_released() noexcept override { return drained(); }
  void detached(base::Reactor& reactor) noexcept override;

  // Its buffers may be given to a device; it stays on its reactor. Control, before it is attached.
  void be_direct();
  [[nodiscard]] vswitch::DirectSink::Taken take(std::uint32_t bytes,
                                                std::byte*& place) noexcept override;
  void untake() noexcept override;
  [[nodiscard]] std::size_t taken() const noexcept override { return posted_next_ - posted_over_; }
  [[nodiscard]] std::byte* first() const noexcept override;
  void fill(std::uint32_t bytes, bool checksum_verified) noexcept override;
  void publish() noexcept override;
  void give_back() noexcept override;

  // Frames that the guest got. Thread: any.
  [[nodiscard]] const QueueTraffic& traffic() const noexcept { return traffic_; }

 private:
  enum class Outcome {
    written,
    ring_full,   // no buffer at all
    ring_short,  // some, not enough
    too_small,   // the buffers, or the MTU
    malformed,
    fault,
  };

  // `Header` is the policy of what stands before a frame, settled when the queue is started.
  struct PlainHeader;
  struct HashedHeader;
  template <class Header, class R>
  void accept_all(R& ring, std::span<const vswitch::Packet* const> packets) noexcept;
  // Puts frames that go as they are, each into one buffer in one piece, into the ring, up to the
  // first that has to be looked at more closely, of which nothing was done. Answers how many.
  template <class Header, class R>
  std::size_t write_usual(R& ring, std::span<const vswitch::Packet* const> packets) noexcept;
  template <class Header, class Cursor>
  [[gnu::always_inline]] std::size_t write_with(
      Cursor& cursor, std::span<const vswitch::Packet* const> packets) noexcept;
  // Puts one that goes as it is into as many buffers as it needs, of which `room` is the first.
  // False: they do not reach, or are not usual ones; nothing was done.
  template <class Header, class Cursor>
  bool spread(Cursor& cursor, const vswitch::Packet& packet, virtio::Segment room) noexcept;
  [[nodiscard]] bool goes_as_it_is(const vswitch::Packet& packet) const noexcept;
  template <class Header, class R>
  void accept(R& ring, const vswitch::Packet& packet) noexcept;
  template <class Header, class R>
  Outcome accept_whole(R& ring, const vswitch::Packet& packet) noexcept;
  template <class Header, class R>
  Outcome accept_segment(R& ring) noexcept;
  template <class Header, class R>
  void accept_segments(R& ring, const vswitch::Packet& packet) noexcept;
  // Puts one frame into one buffer, or into as many as it needs; all or nothing.
  template <class Header, class R>
  Outcome write(R& ring, const vswitch::Packet& packet, Frame& frame) noexcept;
  template <class Header>
  void put_header(const Header& header) noexcept;
  // Gives all buffers of this packet back to the ring, unused.
  template <class R>
  Outcome back(R& ring, virtio::Mark mark, Outcome outcome) noexcept;
  // Copies as much of `frame` as the chain holds behind `reserve` bytes.
  std::uint32_t fill(const virtio::Chain& chain, std::size_t reserve, Frame& frame) noexcept;
  // Marks the first `bytes` of `segments` in the dirty log.
  void log(std::span<const virtio::Segment> segments, std::uint32_t bytes) noexcept;
  [[nodiscard]] bool exceeds_mtu(const vswitch::Packet& packet) const noexcept;
  void count(Outcome outcome) noexcept;

  // A buffer that a device may fill, and where the ring stood before it was taken.
  struct Posted {
    virtio::Segment buffer;
    virtio::Ticket ticket;
    virtio::Mark before;
  };
  // An Ethernet header and two tags, of frames that nobody looks at.
  static constexpr std::uint32_t direct_link_header = 22;
  [[nodiscard]] bool takes_direct() const noexcept;
  [[nodiscard]] const Posted& posted(std::size_t at) const noexcept {
    return posted_[at & (posted_.size() - 1)];
  }
  [[nodiscard]] Posted& posted(std::size_t at) noexcept {
    return posted_[at & (posted_.size() - 1)];
  }

  const std::size_t header_size_;
  const bool mergeable_, reports_hash_;
  const std::uint16_t mtu_;
  const Acceptance acceptance_;
  const SwitchSides sides_;
  std::shared_ptr<const RxFilter> filter_;
  std::shared_ptr<const vswitch::PacketHash> hash_;
  CallPacer pacer_;
  std::uint64_t written_ = 0, written_bytes_ = 0;  // frames of this burst
  SwitchSide side_;
  base::Reactor* reactor_ = nullptr;
  bool quiesced_ = false;
  virtio::Fault fault_ = virtio::Fault::none;  // found in this burst
  std::uint64_t delivered_at_ = 0;             // TSC of the round of the last burst
  QueueTraffic traffic_;

  std::vector<Posted> posted_;  // a ring; empty: none is ever given to a device
  // Of those: the first that is not the guest's again, the first whose turn is not over, the end.
  std::size_t posted_first_ = 0, posted_over_ = 0, posted_next_ = 0;
  std::uint64_t direct_given_ = 0, direct_written_ = 0, direct_bytes_ = 0;  // of this burst

  struct Used {
    virtio::Ticket ticket;
    std::uint32_t bytes;
  };
  std::array<Used, buffers_max> used_;
  vswitch::Packet segment_;
  virtio::Chain first_, next_;
};

}  // namespace millrace::net
