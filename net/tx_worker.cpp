#include "net/tx_worker.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/check.hpp"
#include "net/frame.hpp"
#include "net/offload.hpp"

namespace millrace::net {

using virtio::Fault;
using virtio::Take;
using virtio::wire::NetHeader;
using vswitch::burst_bytes_max;
using vswitch::Packet;

namespace {
constexpr std::size_t frame_min = 14;  // an Ethernet header
constexpr std::size_t cache_line = 64;

// What is fetched of a frame: at most three lines. Any address is safe.
void bring_near(const std::byte* at, std::size_t bytes) noexcept {
  __builtin_prefetch(at);
  __builtin_prefetch(at + cache_line);
  if (bytes > 2 * cache_line) __builtin_prefetch(at + 2 * cache_line);
}

// What a longer header goes on with says nothing about a frame that is sent.
NetHeader fetch_request(const std::byte* head, std::size_t header_size) noexcept {
  NetHeader request{};
  if (header_size >= sizeof request) [[likely]] {
    std::memcpy(&request, head, sizeof request);
  } else {
    std::memcpy(&request, head, virtio::wire::net_header_size_legacy);
  }
  return request;
}

}  // namespace

TxWorker::TxWorker(std::unique_ptr<virtio::Queue> queue, std::uint64_t features,
                   vswitch::PortId port, SwitchSides sides)
    : QueueWorker{std::move(queue)},
      features_{features},
      header_size_{header_size(features)},
      port_{port},
      sides_{sides},
      bounce_{std::make_unique_for_overwrite<std::byte[]>(Packet::length_max)} {}

void TxWorker::attached(base::Reactor& reactor) noexcept {
  CHECK(reactor.index() < sides_.size());
  reactor_ = &reactor;
  side_ = sides_[reactor.index()];
  burst_ = side_.bridge->burst().data();
  quiesced_ = false;
  choose_lender();
  was_enabled_ = was_enabled_ || queue().enabled();
  disarm();
}

void TxWorker::enabled_changed(bool enabled) noexcept {
  was_enabled_ = was_enabled_ || enabled;
}

void TxWorker::detached(base::Reactor&) noexcept {
  reactor_ = nullptr;
}

bool TxWorker::holding() noexcept {
  return reactor_ == nullptr || quiesced_ || !was_enabled_ || queue().fault() != Fault::none;
}

void TxWorker::set_lending(bool lends, std::unique_ptr<Loans>& fresh) noexcept {
  lends_ = lends;
  if (lends_ && loans_ == nullptr) loans_.swap(fresh);
  choose_lender();
}

void TxWorker::choose_lender() noexcept {
  const bool may = lends_ && !quiesced_ && !changing_memory_;
  lender_ = may ? loans_.get() : nullptr;
}

bool TxWorker::memory_released() noexcept {
  changing_memory_ = !drained();
  choose_lender();
  return !changing_memory_;
}

bool TxWorker::publish_returned() noexcept {
  const std::size_t count = loans_->take_returned();
  if (count == 0) return false;
  pacer_.publish(queue(), count, *reactor_);
  return true;
}

void TxWorker::quiesce() noexcept {
  quiesced_ = true;
  choose_lender();
  pacer_.flush(queue(), reactor_->calls());
}

bool TxWorker::poll() noexcept {
  // What is owed is sent in any case: a reactor does not sleep over it.
  bool busy = loans_ != nullptr && reactor_ != nullptr && publish_returned();
  if (holding()) return (reactor_ != nullptr && pacer_.poll(queue(), *reactor_)) || busy;
  busy = queue().with_ring([this](auto& ring) { return visit(ring); }) || busy;
  return pacer_.poll(queue(), *reactor_) || busy;
}

void TxWorker::come_near() noexcept {
  if (!holding()) queue().with_ring([](auto& ring) { ring.look(vswitch::burst_max); });
}

std::uint64_t TxWorker::sleep_ns_max() const noexcept {
  return std::min(QueueWorker::sleep_ns_max(), pacer_.sleep_ns_max());
}

bool TxWorker::arm() noexcept {
  if (loans_ != nullptr && loans_->returned()) return true;
  if (holding()) return false;
  return queue().with_ring([](auto& ring) { return ring.arm(); });
}

void TxWorker::disarm() noexcept {
  queue().with_ring([](auto& ring) { ring.disarm(); });
}

template <class R>
bool TxWorker::visit(R& ring) noexcept {
  const Take last = collect(ring);
  // Of the next burst: the descriptors now, the frames once the descriptors are here.
  if (taken_ > 0) ring.prefetch(vswitch::burst_max);
  if (lender_ != nullptr) offer_to_lend();
  if (count_ > 0) forward();
  if (taken_ > 0) ring.prefetch_to_read(vswitch::burst_max);
  const std::size_t given = give_back(ring);
  if (given > 0) pacer_.publish(queue(), given, *reactor_);
  if (last == Take::fault) queue().poison(ring.fault(), reactor_->calls());
  const bool lost = queue().check_memory(reactor_->calls());
  if (last == Take::empty && !lost && !pacer_.paces() && !owes()) look_at(ring.glance());
  return taken_ > 0;
}

// Buffers that come back, or came, without the driver's doing.
bool TxWorker::owes() const noexcept {
  return loans_ != nullptr && (loans_->out() != 0 || loans_->returned());
}

void TxWorker::offer_to_lend() noexcept {
  loans_->begin_visit({tickets_.data(), taken_});
  for (std::size_t i = 0; i < count_; ++i) burst_[i].completion = lender_;
}

template <class R>
std::size_t TxWorker::give_back(R& ring) noexcept {
  if (loans_ != nullptr && loans_->concern_visit()) [[unlikely]] {
    return loans_->end_visit({tickets_.data(), taken_});
  }
  const bool given = virtio::with_cursor(
      ring, [this](auto& cursor) __attribute__((always_inline)) {
        if (!cursor.serves()) return false;
        for (std::size_t i = 0; i < taken_; ++i) cursor.give(tickets_[i], 0);
        return true;
      });
  if (given) return taken_;
  for (std::size_t i = 0; i < taken_; ++i) ring.give(tickets_[i], 0);
  return taken_;
}

template <class R>
Take TxWorker::collect(R& ring) noexcept {
  taken_ = count_ = 0;
  bounce_used_ = false;
  std::uint64_t bytes = 0;
  const bool sending = queue().enabled();
  for (;;) {
    if (sending) {
      bytes += virtio::with_cursor(
          ring, [&](auto& cursor) __attribute__((always_inline)) {
            return collect_usual(cursor, burst_bytes_max - bytes);
          });
    }
    if (taken_ == vswitch::burst_max || bytes >= burst_bytes_max || bounce_used_)
      return Take::chain;
    const Take last = ring.take(chain_);
    if (last != Take::chain) return last;
    tickets_[taken_++] = chain_.ticket();
    if (!sending) continue;
    if (describe(burst_[count_], heads_[count_])) {
      bytes += burst_[count_++].length;
    } else {
      side_.counters->drop_malformed.add();
    }
  }
}

// Frames that lie in one piece, up to the first buffer that has to be looked at more closely, of
// which nothing was done. Answers their bytes.
template <class Cursor>
inline std::uint64_t TxWorker::collect_usual(Cursor& cursor, std::uint64_t bytes_most) noexcept {
  std::size_t taken = taken_, count = count_;
  std::uint64_t bytes = 0;
  const std::size_t header_size = header_size_;
  Packet* packet = burst_ + count;
  for (; taken < vswitch::burst_max && bytes < bytes_most; ++taken, ++count, ++packet) {
    const virtio::Segment piece = cursor.next(false);
    const std::size_t length = piece.size - header_size;  // too short: too much
    if (length - frame_min > Packet::length_max - frame_min) break;
    tickets_[taken] = cursor.take();
    begin(*packet, length, taken);
    const std::size_t fetched = std::min(length, Packet::header_max);
    std::byte* const frame = piece.data + header_size;
    heads_[count] = piece.data;
    bring_near(piece.data, header_size + fetched);
    packet->views[0] = {frame + fetched, static_cast<std::uint32_t>(length - fetched)};
    packet->view_count = length > fetched ? 1 : 0;
    bytes += length;
  }
  taken_ = taken;
  count_ = count;
  return bytes;
}

void TxWorker::begin(Packet& packet, std::size_t length, std::size_t number) const noexcept {
  packet.length = static_cast<std::uint32_t>(length);
  packet.header_size =
      static_cast<std::uint16_t>(std::min<std::size_t>(length, Packet::header_max));
  packet.source = port_;
  packet.flow_hash = 0;
  packet.completion = nullptr;
  packet.token = static_cast<std::uint32_t>(number);
}

bool TxWorker::describe(Packet& packet, const std::byte*& head) noexcept {
  const auto segments = chain_.readable();
  const std::uint64_t bytes = chain_.readable_bytes();
  if (bytes < header_size_ + frame_min || bytes > header_size_ + Packet::length_max) return false;
  begin(packet, bytes - header_size_, taken_ - 1);
  const std::size_t fetched = header_size_ + packet.header_size;
  if (segments.front().size >= fetched) [[likely]] {
    head = segments.front().data;
    bring_near(head, fetched);
  } else {
    head = nullptr;
    // What a longer header goes on with says nothing about a frame that is sent.
    NetHeader request{};
    const auto raw = std::as_writable_bytes(std::span{&request, 1});
    virtio::copy_from(segments, 0, raw.first(std::min(header_size_, raw.size())));
    virtio::copy_from(segments, header_size_, std::span{packet.header}.first(packet.header_size));
    if (!read_request(request, features_, packet.offload)) return false;
  }
  name_payload(packet);
  return true;
}

// Each byte of the headers is fetched here or was in describe(), and is not looked at again.
bool TxWorker::fetch(Packet& packet, const std::byte* head) noexcept {
  if (head == nullptr) return true;
  const NetHeader request = fetch_request(head, header_size_);
  copy_header(packet.header.data(), head + header_size_, packet.header_size);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  return read_request(request, features_, packet.offload);
}

void TxWorker::forward() noexcept {
  const std::size_t count = count_;
  Packet* const burst = burst_;
  std::size_t first = 0;
  std::uint64_t sent = 0, bytes = 0;
  const auto hand_over = [&](std::size_t end) {
    if (first < end) side_.bridge->forward(port_, {burst + first, end - first});
    first = end + 1;
  };
  for (std::size_t i = 0; i < count; ++i) {
    if (fetch(burst[i], heads_[i])) [[likely]] {
      ++sent, bytes += burst[i].length;
      continue;
    }
    side_.counters->drop_malformed.add();
    hand_over(i);
  }
  hand_over(count);
  if (sent > 0) traffic_.packets.add(sent), traffic_.bytes.add(bytes);
}

void TxWorker::name_payload(Packet& packet) noexcept {
  const std::size_t start = header_size_ + packet.header_size;
  std::size_t skip = start;
  std::uint16_t count = 0;
  for (const virtio::Segment& segment : chain_.readable()) {
    if (skip >= segment.size) {
      skip -= segment.size;
      continue;
    }
    if (count == Packet::views_max) {
      const std::uint32_t size = packet.length - packet.header_size;
      virtio::copy_from(chain_.readable(), start, {bounce_.get(), size});
      packet.views[0] = {bounce_.get(), size};
      count = 1;
      bounce_used_ = true;
      break;
    }
    packet.views[count++] = {segment.data + skip, static_cast<std::uint32_t>(segment.size - skip)};
    skip = 0;
  }
  packet.view_count = count;
}

}  // namespace millrace::net
