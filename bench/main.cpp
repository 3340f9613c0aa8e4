// millrace-bench: what a vhost-user back-end can do, millraced or another: requests to a disk,
// frames between two NICs.
#include <sched.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.hpp"
#include "base/units.hpp"
#include "bench/blk_load.hpp"
#include "bench/net_load.hpp"

namespace millrace::bench {
namespace {

using nlohmann::json;

double microseconds(const LoadResult& result, double share) {
  return static_cast<double>(base::Histogram::quantile(result.latency, share)) / 1e3;
}

// The line that shows how it goes; on a terminal only.
Watch live_line(const char* unit) {
  if (::isatty(STDERR_FILENO) == 0) return {};
  return [unit](const LoadResult& so_far) {
    std::fprintf(stderr, "\r%5.1f s  %-12s p50 %8.1f us  p99 %8.1f us ", so_far.seconds,
                 base::format_rate(so_far.rate(), unit).c_str(), microseconds(so_far, 0.5),
                 microseconds(so_far, 0.99));
    return true;
  };
}

json figures(const LoadResult& result) {
  return {{"operations", result.operations},
          {"bytes", result.bytes},
          {"seconds", result.seconds},
          {"per_second", result.rate()},
          {"kicks", result.kicks},
          {"latency_us",
           {{"p50", microseconds(result, 0.5)},
            {"p99", microseconds(result, 0.99)},
            {"p99.9", microseconds(result, 0.999)}}}};
}

void show(const LoadResult& result, const char* unit, bool as_json, json more) {
  if (::isatty(STDERR_FILENO) != 0) std::fprintf(stderr, "\r%60s\r", "");
  if (as_json) {
    auto all = figures(result);
    all.update(more);
    std::puts(all.dump(2).c_str());
    return;
  }
  const auto bits = static_cast<double>(result.bytes) * 8 / result.seconds;
  std::printf("%s, %s, latency p50 %.1f us, p99 %.1f us, p99.9 %.1f us; %llu kicks in %.1f s\n",
              base::format_rate(result.rate(), unit).c_str(),
              base::format_rate(bits, "bit/s").c_str(), microseconds(result, 0.5),
              microseconds(result, 0.99), microseconds(result, 0.999),
              static_cast<unsigned long long>(result.kicks), result.seconds);
  for (const auto& [name, value] : more.items()) {
    std::printf("%s: %s\n", name.c_str(), value.dump().c_str());
  }
}

struct Options {
  BlkLoadConfig blk;
  NetLoadConfig net;
  LoadTime time;
  bool json = false, verify = false;
  int core = -1;
};

// A load beside a polling back-end on the same core measures the scheduler.
base::Result<void> pin(int core) {
  if (core < 0) return {};
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<unsigned>(core), &set);
  if (::sched_setaffinity(0, sizeof set, &set) == 0) return {};
  return base::fail_errno("--core " + std::to_string(core));
}

base::Result<void> run_blk(const Options& options) {
  auto load = BlkLoad::make(options.blk);
  if (!load) return base::Unexpected{load.error()};
  json more = json::object();
  if (options.verify) {
    const auto verified = (*load)->verify();
    if (!verified) return base::Unexpected{verified.error()};
    more["verified_blocks"] = *verified;
  }
  auto time = options.time;
  time.watch = live_line("IOPS");
  const auto result = (*load)->run(time);
  if (!result) return base::Unexpected{result.error()};
  show(*result, "IOPS", options.json, more);
  return {};
}

base::Result<void> run_net(const Options& options) {
  auto load = NetLoad::make(options.net);
  if (!load) return base::Unexpected{load.error()};
  auto time = options.time;
  time.watch = live_line("pps");
  const auto result = (*load)->run(time);
  if (!result) return base::Unexpected{result.error()};
  show(*result, "pps", options.json, {{"sent", result->sent}, {"wrong", result->wrong}});
  if (result->wrong > 0) return base::fail("frames arrived that were not what was sent");
  return {};
}

void add_common(CLI::App& command, Options& options, bool& packed, bool& listen) {
  command.add_flag("--listen", listen, "make the sockets: the back-end connects to them");
  command.add_flag("--packed", packed, "packed rings instead of split ones");
  command.add_option("--seconds", options.time.seconds, "how long it is measured")
      ->check(CLI::Range(0.1, 86400.0))
      ->capture_default_str();
  command.add_option("--warm-up", options.time.warm_up, "seconds before that")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  command.add_option("--core", options.core, "run on this core: not the back-end's")
      ->check(CLI::Range(0, CPU_SETSIZE - 1));
  command.add_flag("--json", options.json, "the result as JSON");
}

void add_blk(CLI::App& app, Options& options) {
  auto* const command = app.add_subcommand("blk", "requests to a disk");
  auto& blk = options.blk;
  command->add_option("socket", blk.socket, "the disk's vhost-user socket")->required();
  command->add_option("--depth", blk.depth, "requests in flight")->capture_default_str();
  command->add_option("--size", blk.block, "bytes of a request")->capture_default_str();
  command->add_option("--write", blk.write_percent, "per cent of the requests that write")
      ->check(CLI::Range(0, 100))
      ->capture_default_str();
  command->add_flag("--sequential", blk.sequential, "one after the other, not at random places");
  command->add_option("--span", blk.span, "bytes of the disk to use (default: all)")
      ->transform(CLI::AsSizeValue(false));
  command->add_flag("--verify", options.verify,
                    "first write known contents and read them back: DESTROYS what is there");
  add_common(*command, options, blk.packed, blk.listen);
}

void add_net(CLI::App& app, Options& options) {
  auto* const command = app.add_subcommand("net", "frames from one NIC to another");
  auto& net = options.net;
  command->add_option("from", net.from, "the sender's vhost-user socket")->required();
  command->add_option("to", net.to, "the receiver's")->required();
  command->add_option("--size", net.frame, "bytes of a frame")->capture_default_str();
  command->add_flag("--tso", net.tso, "frames are TCP, to be cut up where the receiver wants it");
  command->add_option("--rate", net.rate, "frames a second (default: as many as go)");
  command->add_option("--burst", net.burst, "frames put up at once")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("--ring", net.ring, "entries of each ring, a power of two")
      ->check([](const std::string& text) {
        const auto value = std::strtoul(text.c_str(), nullptr, 10);
        const bool good = value >= 2 && value <= 32768 && (value & (value - 1)) == 0;
        return good ? std::string{} : "2 to 32768, a power of two";
      })
      ->capture_default_str();
  command->add_option("--check-every", net.check_every, "compare every n-th frame; 0: none")
      ->capture_default_str();
  add_common(*command, options, net.packed, net.listen);
}

int run(int argc, char** argv) {
  CLI::App app{"Measures a vhost-user back-end as a guest's driver sees it."};
  Options options;
  add_blk(app, options);
  add_net(app, options);
  app.require_subcommand(1);
  CLI11_PARSE(app, argc, argv);
  auto done = pin(options.core);
  if (done) done = app.got_subcommand("blk") ? run_blk(options) : run_net(options);
  if (done) return 0;
  std::fprintf(stderr, "millrace-bench: %s\n", done.error().message.c_str());
  return 1;
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) {
  return millrace::bench::run(argc, argv);
}
