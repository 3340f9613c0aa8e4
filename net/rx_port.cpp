#include "net/rx_port.hpp"

#include <algorithm>
#include <cstring>

#include "base/check.hpp"
#include "base/load_sample.hpp"
#include "net/rss_config.hpp"
#include "switch/gso.hpp"

namespace millrace::net {

using virtio::Fault;
using virtio::Take;
using virtio::wire::NetHeader;
using vswitch::Packet;

namespace {

constexpr std::uint32_t ethernet_header = 14, vlan_tag = 4;

// TSC cycles in which a reactor that is busy with others fills a processor's caches anew.
constexpr std::uint64_t forgotten_after = 400'000;

// Bytes of Ethernet header and VLAN tags (at most two), which an MTU does not count.
std::uint32_t link_header(const Packet& packet) noexcept {
  std::uint32_t size = ethernet_header;
  for (int tags = 0; tags < 2 && size <= packet.header_size; ++tags) {
    const auto high = packet.header[size - 2], low = packet.header[size - 1];
    const bool tagged = (high == std::byte{0x81} && low == std::byte{0x00}) ||
                        (high == std::byte{0x88} && low == std::byte{0xa8});
    if (!tagged) break;
    size += vlan_tag;
  }
  return size;
}

}  // namespace

struct RxPort::PlainHeader {
  PlainHeader(const RxPort& port, const Packet& packet, std::uint16_t buffers) noexcept
      : wire{describe(packet.offload, port.acceptance_, buffers)} {}
  NetHeader wire;
};

// virtio 1.2 §5.1.6.4.3.
struct RxPort::HashedHeader {
  HashedHeader(const RxPort& port, const Packet& packet, std::uint16_t buffers) noexcept
      : wire{describe(packet.offload, port.acceptance_, buffers), {}, {}, {}} {
    if (port.hash_ == nullptr) return;
    const auto hash = port.hash_->of(packet);
    wire.hash_value = base::le32{hash.value};
    wire.hash_report = base::le16{report_of(hash.kind)};
  }
  virtio::wire::NetHashHeader wire;
};

RxPort::RxPort(std::unique_ptr<virtio::Queue> queue, std::uint64_t features, std::uint16_t mtu,
               SwitchSides sides)
    : QueueWorker{std::move(queue)},
      header_size_{header_size(features)},
      mergeable_{(features & virtio::wire::net_feature::mrg_rxbuf) != 0},
      reports_hash_{(features & virtio::wire::net_feature::hash_report) != 0},
      mtu_{(features & virtio::wire::net_feature::mtu) != 0 ? mtu : std::uint16_t{0}},
      acceptance_{Acceptance::of(features)},
      sides_{sides} {}

void RxPort::attached(base::Reactor& reactor) noexcept {
  CHECK(reactor.index() < sides_.size());
  reactor_ = &reactor;
  side_ = sides_[reactor.index()];
  quiesced_ = false;
  queue().with_ring([](auto& ring) { ring.disarm(); });
}

void RxPort::detached(base::Reactor&) noexcept {
  reactor_ = nullptr;
}

void RxPort::quiesce() noexcept {
  quiesced_ = true;
  pacer_.flush(queue(), reactor_->calls());
}

void RxPort::swap_settings(RxSettings& settings) noexcept {
  filter_.swap(settings.filter);
  hash_.swap(settings.hash);
  pacer_.set(settings.pace, queue(), reactor_->calls());
  if (pacer_.paces()) reactor_->stir(*this);
}

void RxPort::deliver(std::span<const Packet* const> packets) noexcept {
  CHECK(reactor_ != nullptr);  // an endpoint is taken off the switch before its queue is detached
  const base::LoadSample sample{*reactor_, *this};
  virtio::Queue& q = queue();
  if (quiesced_ || !q.enabled()) return side_.counters->drop_no_queue.add(packets.size());
  // The next buffers are a device's: what is not its own does not get past it.
  if (!drained()) return side_.counters->drop_no_queue.add(packets.size());
  if (q.fault() != Fault::none) return side_.counters->drop_queue_fault.add(packets.size());
  written_ = written_bytes_ = 0;
  fault_ = Fault::none;
  // What the last burst asked for is gone where many others came in between.
  const bool forgotten = reactor_->round_cycles() - delivered_at_ > forgotten_after;
  delivered_at_ = reactor_->round_cycles();
  q.with_ring([&](auto& ring) {
    if (forgotten) {
      ring.look(packets.size());
      ring.prefetch_to_write(packets.size());
    }
    if (reports_hash_) {
      accept_all<HashedHeader>(ring, packets);
    } else {
      accept_all<PlainHeader>(ring, packets);
    }
    if (forgotten) return;
    // The driver's processor had these last: they are on their way while the next burst is made.
    ring.prefetch_to_write(vswitch::burst_max);
    ring.prefetch(2 * vswitch::burst_max);
  });
  if (written_ != 0) {
    side_.counters->rx_packets.add(written_);
    side_.counters->rx_bytes.add(written_bytes_);
    traffic_.packets.add(written_);
    traffic_.bytes.add(written_bytes_);
    pacer_.publish(q, written_, *reactor_);
  }
  if (fault_ != Fault::none) q.poison(fault_, reactor_->calls());
  q.check_memory(reactor_->calls());
}

template <class Header, class R>
void RxPort::accept_all(R& ring, std::span<const Packet* const> packets) noexcept {
  for (std::size_t done = 0;;) {
    done += write_usual<Header>(ring, packets.subspan(done));
    if (done == packets.size()) return;
    accept<Header>(ring, *packets[done++]);
  }
}

[[gnu::always_inline]] inline bool RxPort::goes_as_it_is(const Packet& packet) const noexcept {
  if (packet.offload.done() && mtu_ == 0) [[likely]]
    return true;
  return acceptance_.takes_whole(packet) && !exceeds_mtu(packet) &&
         (acceptance_.checksum || !packet.offload.checksum_needed);
}

template <class Header, class R>
std::size_t RxPort::write_usual(R& ring, std::span<const Packet* const> packets) noexcept {
  if (header_size_ != sizeof(Header::wire) || fault_ != Fault::none) return 0;
  return virtio::with_cursor(
      ring, [&](auto& cursor)
                __attribute__((always_inline)) { return write_with<Header>(cursor, packets); });
}

template <class Header, class Cursor>
inline std::size_t RxPort::write_with(Cursor& cursor,
                                      std::span<const Packet* const> packets) noexcept {
  constexpr std::size_t size_of_header = sizeof(Header::wire);
  std::size_t count = 0;
  std::uint64_t sum = 0;
  const RxFilter* const filter = filter_.get();
  const bool logging = queue().logging();
  for (const Packet* each : packets) {
    const Packet& packet = *each;
    if (!goes_as_it_is(packet) || (filter != nullptr && !filter->takes(packet))) break;
    const virtio::Segment room = cursor.next(true);
    const std::uint32_t length = packet.length, head = packet.header_size;
    const auto bytes = static_cast<std::uint32_t>(size_of_header + length);
    if (room.size < bytes) {
      if (!mergeable_ || !spread<Header>(cursor, packet, room)) break;
      ++count;
      sum += length;
      continue;
    }
    const Header header{*this, packet, 1};
    std::byte* out = room.data;
    std::memcpy(out, &header.wire, size_of_header);
    out += size_of_header;
    copy_header(out, packet.header.data(), head);
    out += head;
    std::uint32_t left = length - head;
    for (const vswitch::View& view : packet.payload()) {
      const std::uint32_t part = std::min(view.size, left);
      std::memcpy(out, view.data, part);
      out += part;
      left -= part;
    }
    if (logging) queue().wrote(room, bytes);
    cursor.give(cursor.take(), bytes);
    ++count;
    sum += length;
  }
  written_ += count;
  written_bytes_ += sum;
  return count;
}

template <class Header, class Cursor>
bool RxPort::spread(Cursor& cursor, const Packet& packet, virtio::Segment room) noexcept {
  constexpr std::uint32_t size_of_header = sizeof(Header::wire);
  const auto before = cursor.place();
  const bool logging = queue().logging();
  std::byte* const begin = room.data;
  Frame frame{packet};
  std::size_t count = 0;
  for (std::uint32_t reserve = size_of_header;; reserve = 0, room = cursor.next(true)) {
    if (room.size <= reserve || count == buffers_max) {
      cursor.go_back(before);
      return false;
    }
    const auto copied = frame.read({room.data + reserve, room.size - reserve});
    const auto bytes = reserve + static_cast<std::uint32_t>(copied);
    if (logging) queue().wrote(room, bytes);
    used_[count++] = {cursor.take(), bytes};
    if (frame.left() == 0) break;
  }
  const Header header{*this, packet, static_cast<std::uint16_t>(count)};
  std::memcpy(begin, &header.wire, size_of_header);
  for (std::size_t i = 0; i < count; ++i) cursor.give(used_[i].ticket, used_[i].bytes);
  return true;
}

template <class Header, class R>
void RxPort::accept(R& ring, const Packet& packet) noexcept {
  if (filter_ != nullptr && !filter_->takes(packet)) return side_.counters->filtered.add();
  if (acceptance_.takes_whole(packet)) {
    const Outcome outcome = accept_whole<Header>(ring, packet);
    // A large packet that these buffers cannot hold goes in segments, as far as they reach.
    const bool no_room = outcome == Outcome::too_small || outcome == Outcome::ring_short;
    const bool split = no_room && packet.offload.gso != vswitch::Gso::none;
    if (!split) return count(outcome);
  }
  accept_segments<Header>(ring, packet);
}

template <class Header, class R>
RxPort::Outcome RxPort::accept_whole(R& ring, const Packet& packet) noexcept {
  if (fault_ != Fault::none) return Outcome::fault;
  if (exceeds_mtu(packet)) return Outcome::too_small;
  Frame frame{packet};
  if (packet.offload.checksum_needed && !acceptance_.checksum) {
    const std::size_t at =
        std::size_t{packet.offload.checksum_start} + packet.offload.checksum_offset;
    if (!frame.patch(at, vswitch::complete_checksum(packet))) return Outcome::malformed;
    side_.counters->checksummed.add();
  }
  return write<Header>(ring, packet, frame);
}

template <class Header, class R>
RxPort::Outcome RxPort::accept_segment(R& ring) noexcept {
  const Packet* const one = &segment_;
  return write_usual<Header>(ring, {&one, 1}) == 1 ? Outcome::written
                                                   : accept_whole<Header>(ring, segment_);
}

template <class Header, class R>
void RxPort::accept_segments(R& ring, const Packet& packet) noexcept {
  side_.counters->segmented.add();
  vswitch::Segmenter segmenter{packet};
  Outcome outcome = Outcome::written;
  while (segmenter.next(segment_)) {
    // No checksum is worth computing for a ring that is known to be empty.
    if (outcome != Outcome::ring_full) outcome = accept_segment<Header>(ring);
    count(outcome);
  }
}

template <class R>
RxPort::Outcome RxPort::back(R& ring, virtio::Mark mark, Outcome outcome) noexcept {
  ring.rewind(mark);
  return outcome;
}

template <class Header, class R>
RxPort::Outcome RxPort::write(R& ring, const Packet& packet, Frame& frame) noexcept {
  const virtio::Mark mark = ring.mark();
  std::size_t buffers = 0;
  std::uint32_t first_bytes = 0;
  do {
    virtio::Chain& chain = buffers == 0 ? first_ : next_;
    const std::size_t reserve = buffers == 0 ? header_size_ : 0;
    if (buffers == buffers_max) return back(ring, mark, Outcome::too_small);
    const Take take = ring.take(chain);
    if (take == Take::fault) {
      fault_ = ring.fault();
      return back(ring, mark, Outcome::fault);
    }
    if (take == Take::empty) {
      return back(ring, mark, buffers == 0 ? Outcome::ring_full : Outcome::ring_short);
    }
    // A buffer without room for the header, or for anything, can never be used (§5.1.6.3.1).
    const std::uint64_t room = chain.writable_bytes();
    if (room < std::max<std::size_t>(reserve, 1)) {
      fault_ = Fault::request_malformed;
      return back(ring, mark, Outcome::fault);
    }
    if (!mergeable_ && room - reserve < frame.length()) {
      return back(ring, mark, Outcome::too_small);
    }
    const std::uint32_t bytes = fill(chain, reserve, frame);
    if (buffers == 0) first_bytes = bytes;
    used_[buffers++] = {chain.ticket(), bytes};
  } while (frame.left() > 0);

  put_header(Header{*this, packet, static_cast<std::uint16_t>(buffers)});
  if (queue().logging()) log(first_.writable(), first_bytes);
  for (std::size_t i = 0; i < buffers; ++i) ring.give(used_[i].ticket, used_[i].bytes);
  ++written_;
  written_bytes_ += packet.length;
  return Outcome::written;
}

// Before the frame in its first buffer, which has room for it.
template <class Header>
void RxPort::put_header(const Header& header) noexcept {
  const virtio::Segment& segment = first_.writable().front();
  if (header_size_ == sizeof header.wire && segment.size >= sizeof header.wire) [[likely]] {
    std::memcpy(segment.data, &header.wire, sizeof header.wire);
    return;
  }
  const auto bytes = std::as_bytes(std::span{&header.wire, 1});
  virtio::copy_to(first_.writable(), 0, bytes.first(header_size_));
}

std::uint32_t RxPort::fill(const virtio::Chain& chain, std::size_t reserve, Frame& frame) noexcept {
  std::uint32_t bytes = static_cast<std::uint32_t>(reserve);
  std::size_t skip = reserve;
  for (const virtio::Segment& segment : chain.writable()) {
    if (frame.left() == 0) break;
    if (skip >= segment.size) {
      skip -= segment.size;
      continue;
    }
    bytes += static_cast<std::uint32_t>(frame.read({segment.data + skip, segment.size - skip}));
    skip = 0;
  }
  if (queue().logging() && reserve == 0) log(chain.writable(), bytes);
  return bytes;
}

void RxPort::log(std::span<const virtio::Segment> segments, std::uint32_t bytes) noexcept {
  for (const virtio::Segment& segment : segments) {
    if (bytes == 0) break;
    const std::uint32_t part = std::min(bytes, segment.size);
    queue().wrote(segment, part);
    bytes -= part;
  }
}

bool RxPort::exceeds_mtu(const Packet& packet) const noexcept {
  if (mtu_ == 0 || packet.offload.gso != vswitch::Gso::none) return false;
  return packet.length > mtu_ + link_header(packet);
}

void RxPort::count(Outcome outcome) noexcept {
  switch (outcome) {
    case Outcome::written:
      break;
    case Outcome::malformed:
      side_.counters->drop_malformed.add();
      break;
    case Outcome::ring_full:
    case Outcome::ring_short:
      side_.counters->drop_ring_full.add();
      break;
    case Outcome::too_small:
      side_.counters->drop_too_long.add();
      break;
    case Outcome::fault:
      side_.counters->drop_queue_fault.add();
      break;
  }
}

}  // namespace millrace::net
