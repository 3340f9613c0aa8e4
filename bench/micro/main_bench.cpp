// build/bench/micro: what single steps of the data path cost, and a burst's whole way. Options are
// Google Benchmark's. Ends with 1 where one of them failed; one that this machine has not got the
// means for ("needs ...") did not.
#include <benchmark/benchmark.h>

#include <string_view>
#include <vector>

namespace millrace {
namespace {

// Shows all in the form that was asked for, and remembers what failed.
class Reporter final : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context& context) override { return shown_.ReportContext(context); }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) failed_ = failed_ || failed(run);
    shown_.ReportRuns(runs);
  }
  void Finalize() override { shown_.Finalize(); }
  [[nodiscard]] bool failed() const { return failed_; }

 private:
  // The library's word for it changed with its version 1.8.
  template <class R>
  static bool failed(const R& run) {
    if constexpr (requires { run.error_occurred; }) {
      return run.error_occurred && !lacks(run.error_message);
    } else {
      return static_cast<bool>(run.skipped) && !lacks(run.skip_message);
    }
  }
  static bool lacks(std::string_view message) { return message.starts_with("needs "); }
  BenchmarkReporter& shown_ = *benchmark::CreateDefaultDisplayReporter();  // the library's own
  bool failed_ = false;
};

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  millrace::Reporter reporter;
  const auto count = benchmark::RunSpecifiedBenchmarks(&reporter);
  return count == 0 || reporter.failed() ? 1 : 0;
}
