// RxPort: buffers that a device fills by itself (vswitch::DirectSink).
//
// `posted_` holds them in the order in which they were taken. What stands there is all that is
// known of a buffer until its frame came: the driver's words were read once, when it was taken. A
// queue that does not take frames now (stopped, disabled, poisoned) drops what comes: the buffers
// stay where they are, to go back.
#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.hpp"
#include "net/rx_port.hpp"

namespace millrace::net {

using virtio::Fault;

void RxPort::be_direct() {
  posted_.resize(std::bit_ceil(queue().size()));
}

bool RxPort::takes_direct() const noexcept {
  return reactor_ != nullptr && !quiesced_ && queue().enabled() && queue().fault() == Fault::none;
}

vswitch::DirectSink::Taken RxPort::take(std::uint32_t bytes, std::byte*& place) noexcept {
  if (!takes_direct() || reports_hash_ || posted_next_ - posted_first_ == posted_.size()) {
    return Taken::off;
  }
  if (mtu_ != 0 && bytes > mtu_ + direct_link_header) return Taken::off;
  return queue().with_ring([&](auto& ring) {
    const virtio::Mark before = ring.mark();
    const virtio::Take result = ring.take(first_);
    if (result == virtio::Take::empty) return Taken::empty;
    if (result == virtio::Take::fault) {
      queue().poison(ring.fault(), reactor_->calls());
      return Taken::off;
    }
    const auto segments = first_.writable();
    const bool fits = segments.size() == 1 && first_.readable().empty() &&
                      segments[0].size >= header_size_ + bytes;
    if (!fits) {
      ring.rewind(before);
      return Taken::small;
    }
    posted(posted_next_++) = {segments[0], first_.ticket(), before};
    place = segments[0].data + header_size_;
    return Taken::place;
  });
}

void RxPort::untake() noexcept {
  CHECK(taken() != 0);
  const virtio::Mark before = posted(--posted_next_).before;
  queue().with_ring([&](auto& ring) { ring.rewind(before); });
}

std::byte* RxPort::first() const noexcept {
  return posted(posted_over_).buffer.data + header_size_;
}

void RxPort::fill(std::uint32_t bytes, bool checksum_verified) noexcept {
  CHECK(taken() != 0);
  const Posted& its = posted(posted_over_++);
  // Once one of them was not given, none after it is: they all go back.
  if (!takes_direct() || posted_first_ + 1 != posted_over_) {
    auto& drop = queue().fault() != Fault::none ? side_.counters->drop_queue_fault
                                                : side_.counters->drop_no_queue;
    return drop.add();
  }
  ++posted_first_;
  std::uint32_t used = 0;
  if (bytes != 0) {
    vswitch::Offload offload;
    offload.checksum_verified = checksum_verified;
    const auto header = describe(offload, acceptance_, 1);
    std::memcpy(its.buffer.data, &header, std::min(sizeof header, header_size_));
    used = static_cast<std::uint32_t>(header_size_) + bytes;
    if (queue().logging()) queue().wrote(its.buffer, used);
    ++direct_written_;
    direct_bytes_ += bytes;
  }
  queue().with_ring([&](auto& ring) { ring.give(its.ticket, used); });
  ++direct_given_;
}

void RxPort::publish() noexcept {
  if (direct_given_ == 0) return;
  side_.counters->rx_packets.add(direct_written_);
  side_.counters->rx_bytes.add(direct_bytes_);
  traffic_.packets.add(direct_written_);
  traffic_.bytes.add(direct_bytes_);
  pacer_.publish(queue(), direct_given_, *reactor_);
  direct_given_ = direct_written_ = direct_bytes_ = 0;
  static_cast<void>(queue().check_memory(reactor_->calls()));
}

void RxPort::give_back() noexcept {
  if (posted_first_ != posted_next_) {
    const virtio::Mark before = posted(posted_first_).before;
    queue().with_ring([&](auto& ring) { ring.rewind(before); });
  }
  posted_first_ = posted_over_ = posted_next_ = 0;
}

}  // namespace millrace::net
