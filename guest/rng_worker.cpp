#include "guest/rng_worker.hpp"

#include <string.h>
#include <sys/random.h>

#include <algorithm>
#include <utility>

namespace millrace::guest {

using virtio::Fault;
using virtio::Take;

RngWorker::RngWorker(std::unique_ptr<virtio::Queue> queue, Allowance& allowance,
                     RngCounters& counters)
    : QueueWorker{std::move(queue)},
      allowance_{allowance},
      counters_{counters},
      chain_{std::make_unique<virtio::Chain>()} {}

void RngWorker::attached(base::Reactor& reactor) noexcept {
  reactor_ = &reactor;
  disarm();
}

void RngWorker::detached(base::Reactor& reactor) noexcept {
  CHECK(&reactor == reactor_);
  reactor_ = nullptr;
}

bool RngWorker::poll() noexcept {
  if (!takes()) return false;
  allowance_.advance(reactor_->round_cycles());
  if (!allowance_.allows()) {
    if (!std::exchange(waiting_, true)) counters_.throttled.add();
    return false;
  }
  waiting_ = false;
  const auto taken = counters_.requests.get();
  queue().with_ring([this](auto& ring) {
    for (std::size_t done = 0; done < visit_max && allowance_.allows();) {
      const Take took = ring.take(*chain_);
      if (took == Take::fault) queue().poison(ring.fault(), reactor_->calls());
      if (took != Take::chain) break;
      const std::size_t count = serve(ring);
      if (count == 0) break;
      done += count;
    }
  });
  queue().check_memory(reactor_->calls());
  if (counters_.requests.get() == taken) return false;
  queue().publish_and_call(reactor_->calls());
  return true;
}

// The bytes for *chain_. 0: the queue is poisoned.
template <class RingType>
std::size_t RngWorker::serve(RingType& ring) noexcept {
  const auto segments = chain_->writable();
  const std::size_t count = fill(chain_->writable_bytes());
  if (count == 0 || chain_->readable_bytes() != 0) {  // §5.4.6.1: its buffers are for us to write
    queue().poison(Fault::request_malformed, reactor_->calls());
    return 0;
  }
  virtio::copy_to(segments, 0, std::span{bytes_}.first(count));
  std::size_t left = count;
  for (const auto& segment : segments) {
    const auto part = std::min<std::size_t>(segment.size, left);
    if (part == 0) break;
    queue().wrote(segment, static_cast<std::uint32_t>(part));
    left -= part;
  }
  ::explicit_bzero(bytes_.data(), count);  // they are this guest's secret now
  ring.give(chain_->ticket(), static_cast<std::uint32_t>(count));
  allowance_.spend(count);
  counters_.requests.add();
  counters_.bytes.add(count);
  return count;
}

// Never blocks: the generator was ready when the device was made, and stays so. Pieces of 256 bytes
// are never cut short by a signal (random(7)).
std::size_t RngWorker::fill(std::uint64_t wanted) noexcept {
  const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(wanted, answer_max));
  std::size_t done = 0;
  while (done < count) {
    const auto piece = std::min<std::size_t>(count - done, 256);
    const auto got = ::getrandom(bytes_.data() + done, piece, GRND_NONBLOCK);
    if (got <= 0) break;
    done += static_cast<std::size_t>(got);
  }
  return done;
}

bool RngWorker::arm() noexcept {
  // While there is no allowance a kick is no news; time is what wakes us.
  if (!takes() || !allowance_.allows()) return false;
  return queue().with_ring([](auto& ring) { return ring.arm(); });
}

void RngWorker::disarm() noexcept {
  if (queue().fault() != Fault::none) return;
  queue().with_ring([](auto& ring) { ring.disarm(); });
}

std::uint64_t RngWorker::sleep_ns_max() const noexcept {
  const auto most = QueueWorker::sleep_ns_max();
  return takes() && !allowance_.allows() ? std::min(most, allowance_.wait_ns()) : most;
}

}  // namespace millrace::guest
