// Dice: pseudo-random numbers at a few cycles each (xorshift64*). One thread.
#pragma once

#include <cstdint>

namespace millrace::bench {

class Dice {
 public:
  explicit Dice(std::uint64_t seed) : state_{seed | 1} {}
  // From 0 to bound - 1; `bound` below 2^32.
  std::uint64_t below(std::uint64_t bound) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    // The upper half scaled: bounds are below 2^32 here.
    return (state_ * 0x2545F4914F6CDD1Dull >> 32) * bound >> 32;
  }

 private:
  std::uint64_t state_;
};

}  // namespace millrace::bench
