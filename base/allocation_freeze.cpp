#include "base/allocation_freeze.hpp"

#include <cstddef>
#include <cstdlib>
#include <new>

#include "base/check.hpp"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define MILLRACE_WATCH_NEW 0
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MILLRACE_WATCH_NEW 0
#endif
#ifndef MILLRACE_WATCH_NEW
#define MILLRACE_WATCH_NEW 1
#endif

namespace millrace::base {

namespace {

constinit thread_local int freezes = 0;

}  // namespace

AllocationFreeze::AllocationFreeze() noexcept {
  ++freezes;
}
AllocationFreeze::~AllocationFreeze() {
  --freezes;
}
bool AllocationFreeze::enforced() noexcept {
  return MILLRACE_WATCH_NEW != 0;
}

#if MILLRACE_WATCH_NEW
namespace {

void check_not_frozen() {
  if (__builtin_expect(freezes == 0, 1)) return;
  freezes = 0;  // the report itself may allocate
  check_failed("no allocation while AllocationFreeze", __FILE__, __LINE__);
}

void* allocate(std::size_t size) {
  check_not_frozen();
  for (;;) {
    if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
    const auto handler = std::get_new_handler();
    if (handler == nullptr) throw std::bad_alloc{};
    handler();
  }
}

void* allocate_aligned(std::size_t size, std::size_t alignment) {
  check_not_frozen();
  for (;;) {
    const auto least = alignment < sizeof(void*) ? sizeof(void*) : alignment;
    void* memory = nullptr;
    if (::posix_memalign(&memory, least, size == 0 ? 1 : size) == 0) return memory;
    const auto handler = std::get_new_handler();
    if (handler == nullptr) throw std::bad_alloc{};
    handler();
  }
}

}  // namespace
#endif

}  // namespace millrace::base

// Never inlined: the compiler would otherwise see free() meet operator new and warn.
#if MILLRACE_WATCH_NEW
#define MILLRACE_NOINLINE [[gnu::noinline]]
MILLRACE_NOINLINE void* operator new(std::size_t size) {
  return millrace::base::allocate(size);
}
MILLRACE_NOINLINE void* operator new[](std::size_t size) {
  return millrace::base::allocate(size);
}
MILLRACE_NOINLINE void* operator new(std::size_t size, std::align_val_t alignment) {
  return millrace::base::allocate_aligned(size, static_cast<std::size_t>(alignment));
}
MILLRACE_NOINLINE void* operator new[](std::size_t size, std::align_val_t alignment) {
  return millrace::base::allocate_aligned(size, static_cast<std::size_t>(alignment));
}
MILLRACE_NOINLINE void operator delete(void* memory) noexcept {
  std::free(memory);
}
MILLRACE_NOINLINE void operator delete[](void* memory) noexcept {
  std::free(memory);
}
MILLRACE_NOINLINE void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
MILLRACE_NOINLINE void operator delete[](void* memory, std::size_t) noexcept {
  std::free(memory);
}
MILLRACE_NOINLINE void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
MILLRACE_NOINLINE void operator delete[](void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
MILLRACE_NOINLINE void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
MILLRACE_NOINLINE void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
#endif
