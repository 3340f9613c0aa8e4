#include <fcntl.h>
#include <liburing.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/fd.hpp"
#include "bench/dice.hpp"
#include "bench/limit.hpp"

namespace millrace::bench {

using base::fail;
using base::Result;

namespace {

constexpr unsigned registered_max = 1024;  // buffers that can be registered

struct Free {
  void operator()(std::byte* at) const { std::free(at); }
};

// The ring, the file and the buffers, all registered.
class Bare {
 public:
  Bare() = default;
  ~Bare() {
    if (made_) ::io_uring_queue_exit(&ring_);
  }
  Bare(const Bare&) = delete;
  Bare& operator=(const Bare&) = delete;

  Result<void> open(const UringLimit& limit);
  void add(unsigned place, bool write, std::uint64_t block);
  // One system call: hands over, and lets completions come. Answers false where that failed.
  bool enter() {
    const int done = ::io_uring_submit_and_get_events(&ring_);
    return done >= 0 || done == -EINTR || done == -EAGAIN || done == -EBUSY;
  }
  template <class Each>
  unsigned reap(Each each) {
    unsigned head = 0, count = 0;
    io_uring_cqe* cqe = nullptr;
    io_uring_for_each_cqe(&ring_, head, cqe) {
      ++count;
      each(static_cast<unsigned>(cqe->user_data), cqe->res);
    }
    ::io_uring_cq_advance(&ring_, count);
    return count;
  }
  [[nodiscard]] std::uint64_t blocks() const { return blocks_; }

 private:
  Result<void> make_ring(unsigned depth);

  io_uring ring_{};
  bool made_ = false;
  base::Fd file_;
  std::unique_ptr<std::byte, Free> buffers_;
  std::uint32_t block_ = 0;
  std::uint64_t blocks_ = 0;
};

Result<void> Bare::make_ring(unsigned depth) {
  io_uring_params params{};
  params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
  int failed = ::io_uring_queue_init_params(depth, &ring_, &params);
  if (failed == -EINVAL) {  // before Linux 6.1
    params = {};
    failed = ::io_uring_queue_init_params(depth, &ring_, &params);
  }
  if (failed < 0) return fail(std::string{"io_uring: "} + std::strerror(-failed));
  made_ = true;
  return {};
}

Result<void> Bare::open(const UringLimit& limit) {
  block_ = limit.block;
  file_ = base::Fd{::open(limit.path.c_str(),
                          O_CLOEXEC | O_DIRECT | (limit.write_percent > 0 ? O_RDWR : O_RDONLY))};
  if (!file_) return base::fail_errno(limit.path + ": cannot open it with O_DIRECT");
  struct stat seen {};
  if (::fstat(file_.get(), &seen) != 0) return base::fail_errno(limit.path);
  const auto size = static_cast<std::uint64_t>(seen.st_size);
  blocks_ = (limit.span == 0 ? size : std::min(size, limit.span)) / block_;
  if (blocks_ == 0 || blocks_ > UINT32_MAX) {
    return fail(limit.path + ": holds no request of that size, or too many");
  }
  if (auto ok = make_ring(limit.depth); !ok) return ok;
  void* const memory = std::aligned_alloc(4096, std::size_t{limit.depth} * block_);
  if (memory == nullptr) return fail("no memory for the requests");
  buffers_.reset(static_cast<std::byte*>(memory));
  std::memset(buffers_.get(), 0x5a, std::size_t{limit.depth} * block_);
  std::vector<iovec> vectors;
  for (unsigned i = 0; i < limit.depth; ++i) {
    vectors.push_back({buffers_.get() + std::size_t{i} * block_, block_});
  }
  const int fd = file_.get();
  int failed = ::io_uring_register_buffers(&ring_, vectors.data(), limit.depth);
  if (failed == 0) failed = ::io_uring_register_files(&ring_, &fd, 1);
  if (failed != 0) return fail(std::string{"registering with io_uring: "} + std::strerror(-failed));
  return {};
}

void Bare::add(unsigned place, bool write, std::uint64_t block) {
  io_uring_sqe* const sqe = ::io_uring_get_sqe(&ring_);
  CHECK(sqe != nullptr);  // as many entries as requests
  auto* const data = buffers_.get() + std::size_t{place} * block_;
  const auto index = static_cast<int>(place);
  if (write) {
    ::io_uring_prep_write_fixed(sqe, 0, data, block_, block * block_, index);
  } else {
    ::io_uring_prep_read_fixed(sqe, 0, data, block_, block * block_, index);
  }
  sqe->flags |= IOSQE_FIXED_FILE;
  sqe->user_data = place;
}

}  // namespace

Result<LimitResult> limit_uring(const UringLimit& limit, const LoadTime& time) {
  if (limit.depth == 0 || limit.depth > registered_max) return fail("--depth is 1 to 1024 here");
  if (limit.block == 0 || limit.block % 512 != 0) return fail("--size is a multiple of 512");
  Bare bare;
  if (auto ok = bare.open(limit); !ok) return base::Unexpected{ok.error()};
  LimitResult result;
  base::FineHistogram latency;
  Dice dice{base::cycles()};
  Pace pace{time};
  std::vector<std::uint64_t> sent_at(limit.depth);
  std::vector<unsigned> free;
  for (unsigned place = 0; place < limit.depth; ++place) free.push_back(place);
  int bad = 0;
  for (bool over = false; !over || free.size() < limit.depth;) {
    const auto begun = base::cycles();
    for (; !over && !free.empty(); free.pop_back()) {
      sent_at[free.back()] = base::cycles();
      bare.add(free.back(), dice.below(100) < limit.write_percent, dice.below(bare.blocks()));
    }
    if (!bare.enter()) return base::fail_errno("io_uring_enter");
    const auto done = bare.reap([&](unsigned place, int outcome) {
      if (outcome != static_cast<int>(limit.block)) bad = outcome == 0 ? -EIO : outcome;
      if (pace.counts() && !over) latency.add(base::cycles_to_ns(base::cycles() - sent_at[place]));
      free.push_back(place);
    });
    if (bad != 0) {
      return fail(limit.path + ": a request failed: " + std::strerror(bad < 0 ? -bad : EIO));
    }
    if (over) continue;  // what is in flight comes back before its buffers go
    if (pace.counts() && done > 0) {
      result.operations += done;
      result.busy_cycles += base::cycles() - begun;
    }
    const auto state = pace.round(done, result, latency);
    if (state == Pace::State::stalled) return fail(stood_still(limit.depth));
    over = state == Pace::State::over;
  }
  result.bytes = result.operations * limit.block;
  result.latency = latency.snapshot();
  return result;
}

}  // namespace millrace::bench
