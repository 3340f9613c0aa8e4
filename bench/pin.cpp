#include "bench/pin.hpp"

#include <pthread.h>
#include <sched.h>

#include <cerrno>
#include <cstring>
#include <string>

namespace millrace::bench {

namespace {

base::Result<void> pin(pthread_t thread, int core) {
  if (core < 0) return {};
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<unsigned>(core), &set);
  const int failed = ::pthread_setaffinity_np(thread, sizeof set, &set);
  if (failed == 0) return {};
  return base::fail("core " + std::to_string(core) + ": " + std::strerror(failed));
}

}  // namespace

base::Result<void> pin_self(int core) {
  return pin(::pthread_self(), core);
}

base::Result<void> pin(std::jthread& thread, int core) {
  return pin(thread.native_handle(), core);
}

base::Result<Spinner> Spinner::start(int core) {
  Spinner made;
  if (core < 0) return made;
  made.thread_ = std::jthread{[](const std::stop_token& stop) {
    while (!stop.stop_requested()) __builtin_ia32_pause();
  }};
  if (auto ok = bench::pin(made.thread_, core); !ok) return base::Unexpected{ok.error()};
  return made;
}

}  // namespace millrace::bench
