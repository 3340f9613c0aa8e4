// The only way to a word that another party writes at the same time (a ring, an inflight region).
//
// A load happens exactly once: the compiler may neither repeat nor split it, so what was checked is
// what is used. A store happens exactly once and whole. Words are at most eight bytes and aligned.
// Thread: any.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace millrace::virtio {

#ifdef MILLRACE_CRASH_POINTS
// Tests only: runs after every store to shared memory, to see the memory as a kill -9 there leaves
// it.
inline thread_local void (*crash_point)() = nullptr;
inline void reach_crash_point() {
  if (crash_point != nullptr) crash_point();
}
#else
inline void reach_crash_point() {}
#endif

template <class T>
concept SharedWord = std::is_trivially_copyable_v<T> && std::has_single_bit(sizeof(T)) &&
                         sizeof(T) <= 8 &&
                     alignof(T) == sizeof(T);

namespace detail {
template <std::size_t Size>
using Raw = std::conditional_t<
    Size == 1, std::uint8_t,
    std::conditional_t<Size == 2, std::uint16_t,
                       std::conditional_t<Size == 4, std::uint32_t, std::uint64_t>>>;

template <SharedWord T>
[[nodiscard]] inline T load(const T* word, int order) noexcept {
  return std::bit_cast<T>(__atomic_load_n(reinterpret_cast<const Raw<sizeof(T)>*>(word), order));
}
template <SharedWord T>
inline void store(T* word, T value, int order) noexcept {
  __atomic_store_n(reinterpret_cast<Raw<sizeof(T)>*>(word), std::bit_cast<Raw<sizeof(T)>>(value),
                   order);
  reach_crash_point();
}
}  // namespace detail

template <SharedWord T>
[[nodiscard]] inline T load_once(const T* word) noexcept {
  return detail::load(word, __ATOMIC_RELAXED);
}
// What the other party wrote before it stored this word is visible after it.
template <SharedWord T>
[[nodiscard]] inline T load_acquire(const T* word) noexcept {
  return detail::load(word, __ATOMIC_ACQUIRE);
}
template <SharedWord T>
inline void store_once(T* word, std::type_identity_t<T> value) noexcept {
  detail::store(word, value, __ATOMIC_RELAXED);
}
// What we wrote before is visible to whoever sees this word.
template <SharedWord T>
inline void store_release(T* word, std::type_identity_t<T> value) noexcept {
  detail::store(word, value, __ATOMIC_RELEASE);
}

// Orders our earlier stores before our later loads: "I published, do you want to be told?"
inline void full_fence() noexcept {
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

// Copies a 16-byte descriptor once, each half of it whole.
template <class T>
requires(sizeof(T) == 16 && alignof(T) == 8 && std::is_trivially_copyable_v<T>)
    [[nodiscard, gnu::always_inline]] inline T copy_once(const T* from) noexcept {
  const auto* words = reinterpret_cast<const std::uint64_t*>(from);
  const std::array<std::uint64_t, 2> raw{load_once(words), load_once(words + 1)};
  return std::bit_cast<T>(raw);
}
// `from` may be at any alignment (an indirect table).
template <class T>
requires(sizeof(T) == 16 && std::is_trivially_copyable_v<T>) [[nodiscard]] inline T
    copy_once_from(const std::byte* from) noexcept {
  if (reinterpret_cast<std::uintptr_t>(from) % 8 == 0) {
    return copy_once(reinterpret_cast<const T*>(from));
  }
  T out;
  std::memcpy(&out, from, sizeof out);
  std::atomic_signal_fence(std::memory_order_seq_cst);  // the copy is not repeated later
  return out;
}

}  // namespace millrace::virtio
