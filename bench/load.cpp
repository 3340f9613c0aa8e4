#include "bench/load.hpp"

#include "base/clock.hpp"

namespace millrace::bench {

namespace {

constexpr std::uint64_t beat_ns = 250'000'000;  // of the watch

std::uint64_t to_cycles(double seconds) {
  return base::ns_to_cycles(static_cast<std::uint64_t>(seconds * 1e9));
}

}  // namespace

std::string stood_still(unsigned in_flight) {
  return "the device stood still for " + std::to_string(patience_ns / 1'000'000'000) + " s with " +
         std::to_string(in_flight) + " buffers that it did not give back";
}

Pace::Pace(const LoadTime& time) : time_{time} {
  if (time_.before) time_.before();
  begun_ = progress_ = shown_ = base::cycles();
}

Pace::State Pace::round(unsigned done, LoadResult& result, const base::FineHistogram& latency) {
  const auto now = base::cycles();
  result.all_operations += done;
  if (done > 0) progress_ = now;
  if (now - progress_ > base::ns_to_cycles(patience_ns)) return State::stalled;
  if (!counting_) {
    counting_ = now - begun_ >= to_cycles(time_.warm_up);
    if (counting_) begun_ = shown_ = now;
    return State::running;
  }
  result.seconds = static_cast<double>(base::cycles_to_ns(now - begun_)) / 1e9;
  if (time_.watch && now - shown_ > base::ns_to_cycles(beat_ns)) {
    shown_ = now;
    result.latency = latency.snapshot();
    if (!time_.watch(result)) return State::over;
  }
  return result.seconds >= time_.seconds ? State::over : State::running;
}

}  // namespace millrace::bench
