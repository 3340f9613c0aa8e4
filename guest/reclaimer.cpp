#include "guest/reclaimer.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/endian.hpp"
#include "base/error.hpp"
#include "base/quiet_thread.hpp"
#include "virtio/wire/balloon.hpp"

namespace millrace::guest {

namespace {

constexpr std::uint64_t page = virtio::wire::balloon_page_size;

// Of the region that `data` lies in; 0: none.
std::uint64_t host_page_size(const virtio::GuestMemory& memory, const std::byte* data) {
  for (const auto& region : memory.regions()) {
    const auto* const first = region.mapping->data();
    if (data >= first && data < first + region.size) return region.mapping->page_size();
  }
  return 0;
}

}  // namespace

base::Result<std::unique_ptr<Reclaimer>> Reclaimer::make(Pinned pinned) {
  base::Fd event{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  if (!event) return base::fail_errno("cannot make an eventfd");
  return std::unique_ptr<Reclaimer>{new Reclaimer{std::move(event), std::move(pinned)}};
}

Reclaimer::Reclaimer(base::Fd event, Pinned pinned)
    : event_{std::move(event)}, pinned_{std::move(pinned)} {
  thread_ = base::start_quiet_thread("reclaimer", [this] { run(); });
}

Reclaimer::~Reclaimer() {
  stopping_.store(true);
  ::eventfd_write(event_.get(), 1);
  thread_.join();
}

void Reclaimer::add(ReclaimJob& job) {
  const std::lock_guard lock{mutex_};
  jobs_.push_back(&job);
}

void Reclaimer::remove(ReclaimJob& job) {
  const std::lock_guard lock{mutex_};
  CHECK(job.state.load() == ReclaimJob::State::idle);
  std::erase(jobs_, &job);
}

void Reclaimer::settle() {
  const std::lock_guard lock{mutex_};
}

void Reclaimer::ask(ReclaimJob& job) noexcept {
  job.state.store(ReclaimJob::State::asked, std::memory_order_release);
  ::eventfd_write(event_.get(), 1);
}

void Reclaimer::run() {
  while (!stopping_.load()) {
    struct pollfd one {
      .fd = event_.get(), .events = POLLIN, .revents = 0
    };
    ::poll(&one, 1, -1);
    eventfd_t count = 0;
    ::eventfd_read(event_.get(), &count);
    // One buffer of each, then the lock is free again: control waits for one buffer at most.
    for (std::size_t i = 0;; ++i) {
      const std::lock_guard lock{mutex_};
      if (i >= jobs_.size()) break;
      if (jobs_[i]->state.load(std::memory_order_acquire) == ReclaimJob::State::asked) {
        if (!serve(*jobs_[i])) ::eventfd_write(event_.get(), 1);  // after everybody else
      }
    }
  }
}

bool Reclaimer::serve(ReclaimJob& job) {
  if (job.task != nullptr) {
    if (!job.task->step(*this)) return false;
  } else if (job.numbers) {
    serve_numbers(job);
  } else {
    for (const auto& segment : job.chain->writable()) {
      reclaim(*job.memory, *job.counters, segment.data, segment.guest_address, segment.size);
    }
  }
  base::Reactor* const reactor = job.reactor;
  job.state.store(ReclaimJob::State::done, std::memory_order_release);
  reactor->wake();  // the job may be its asker's again
  return true;
}

bool Reclaimer::give_back(const virtio::GuestMemory& memory, std::uint64_t guest_address,
                          std::uint64_t bytes, ReclaimCounters& counters) {
  const auto before = counters.reclaimed.load();
  virtio::GuestMemory::Hint hint;
  for (std::uint64_t done = 0; done < bytes;) {
    const auto part = memory.translate(guest_address + done, bytes - done, hint);
    if (part.empty()) {
      counters.kept += bytes - done;
      return false;
    }
    reclaim(memory, counters, part.data(), guest_address + done, part.size());
    done += part.size();
  }
  return counters.reclaimed.load() - before == bytes;
}

// Pages in a row, whichever way they run, are one call.
void Reclaimer::serve_numbers(const ReclaimJob& job) {
  std::array<base::le32, 256> numbers;
  std::uint64_t first = 0, last = 0;  // the row: [first, last)
  virtio::GuestMemory::Hint hint;
  const auto end_row = [&] {
    for (std::uint64_t at = first * page; at < last * page;) {
      const auto bytes = job.memory->translate(at, last * page - at, hint);
      if (bytes.empty()) {
        job.counters->kept += page;
        at += page;
        continue;
      }
      reclaim(*job.memory, *job.counters, bytes.data(), at, bytes.size());
      at += bytes.size();
    }
  };
  const auto readable = job.chain->readable();
  for (std::size_t offset = 0;;) {
    const auto got =
        virtio::copy_from(readable, offset, std::as_writable_bytes(std::span{numbers}));
    const auto count = got / sizeof numbers[0];
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint64_t number = numbers[i].host();
      if (first != last && number == last) {
        ++last;
      } else if (first != last && number + 1 == first) {
        first = number;
      } else {
        end_row();
        first = number;
        last = number + 1;
      }
    }
    offset += got;
    if (count < numbers.size()) break;
  }
  end_row();
}

void Reclaimer::reclaim(const virtio::GuestMemory& memory, ReclaimCounters& counters,
                        std::byte* data, std::uint64_t guest_address, std::uint64_t bytes) {
  const std::uint64_t size = host_page_size(memory, data);
  const auto from = reinterpret_cast<std::uintptr_t>(data);
  // Whole pages of the host's only.
  const auto first = size == 0 ? from : (from + size - 1) / size * size;
  const auto end = size == 0 ? from : (from + bytes) / size * size;
  if (first >= end) {
    counters.kept += bytes;
    return;
  }
  const std::uint64_t whole = end - first;
  counters.kept += bytes - whole;
  if (is_pinned(memory, guest_address + (first - from), whole)) {
    counters.pinned += whole;
    return;
  }
  const bool done = ::madvise(data + (first - from), whole, MADV_REMOVE) == 0;
  (done ? counters.reclaimed : counters.refused) += whole;
}

}  // namespace millrace::guest
