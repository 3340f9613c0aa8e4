// The loads: millrace-bench blk, net, limit.
#include <sched.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "base/result.hpp"
#include "bench/blk_load.hpp"
#include "bench/commands.hpp"
#include "bench/figures.hpp"
#include "bench/limit.hpp"
#include "bench/net_load.hpp"
#include "bench/pin.hpp"

namespace millrace::bench {

using base::Result;
using nlohmann::json;

void add_common(CLI::App& command, Common& common) {
  command.add_option("--seconds", common.time.seconds, "how long it is measured")
      ->check(CLI::Range(0.1, 86400.0))
      ->capture_default_str();
  command.add_option("--warm-up", common.time.warm_up, "seconds before that")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  command.add_option("--core", common.core, "run on this core: not the back-end's")
      ->check(CLI::Range(0, CPU_SETSIZE - 1));
  command.add_flag("--json", common.json, "the result as JSON");
  command.add_flag("--wait", common.wait,
                   "once all is connected print \"ready\" and wait for a line of input");
}

Result<void> prepare(Common& common) {
  if (auto ok = pin_self(common.core); !ok) return base::fail("--core: " + ok.error().message);
  if (common.wait) {
    common.time.before = [] {
      std::puts("ready");
      std::fflush(stdout);
      for (int c = std::getchar(); c != '\n' && c != EOF;) c = std::getchar();
    };
  }
  return {};
}

namespace {

struct Blk {
  BlkLoadConfig load;
  Common common;
  bool verify = false, zeros = false;

  Result<void> run() {
    if (auto ok = prepare(common); !ok) return ok;
    auto made = BlkLoad::make(load);
    if (!made) return base::Unexpected{made.error()};
    json more = json::object();
    if (verify || zeros) {
      const auto verified = zeros ? (*made)->verify_zeros() : (*made)->verify();
      if (!verified) return base::Unexpected{verified.error()};
      more["verified_blocks"] = *verified;
    }
    common.time.watch = live_line("IOPS");
    const auto result = (*made)->run(common.time);
    if (!result) return base::Unexpected{result.error()};
    show(*result, "IOPS", common.json, more);
    return {};
  }
};

struct Net {
  NetLoadConfig load;
  Common common;

  Result<void> run() {
    if (auto ok = prepare(common); !ok) return ok;
    auto made = NetLoad::make(load);
    if (!made) return base::Unexpected{made.error()};
    common.time.watch = live_line("pps");
    const auto result = (*made)->run(common.time);
    if (!result) return base::Unexpected{result.error()};
    show(*result, "pps", common.json, {{"sent", result->sent}, {"wrong", result->wrong}});
    if (result->wrong > 0) return base::fail("frames arrived that were not what was sent");
    return {};
  }
};

std::string power_of_two(const std::string& text) {
  const auto value = std::strtoul(text.c_str(), nullptr, 10);
  const bool good = value >= 2 && value <= 32768 && (value & (value - 1)) == 0;
  return good ? std::string{} : "2 to 32768, a power of two";
}

struct Limit {
  std::string what, file;
  CopyLimit copy;
  UringLimit uring;
  WakeLimit wake;
  NetLoadConfig net;
  std::uint32_t size = 4096;
  unsigned depth = 128;
  int other = -1;
  Common common;

  Result<void> run() {
    if (auto ok = prepare(common); !ok) return ok;
    if (what == "driver") return run_driver();
    if (what == "switch") return run_switch();
    auto result = measure();
    if (!result) return base::Unexpected{result.error()};
    json more = json::object();
    if (result->busy_cycles > 0 && result->operations > 0) {
      more["cycles"] =
          static_cast<double>(result->busy_cycles) / static_cast<double>(result->operations);
    }
    show(*result, what == "uring" ? "IOPS" : "/s", common.json, more);
    return {};
  }

 private:
  Result<LimitResult> measure() {
    wake.sleeper_core = other;
    if (what == "wakeup") return limit_wake(wake, common.time);
    const auto spinner = Spinner::start(other);
    if (!spinner) return base::Unexpected{spinner.error()};
    copy.block = uring.block = size;
    copy.depth = uring.depth = depth;
    if (what == "memcpy") return limit_copy(copy, common.time);
    if (file.empty()) return base::fail("limit uring: of which file: --file PATH");
    uring.path = file;
    return limit_uring(uring, common.time);
  }
  Result<void> run_driver() {
    net.frame = size;
    const auto result = NetLoad::ceiling(net, other, common.time);
    if (!result) return base::Unexpected{result.error()};
    show(*result, "pps", common.json, json::object());
    return {};
  }
  Result<void> run_switch() {
    net.frame = size;
    net.from = net.to = "none";
    const auto result = NetLoad::bare_switch(net, other, common.time);
    if (!result) return base::Unexpected{result.error()};
    json more{{"wrong", result->wrong}};
    if (result->moved > 0) {
      more["cycles"] =
          static_cast<double>(result->busy_cycles) / static_cast<double>(result->moved);
    }
    show(*result, "pps", common.json, more);
    if (result->wrong > 0) return base::fail("frames arrived that were not what was sent");
    return {};
  }
};

}  // namespace

Command add_blk(CLI::App& app) {
  auto blk = std::make_shared<Blk>();
  auto& load = blk->load;
  auto* const command = app.add_subcommand("blk", "requests to one disk, or to many in turn");
  command->add_option("socket", load.socket, "the disk's vhost-user socket")->required();
  command->add_option("more", load.more, "other disks' sockets");
  command->add_option("--depth", load.depth, "requests in flight, of each disk")
      ->capture_default_str();
  command->add_option("--size", load.block, "bytes of a request")->capture_default_str();
  command->add_option("--write", load.write_percent, "per cent of the requests that write")
      ->check(CLI::Range(0, 100))
      ->capture_default_str();
  command->add_flag("--sequential", load.sequential, "one after the other, not at random places");
  command->add_option("--span", load.span, "bytes of the disk to use (default: all)")
      ->transform(CLI::AsSizeValue(false));
  command->add_option("--gap", load.gap_us, "microseconds of nothing before each request");
  command->add_flag("--verify", blk->verify,
                    "first write known contents and read them back: DESTROYS what is there");
  command->add_flag("--zeros", blk->zeros, "first read all of it, which has to be zeros")
      ->excludes("--verify");
  command->add_flag("--listen", load.listen, "make the socket: the back-end connects to it");
  command->add_flag("--packed", load.packed, "packed rings instead of split ones");
  command->add_flag("--stock", load.stock,
                    "as stock Linux drivers: event index, a table for each request, a region for "
                    "what is in flight");
  add_common(*command, blk->common);
  return [blk] { return blk->run(); };
}

Command add_net(CLI::App& app) {
  auto net = std::make_shared<Net>();
  auto& load = net->load;
  auto* const command = app.add_subcommand("net", "frames from one NIC to another, or one way");
  command->add_option("from", load.from, "the sender's vhost-user socket")->required();
  command->add_option("to", load.to, "the receiver's");
  command->add_option("pairs", load.pairs, "more pairs of sockets, which take turns");
  command->add_option("--idle", load.idle, "sockets of NICs that are connected and do nothing");
  command->add_flag("--out", load.out, "one NIC: frames that the back-end takes");
  command->add_flag("--in", load.in, "one NIC: frames that the back-end brings");
  command->add_option("--size", load.frame, "bytes of a frame")->capture_default_str();
  command->add_option("--expect", load.expect,
                      "--in: a capture (pcap); every frame that comes has to be one of its");
  command->add_flag("--tso", load.tso, "frames are TCP, to be cut up where the receiver wants it");
  command->add_option("--rate", load.rate, "frames a second (default: as many as go)");
  command->add_option("--addresses", load.addresses, "addresses that the frames go to")
      ->capture_default_str();
  command->add_option("--slots", load.slots, "memory regions of each guest")
      ->check(CLI::Range(1, 509))
      ->capture_default_str();
  command->add_option("--burst", load.burst, "frames put up at once")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("--ring", load.ring, "entries of each ring, a power of two")
      ->check(power_of_two)
      ->capture_default_str();
  command->add_option("--check-every", load.check_every, "compare every n-th frame; 0: none")
      ->capture_default_str();
  command->add_flag("--listen", load.listen, "make the sockets: the back-end connects to them");
  command->add_flag("--packed", load.packed, "packed rings instead of split ones");
  command->add_flag("--stock", load.stock,
                    "as stock Linux drivers: event index; --tso: fragments of a page in a table");
  command->add_flag(
      "--inflight", load.inflight,
      "with a region for what is in flight, as front-ends that a back-end may die on");
  add_common(*command, net->common);
  return [net] { return net->run(); };
}

Command add_limit(CLI::App& app) {
  auto limit = std::make_shared<Limit>();
  auto* const command = app.add_subcommand("limit", "what the machine does without a back-end");
  command
      ->add_option("what", limit->what,
                   "memcpy: copies; uring: a file's requests; wakeup: an eventfd and an epoll; "
                   "driver: frames of a NIC whose device does nothing; switch: frames from NIC to "
                   "NIC by a thread that moves them and does nothing else")
      ->required()
      ->check(CLI::IsMember({"memcpy", "uring", "wakeup", "driver", "switch"}));
  command->add_option("--size", limit->size, "bytes of a copy, a request, a frame")
      ->capture_default_str();
  command->add_option("--depth", limit->depth, "requests in flight, buffers in turn")
      ->capture_default_str();
  command->add_option("--file", limit->file, "uring: the file, opened with O_DIRECT");
  command
      ->add_option("--write", limit->uring.write_percent,
                   "uring: per cent that write: DESTROYS what is there")
      ->check(CLI::Range(0, 100))
      ->capture_default_str();
  command->add_option("--span", limit->uring.span, "uring: bytes of the file to use")
      ->transform(CLI::AsSizeValue(false));
  command->add_option("--gap", limit->wake.gap_us, "wakeup: microseconds before each")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  command->add_flag("--out", limit->net.out, "driver: frames that it sends");
  command->add_flag("--in", limit->net.in, "driver: frames that it receives");
  command
      ->add_option("--other", limit->other,
                   "core of the second thread: the sleeper, the device, else a spinner")
      ->check(CLI::Range(0, CPU_SETSIZE - 1));
  add_common(*command, limit->common);
  return [limit] { return limit->run(); };
}

}  // namespace millrace::bench
