// The physical limits that a back-end is held against: the same work with no back-end around it.
// Each runs on the calling thread, which the caller has pinned.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.hpp"
#include "bench/load.hpp"

namespace millrace::bench {

struct LimitResult : LoadResult {
  std::uint64_t busy_cycles = 0;  // TSC cycles of the rounds that found work
};

// Bare memcpy(3) of random blocks of a store that has been written to, into `depth` buffers of
// shared memory in turn: what a disk in memory does for a guest's reads.
struct CopyLimit {
  std::uint64_t store = 512u << 20;  // bytes
  std::uint32_t block = 4096;
  unsigned depth = 128;
};
base::Result<LimitResult> limit_copy(const CopyLimit& limit, const LoadTime& time);

// Bare io_uring(7) on a file with O_DIRECT: registered file and buffers, `depth` requests in
// flight, handed over and reaped by one system call a round. Writes DESTROY what is there. Fails
// where the file cannot be opened, is smaller than a request, or a request fails.
struct UringLimit {
  std::string path;
  std::uint32_t block = 4096;
  unsigned depth = 128;
  unsigned write_percent = 0;
  std::uint64_t span = 0;  // bytes of the file to use; 0: all
};
base::Result<LimitResult> limit_uring(const UringLimit& limit, const LoadTime& time);

// A bare wake-up: write(2) to an eventfd on which a thread on `sleeper_core` sleeps in
// epoll_wait(2), which answers in shared memory. The latency is from the write to the answer.
// `gap_us` microseconds pass between an answer and the next write.
struct WakeLimit {
  int sleeper_core = -1;
  double gap_us = 2000;
};
base::Result<LimitResult> limit_wake(const WakeLimit& limit, const LoadTime& time);

}  // namespace millrace::bench
