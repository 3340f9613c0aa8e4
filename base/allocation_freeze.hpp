// AllocationFreeze: while one lives, operator new on this thread is a fault of our own (a CHECK).
//
// A reactor holds one from start to stop, in release builds too: an allocation on the data path is
// found by the first test that reaches it. Only C++ allocation is watched: io_uring and drivers
// keep their own pools. Nothing is checked under a sanitizer, which brings its own operator new.
// Thread: counts for the thread that made it, which must destroy it. Nests.
#pragma once

namespace millrace::base {

class [[nodiscard]] AllocationFreeze {
 public:
  AllocationFreeze() noexcept;
  ~AllocationFreeze();
  AllocationFreeze(const AllocationFreeze&) = delete;
  AllocationFreeze& operator=(const AllocationFreeze&) = delete;

  // Whether this build checks at all.
  [[nodiscard]] static bool enforced() noexcept;
};

}  // namespace millrace::base
