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

Pace::Pace(const LoadTime& time)
    : time_{time},
      warm_up_{to_cycles(time.warm_up)},
      length_{to_cycles(time.seconds)},
      patience_{base::ns_to_cycles(patience_ns)},
      beat_{base::ns_to_cycles(beat_ns)} {
  if (time_.before) time_.before();
  begun_ = progress_ = shown_ = base::cycles();
}

Pace::State Pace::round(unsigned done, LoadResult& result, const base::FineHistogram& latency) {
  const auto now = base::cycles();
  result.all_operations += done;
  if (done > 0) progress_ = now;
  if (now - progress_ > patience_) return State::stalled;
  if (!counting_) {
    counting_ = now - begun_ >= warm_up_;
    if (counting_) begun_ = shown_ = now;
    return State::running;
  }
  const bool over = now - begun_ >= length_;
  const bool shows = time_.watch && now - shown_ > beat_;
  if (!over && !shows) return State::running;
  result.seconds = static_cast<double>(base::cycles_to_ns(now - begun_)) / 1e9;
  if (over) return State::over;
  shown_ = now;
  result.latency = latency.snapshot();
  return time_.watch(result) ? State::running : State::over;
}

}  // namespace millrace::bench
