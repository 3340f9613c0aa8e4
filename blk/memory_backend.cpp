#include "blk/memory_backend.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "blk/limits.hpp"

namespace millrace::blk {

namespace {

constexpr std::uint64_t page = 4096;
constexpr std::uint64_t reserve_min = 64ull << 30;

class MemoryChannel final : public Channel {
 public:
  explicit MemoryChannel(std::byte* store) : store_{store} {}
  void attached(base::Reactor&) noexcept override {}
  void detached(base::Reactor&) noexcept override { CHECK(waiting_.empty()); }
  void submit(IoList& burst) noexcept override { waiting_.append(burst); }
  [[nodiscard]] bool pending() const noexcept override { return !waiting_.empty(); }

  bool poll(IoList& done) noexcept override {
    if (waiting_.empty()) return false;
    copy_budget_ = limits::memory_bytes_a_visit;
    zero_budget_ = limits::memory_discard_a_visit;
    while (!waiting_.empty() && work_on(*waiting_.front())) done.push(*waiting_.pop());
    return true;
  }

 private:
  // True when `io` is finished, false when this visit's budget is spent.
  bool work_on(Io& io) noexcept {
    switch (io.operation) {
      case Operation::read:
      case Operation::write:
        return copy(io);
      case Operation::discard:
      case Operation::write_zeroes:
        return store_ == nullptr || zero(io);
      case Operation::flush:
        break;
    }
    return true;
  }

  bool copy(Io& io) noexcept {
    while (io.length > 0) {
      if (copy_budget_ == 0) return false;
      const iovec part = io.left().front();
      const std::uint64_t bytes = std::min<std::uint64_t>(part.iov_len, copy_budget_);
      if (io.operation == Operation::read) {
        if (store_ == nullptr) {
          std::memset(part.iov_base, 0, bytes);
        } else {
          std::memcpy(part.iov_base, store_ + io.offset, bytes);
        }
      } else if (store_ != nullptr) {
        std::memcpy(store_ + io.offset, part.iov_base, bytes);
      }
      copy_budget_ -= bytes;
      io.advance(bytes);
    }
    return true;
  }

  // Whole pages are given back to the kernel where that is allowed, the rest is written over.
  bool zero(Io& io) noexcept {
    const bool free_pages = io.unmap || io.operation == Operation::discard;
    while (io.length > 0) {
      if (zero_budget_ == 0 || copy_budget_ == 0) return false;
      const std::uint64_t into_page = io.offset % page;
      std::uint64_t bytes = std::min(io.length, zero_budget_);
      if (free_pages && into_page == 0 && bytes >= page) {
        bytes -= bytes % page;
        if (::madvise(store_ + io.offset, bytes, MADV_DONTNEED) != 0) {
          io.result = -errno;
          return true;
        }
        zero_budget_ -= bytes;
      } else {
        bytes = std::min({bytes, copy_budget_, free_pages ? page - into_page : bytes});
        std::memset(store_ + io.offset, 0, bytes);
        copy_budget_ -= bytes;
      }
      io.advance(bytes);
    }
    return true;
  }

  std::byte* store_;
  IoList waiting_;
  std::uint64_t copy_budget_ = 0, zero_budget_ = 0;
};

base::Result<void> check_size(std::uint64_t bytes) {
  if (bytes == 0 || bytes % 512 != 0 || bytes > (1ull << 60)) {
    return base::fail("size " + std::to_string(bytes) + " is not a multiple of 512 bytes above 0");
  }
  return {};
}

}  // namespace

base::Result<std::unique_ptr<Backend>> MemoryBackend::make_null(std::uint64_t bytes,
                                                                bool readonly) {
  if (const auto ok = check_size(bytes); !ok) return base::Unexpected{ok.error()};
  std::unique_ptr<MemoryBackend> made{new MemoryBackend};
  made->readonly_ = readonly;
  made->geometry_.bytes = bytes;
  made->geometry_.physical_block = made->geometry_.io_min = 4096;
  made->geometry_.can_discard = made->geometry_.can_unmap = true;
  made->geometry_.discard_max = made->geometry_.zero_max = 1ull << 40;
  made->geometry_.discard_granularity = page;
  return std::unique_ptr<Backend>{std::move(made)};
}

base::Result<std::unique_ptr<Backend>> MemoryBackend::make_ram(std::uint64_t bytes, bool readonly) {
  auto made = make_null(bytes, readonly);
  if (!made) return made;
  auto& backend = static_cast<MemoryBackend&>(**made);
  // Address space for growth is reserved now: reactors hold the pointer.
  const std::uint64_t reserve = std::max(reserve_min, (4 * bytes + page - 1) & ~(page - 1));
  void* const at =
      ::mmap(nullptr, reserve, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED || ::mprotect(at, bytes, PROT_READ | PROT_WRITE) != 0) {
    const int why = errno;
    if (at != MAP_FAILED) ::munmap(at, reserve);
    return base::fail("cannot get " + std::to_string(bytes) +
                      " bytes of memory: " + std::strerror(why));
  }
  backend.bytes_ = static_cast<std::byte*>(at);
  backend.reserved_ = reserve;
  return made;
}

MemoryBackend::~MemoryBackend() {
  if (bytes_ != nullptr) ::munmap(bytes_, reserved_);
}

BackendStatus MemoryBackend::status() const {
  BackendStatus out;
  out.kind = bytes_ == nullptr ? "null" : "ram";
  out.bytes = geometry_.bytes;
  out.readonly = readonly_;
  out.io = bytes_ == nullptr ? "none" : "memory";
  return out;
}

std::unique_ptr<Channel> MemoryBackend::make_channel(unsigned, QueueStatistics&) {
  return std::make_unique<MemoryChannel>(bytes_);
}

base::Result<std::uint64_t> MemoryBackend::resize(std::uint64_t bytes) {
  if (const auto ok = check_size(bytes); !ok) return base::Unexpected{ok.error()};
  if (bytes < geometry_.bytes) {
    return base::fail("a disk cannot shrink: it has " + std::to_string(geometry_.bytes) + " bytes");
  }
  if (bytes_ != nullptr) {
    if (bytes > reserved_) {
      return base::fail("a ram disk made with this size grows to " + std::to_string(reserved_) +
                        " bytes at most");
    }
    if (::mprotect(bytes_, bytes, PROT_READ | PROT_WRITE) != 0) {
      return base::fail("cannot get " + std::to_string(bytes) +
                        " bytes of memory: " + std::strerror(errno));
    }
  }
  geometry_.bytes = bytes;
  return bytes;
}

}  // namespace millrace::blk
