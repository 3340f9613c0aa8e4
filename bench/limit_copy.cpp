#include <sys/mman.h>

#include <cstddef>
#include <cstring>
#include <string>
#include <utility>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "bench/dice.hpp"
#include "bench/limit.hpp"

namespace millrace::bench {

namespace {

// Anonymous memory, private or shared, that goes away with its owner.
class Area {
 public:
  static base::Result<Area> make(std::uint64_t size, int kind) {
    void* const at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, kind | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return base::fail_errno(std::to_string(size) + " bytes of memory");
    std::memset(at, 0x5a, size);  // a page that was never written is one page of zeros for all
    return Area{static_cast<std::byte*>(at), size};
  }
  Area(Area&& other) noexcept : at_{std::exchange(other.at_, nullptr)}, size_{other.size_} {}
  Area& operator=(Area&&) = delete;
  ~Area() {
    if (at_ != nullptr) ::munmap(at_, size_);
  }
  [[nodiscard]] std::byte* at(std::uint64_t offset) const { return at_ + offset; }

 private:
  Area(std::byte* at, std::uint64_t size) : at_{at}, size_{size} {}
  std::byte* at_;
  std::uint64_t size_;
};

}  // namespace

base::Result<LimitResult> limit_copy(const CopyLimit& limit, const LoadTime& time) {
  constexpr unsigned burst = 32;  // copies between two looks at the clock
  if (limit.block == 0 || limit.depth == 0 || limit.store < limit.block ||
      limit.store / limit.block > UINT32_MAX) {
    return base::fail("--size and --depth are at least 1, and the store holds --size at least");
  }
  const auto store = Area::make(limit.store, MAP_PRIVATE);
  if (!store) return base::Unexpected{store.error()};
  const auto buffers = Area::make(std::uint64_t{limit.block} * limit.depth, MAP_SHARED);
  if (!buffers) return base::Unexpected{buffers.error()};
  LimitResult result;
  const base::FineHistogram none;
  Dice dice{base::cycles()};
  Pace pace{time};
  unsigned place = 0;
  for (auto state = Pace::State::running; state != Pace::State::over;) {
    const auto begun = base::cycles();
    for (unsigned i = 0; i < burst; ++i) {
      std::memcpy(buffers.value().at(std::uint64_t{place} * limit.block),
                  store.value().at(dice.below(limit.store / limit.block) * limit.block),
                  limit.block);
      place = place + 1 < limit.depth ? place + 1 : 0;
    }
    asm volatile("" ::: "memory");  // the copies are looked at by nobody, and made all the same
    if (pace.counts()) {
      result.operations += burst;
      result.busy_cycles += base::cycles() - begun;
    }
    state = pace.round(burst, result, none);
  }
  result.bytes = result.operations * limit.block;
  return result;
}

}  // namespace millrace::bench
