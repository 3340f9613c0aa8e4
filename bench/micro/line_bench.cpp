// What it costs to take over cache lines that another processor has written: what every word of a
// ring and every byte of a buffer pays on its way from a driver to a device. Two cores: processor 0
// and 1.
#include <benchmark/benchmark.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/clock.hpp"
#include "bench/pin.hpp"

namespace millrace {
namespace {

constexpr std::size_t line = 64, lines_max = 4096;

struct alignas(line) Line {
  std::atomic<std::uint64_t> word{0};
};

// A thread on the other processor: for every turn that it is given it writes the lines, then says
// so.
class Writer {
 public:
  explicit Writer(std::vector<Line>& lines) : lines_{lines} {
    thread_ = std::jthread{[this](const std::stop_token& stop) { run(stop); }};
    pinned_ = bench::pin_self(0).has_value() && bench::pin(thread_, 1).has_value();
  }
  [[nodiscard]] bool pinned() const { return pinned_; }
  void turn(std::size_t count) {
    count_ = count;
    const auto now = asked_.word.load(std::memory_order_relaxed) + 1;
    asked_.word.store(now, std::memory_order_release);
    while (done_.word.load(std::memory_order_acquire) != now) __builtin_ia32_pause();
  }

 private:
  void run(const std::stop_token& stop) {
    std::uint64_t seen = 0;
    while (!stop.stop_requested()) {
      const auto asked = asked_.word.load(std::memory_order_acquire);
      if (asked == seen) continue;
      seen = asked;
      for (std::size_t i = 0; i < count_; ++i) {
        lines_[i].word.store(seen, std::memory_order_relaxed);
      }
      done_.word.store(seen, std::memory_order_release);
    }
  }

  std::vector<Line>& lines_;
  std::size_t count_ = 0;
  Line asked_, done_;
  bool pinned_ = false;
  std::jthread thread_;
};

// Times `body(lines, count)`, of lines that the other processor wrote just before; per line.
template <class Body>
void take_over(benchmark::State& state, Body body) {
  const auto count = static_cast<std::size_t>(state.range(0));
  std::vector<Line> lines(lines_max);
  Writer writer{lines};
  if (!writer.pinned()) return state.SkipWithError("needs processors 0 and 1");
  std::uint64_t cycles = 0;
  for (auto _ : state) {
    writer.turn(count);
    const auto begun = base::cycles();
    body(lines, count);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const auto spent = base::cycles() - begun;
    cycles += spent;
    state.SetIterationTime(static_cast<double>(spent) / base::cycles_per_second());
  }
  state.counters["cycles_a_line"] = static_cast<double>(cycles) /
                                    static_cast<double>(state.iterations()) /
                                    static_cast<double>(count);
}

// One after the other: where the next line is, is known from the one before (a chain).
void read_chained(benchmark::State& state) {
  take_over(state, [](std::vector<Line>& lines, std::size_t count) {
    std::size_t at = 0;
    for (std::size_t i = 0; i < count; ++i) {
      // The word is the same in all lines; the processor does not know.
      const auto word = lines[at].word.load(std::memory_order_relaxed);
      at = i + 1 + (word & 0x8000'0000'0000'0000u);
    }
    benchmark::DoNotOptimize(at);
  });
}
void read_together(benchmark::State& state) {
  take_over(state, [](std::vector<Line>& lines, std::size_t count) {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < count; ++i) sum += lines[i].word.load(std::memory_order_relaxed);
    benchmark::DoNotOptimize(sum);
  });
}
void write_together(benchmark::State& state) {
  take_over(state, [](std::vector<Line>& lines, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) lines[i].word.store(i, std::memory_order_relaxed);
  });
}
BENCHMARK(read_chained)->ArgName("lines")->Arg(1)->Arg(8)->Arg(32)->UseManualTime();
BENCHMARK(read_together)->ArgName("lines")->Arg(8)->Arg(32)->Arg(256)->UseManualTime();
BENCHMARK(write_together)->ArgName("lines")->Arg(8)->Arg(32)->Arg(256)->UseManualTime();

}  // namespace
}  // namespace millrace
