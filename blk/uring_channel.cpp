#include "blk/uring_channel.hpp"

#include <fcntl.h>
#include <linux/falloc.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace millrace::blk {

namespace {

alignas(4096) const std::array<std::byte, limits::zero_bytes> zeroes{};

// The same piece of zeroes again and again. Written to files only: the kernel does not change it.
std::array<iovec, limits::zero_vectors> make_zero_vectors() {
  std::array<iovec, limits::zero_vectors> out{};
  for (iovec& part : out) part = {const_cast<std::byte*>(zeroes.data()), zeroes.size()};
  return out;
}
const std::array<iovec, limits::zero_vectors> zero_vectors = make_zero_vectors();

bool transfers(const Io& io) {
  return io.operation == Operation::read || io.operation == Operation::write;
}

}  // namespace

void UringChannel::attached(base::Reactor& reactor) noexcept {
  const unsigned index = reactor.index();
  CHECK(index < ways_.rings.size());
  ring_ = ways_.rings[index];
  not_pinned_ = nullptr;  // another ring may have the room
  buffered_ = ring_->add_file(target_.buffered);
  if (target_.direct < 0) return;
  direct_ = ring_->add_file(target_.direct);
  if (ways_.polled.empty()) return;
  polled_ = ways_.polled[index];
  direct_polled_ = polled_->add_file(target_.direct);
}

void UringChannel::detached(base::Reactor&) noexcept {
  CHECK(in_ring_ == 0 && waiting_.empty() && pinned_ == nullptr);
  ring_->remove_file(buffered_);
  if (target_.direct >= 0) ring_->remove_file(direct_);
  if (polled_ != nullptr) polled_->remove_file(direct_polled_);
  ring_ = polled_ = nullptr;
}

bool UringChannel::drop_pins() noexcept {
  if (first_buffer_ >= 0 && !ring_->remove_buffers(*pinned_)) return false;
  first_buffer_ = -1;
  if (first_polled_ >= 0 && !polled_->remove_buffers(*pinned_)) return false;
  first_polled_ = -1;
  pinned_ = nullptr;
  return true;
}

bool UringChannel::look_at_pins() noexcept {
  if (ways_.pins == nullptr) return true;
  const PinnedMemory* const wanted = ways_.pins->load(std::memory_order_acquire);
  if (wanted == pinned_) [[likely]]
    return true;
  if (!drop_pins()) return false;
  if (wanted == nullptr) not_pinned_ = nullptr;
  if (wanted == nullptr || wanted == not_pinned_ || !wanted->ready()) return true;
  first_buffer_ = ring_->add_buffers(*wanted);
  if (polled_ != nullptr) first_polled_ = polled_->add_buffers(*wanted);
  (first_buffer_ >= 0 || first_polled_ >= 0 ? pinned_ : not_pinned_) = wanted;
  return true;
}

int UringChannel::buffer_for(const Uring& ring, std::span<const iovec> vectors) noexcept {
  const int first = &ring == ring_ ? first_buffer_ : first_polled_;
  if (first < 0 || (vectors.size() > 1 && !ring.vectored_buffers())) return -1;
  const int slot = pinned_->slot_of(vectors, last_slot_);
  return slot < 0 ? -1 : first + slot;
}

bool UringChannel::pending() const noexcept {
  return !waiting_.empty() || !arrived_.empty() || !finished_.empty();
}

void UringChannel::submit(IoList& burst) noexcept {
  static_cast<void>(look_at_pins());
  while (Io* const io = burst.pop()) {
    io->home = &arrived_;
    const bool nothing = io->operation != Operation::flush && io->length == 0;
    (nothing ? finished_ : waiting_).push(*io);
  }
  pump();
}

bool UringChannel::poll(IoList& done) noexcept {
  bool busy = !finished_.empty();
  done.append(finished_);
  while (Io* const io = arrived_.pop()) {
    CHECK(in_ring_ > 0);
    --in_ring_;
    busy = true;
    (step_done(*io) ? done : waiting_).push(*io);
  }
  if (pump()) busy = true;
  return busy;
}

bool UringChannel::pump() noexcept {
  bool any = false;
  while (!waiting_.empty() && start(*waiting_.front()) == Start::started) {
    waiting_.pop();
    ++in_ring_;
    any = true;
  }
  return any;
}

UringChannel::Start UringChannel::start(Io& io) noexcept {
  const auto said = [](bool room) { return room ? Start::started : Start::no_room; };
  switch (io.operation) {
    case Operation::read:
    case Operation::write:
      return start_transfer(io);
    case Operation::flush:
      return said(ring_->sync(io, buffered_));
    case Operation::discard:
      return said(ring_->allocate(io, buffered_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE));
    case Operation::write_zeroes:
      if (io.write_out) return start_zero_writes(io);
      return said(ring_->allocate(
          io, buffered_,
          FALLOC_FL_KEEP_SIZE | (io.unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE)));
  }
  CHECK(false);
}

bool UringChannel::memory_is_aligned(const Io& io) const noexcept {
  for (const iovec& part : io.left()) {
    const auto at = reinterpret_cast<std::uintptr_t>(part.iov_base);
    if (at % target_.memory_alignment != 0 || part.iov_len % target_.offset_alignment != 0) {
      return false;
    }
  }
  return true;
}

UringChannel::Start UringChannel::start_transfer(Io& io) noexcept {
  const bool read = io.operation == Operation::read;
  UringFile file = direct_;
  if (target_.direct < 0) {
    file = buffered_;
  } else if (io.past_direct || io.offset % target_.offset_alignment != 0 ||
             io.length % target_.offset_alignment != 0) {
    file = buffered_;
  } else if (!memory_is_aligned(io)) {
    return start_bounced(io);
  }
  Uring* ring = ring_;
  // A durable write may end in a flush, which is nothing to poll for.
  if (polled_ != nullptr && !polling_refused_ && file.fd == direct_.fd && !io.past_polled &&
      !io.durable) {
    ring = polled_;
    file = direct_polled_;
  }
  const auto vectors = io.left();
  const int buffer = pinned_ == nullptr ? -1 : buffer_for(*ring, vectors);
  if (!(read ? ring->read(io, file, vectors, buffer) : ring->write(io, file, vectors, buffer))) {
    return Start::no_room;
  }
  if (buffer >= 0) statistics_.pinned.add();
  if (ring == polled_) statistics_.polled.add();
  if (target_.direct >= 0 && file.fd == buffered_.fd) statistics_.buffered.add();
  io.step_bytes = static_cast<std::uint32_t>(io.length);
  return Start::started;
}

UringChannel::Start UringChannel::start_bounced(Io& io) noexcept {
  const int buffer = bounce_->take();
  if (buffer < 0) return Start::no_room;
  const auto bytes =
      static_cast<std::uint32_t>(std::min<std::uint64_t>(io.length, limits::bounce_bytes));
  io.bounce = static_cast<std::int16_t>(buffer);
  const bool read = io.operation == Operation::read;
  if (!read) copy_bounced(io, false, bytes);
  const iovec part{bounce_->at(buffer), bytes};
  if (!(read ? ring_->read(io, direct_, {&part, 1}) : ring_->write(io, direct_, {&part, 1}))) {
    bounce_->give(buffer);
    io.bounce = -1;
    return Start::no_room;
  }
  statistics_.bounced.add();
  io.step_bytes = bytes;
  return Start::started;
}

UringChannel::Start UringChannel::start_zero_writes(Io& io) noexcept {
  const std::uint64_t pieces =
      std::min<std::uint64_t>(io.length / zeroes.size(), zero_vectors.size());
  // Whole pieces in one write; what is left at the end is less than one.
  const iovec tail{const_cast<std::byte*>(zeroes.data()), static_cast<std::size_t>(io.length)};
  const std::span<const iovec> vectors =
      pieces > 0 ? std::span{zero_vectors}.first(pieces) : std::span{&tail, 1};
  if (!ring_->write(io, buffered_, vectors)) return Start::no_room;
  io.step_bytes = static_cast<std::uint32_t>(pieces > 0 ? pieces * zeroes.size() : io.length);
  return Start::started;
}

void UringChannel::copy_bounced(Io& io, bool to_guest, std::uint32_t bytes) noexcept {
  std::byte* at = bounce_->at(io.bounce);
  for (const iovec& part : io.left()) {
    if (bytes == 0) break;
    const auto size = static_cast<std::uint32_t>(std::min<std::size_t>(part.iov_len, bytes));
    std::memcpy(to_guest ? part.iov_base : at, to_guest ? at : part.iov_base, size);
    at += size;
    bytes -= size;
  }
}

bool UringChannel::step_done(Io& io) noexcept {
  const bool over = io.result < 0 ? refused(io) : transferred(io);
  if (io.bounce >= 0) {
    bounce_->give(io.bounce);
    io.bounce = -1;
  }
  return over;
}

bool UringChannel::transferred(Io& io) noexcept {
  if (io.operation == Operation::flush) return true;
  if (!transfers(io) && !io.write_out) {
    io.advance(io.length);  // fallocate does all or nothing
    io.result = 0;
    return true;
  }
  const auto bytes = static_cast<std::uint32_t>(io.result);
  CHECK(bytes <= io.step_bytes);
  io.result = 0;
  if (bytes < io.step_bytes && ++io.attempts > limits::attempts_max) io.result = -EIO;
  // Nothing at all: the file ended before the disk did, somebody cut it.
  if (bytes == 0) io.result = -EIO;
  if (io.bounce >= 0 && io.operation == Operation::read) copy_bounced(io, true, bytes);
  io.advance(bytes);
  return io.length == 0 || io.result != 0;
}

// True: the refusal stands.
bool UringChannel::refused(Io& io) noexcept {
  const int why = -io.result;
  if ((why == EAGAIN || why == EINTR || why == EBUSY) && ++io.attempts <= limits::retries_max) {
    return false;
  }
  if (why == EINVAL && transfers(io) && target_.direct >= 0 && !io.past_direct) {
    io.past_direct = true;  // its alignment is not what the file system said
    return false;
  }
  if (why == EOPNOTSUPP && transfers(io) && !io.past_polled && polled_ != nullptr) {
    io.past_polled = true;  // what the device or file system said is not so
    polling_refused_ = true;
    return false;
  }
  if (why == EOPNOTSUPP && io.operation == Operation::discard) {
    io.advance(io.length);  // a discard is a hint
    io.result = 0;
    return true;
  }
  if (why == EOPNOTSUPP && io.operation == Operation::write_zeroes && !io.write_out) {
    io.write_out = true;
    return false;
  }
  return true;
}

}  // namespace millrace::blk
