// Allowance: so many units a second, with a burst. What is spent beyond it is a debt that time pays
// off, so that nothing has to be cut into crumbs. Thread: one at a time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/clock.hpp"

namespace millrace::guest {

class Allowance {
 public:
  // `per_second` and `burst` in units, both above 0. Control: calibrates the clock.
  Allowance(std::uint64_t per_second, std::uint64_t burst)
      : cycles_per_unit_{base::cycles_per_second() / static_cast<double>(per_second)},
        credit_max_{static_cast<double>(burst) * cycles_per_unit_},
        credit_{credit_max_} {}

  // Time went on until `now`, in cycles.
  void advance(std::uint64_t now) noexcept {
    if (now <= last_) return;
    if (last_ != 0) credit_ = std::min(credit_ + static_cast<double>(now - last_), credit_max_);
    last_ = now;
  }
  [[nodiscard]] bool allows() const noexcept { return credit_ > 0; }
  void spend(std::uint64_t units) noexcept {
    credit_ -= static_cast<double>(units) * cycles_per_unit_;
  }
  // Until it allows again; 0: now.
  [[nodiscard]] std::uint64_t wait_ns() const noexcept {
    return allows() ? 0 : base::cycles_to_ns(static_cast<std::uint64_t>(-credit_)) + 1;
  }

 private:
  double cycles_per_unit_, credit_max_, credit_;  // in cycles
  std::uint64_t last_ = 0;
};

}  // namespace millrace::guest
