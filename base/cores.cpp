#include "base/cores.hpp"

#include <sched.h>

#include <cerrno>
#include <memory>
#include <string>

#include "base/error.hpp"

namespace millrace::base {

namespace {

constexpr int cores_max = 8192;  // the most that Linux builds for x86 have

struct FreeSet {
  void operator()(cpu_set_t* set) const { CPU_FREE(set); }
};
using CoreSet = std::unique_ptr<cpu_set_t, FreeSet>;
const std::size_t set_size = CPU_ALLOC_SIZE(cores_max);

CoreSet make_set() {
  CoreSet set{CPU_ALLOC(cores_max)};
  CHECK(set != nullptr);
  CPU_ZERO_S(set_size, set.get());
  return set;
}

}  // namespace

Result<std::vector<int>> usable_cores() {
  const auto set = make_set();
  if (::sched_getaffinity(0, set_size, set.get()) != 0) {
    return fail_errno("cannot read the affinity mask");
  }
  std::vector<int> cores;
  for (int core = 0; core < cores_max; ++core) {
    if (CPU_ISSET_S(static_cast<std::size_t>(core), set_size, set.get())) cores.push_back(core);
  }
  return cores;
}

Result<> pin_thread(pthread_t thread, int core) {
  if (core < 0 || core >= cores_max) return fail("there is no core " + std::to_string(core));
  const auto set = make_set();
  CPU_SET_S(static_cast<std::size_t>(core), set_size, set.get());
  errno = ::pthread_setaffinity_np(thread, set_size, set.get());
  if (errno != 0) return fail_errno("cannot pin a thread to core " + std::to_string(core));
  return {};
}

}  // namespace millrace::base
