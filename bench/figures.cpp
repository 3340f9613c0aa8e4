#include "bench/figures.hpp"

#include <unistd.h>

#include <array>
#include <cstdio>
#include <string>
#include <utility>

#include "base/units.hpp"

namespace millrace::bench {

using nlohmann::json;

namespace {

constexpr std::array<std::pair<const char*, double>, 8> percentiles{{{"p1", 0.01},
                                                                     {"p10", 0.1},
                                                                     {"p50", 0.5},
                                                                     {"p90", 0.9},
                                                                     {"p99", 0.99},
                                                                     {"p99.9", 0.999},
                                                                     {"p99.99", 0.9999},
                                                                     {"p100", 1}}};

double microseconds(const LoadResult& result, double share) {
  return static_cast<double>(base::FineHistogram::quantile(result.latency, share)) / 1e3;
}

json figures(const LoadResult& result) {
  json latency = json::object();
  for (const auto& [name, share] : percentiles) latency[name] = microseconds(result, share);
  return {{"operations", result.operations},
          {"all_operations", result.all_operations},
          {"bytes", result.bytes},
          {"seconds", result.seconds},
          {"per_second", result.rate()},
          {"kicks", result.kicks},
          {"latency_us", latency}};
}

bool timed(const LoadResult& result) {
  return base::FineHistogram::quantile(result.latency, 1) > 0;
}

}  // namespace

Watch live_line(const char* unit) {
  if (::isatty(STDERR_FILENO) == 0) return {};
  return [unit](const LoadResult& so_far) {
    std::fprintf(stderr, "\r%5.1f s  %-12s p50 %8.1f us  p99 %8.1f us ", so_far.seconds,
                 base::format_rate(so_far.rate(), unit).c_str(), microseconds(so_far, 0.5),
                 microseconds(so_far, 0.99));
    return true;
  };
}

void show(const LoadResult& result, const char* unit, bool as_json, const json& more) {
  if (::isatty(STDERR_FILENO) != 0) std::fprintf(stderr, "\r%60s\r", "");
  if (as_json) {
    auto all = figures(result);
    all.update(more);
    std::puts(all.dump(2).c_str());
    return;
  }
  std::printf("%s", base::format_rate(result.rate(), unit).c_str());
  if (result.bytes > 0) {
    const auto bits = static_cast<double>(result.bytes) * 8 / result.seconds;
    std::printf(", %s", base::format_rate(bits, "bit/s").c_str());
  }
  if (timed(result)) {
    std::printf(", latency p50 %.1f us, p99 %.1f us, p99.9 %.1f us", microseconds(result, 0.5),
                microseconds(result, 0.99), microseconds(result, 0.999));
  }
  std::printf("; %llu kicks in %.1f s\n", static_cast<unsigned long long>(result.kicks),
              result.seconds);
  for (const auto& [name, value] : more.items()) {
    std::printf("%s: %s\n", name.c_str(), value.dump().c_str());
  }
}

}  // namespace millrace::bench
