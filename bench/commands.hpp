// The words of millrace-bench: each adds its options to the command line and knows how to run.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>

#include "base/result.hpp"
#include "bench/load.hpp"

namespace millrace::bench {

using Command = std::function<base::Result<void>()>;

// What all loads have: time, place, form.
struct Common {
  LoadTime time;
  bool json = false, wait = false;
  int core = -1;
};
void add_common(CLI::App& command, Common& common);
// Pins the thread, and makes the load wait for its word where that was asked for.
base::Result<void> prepare(Common& common);

// Each answers what to do if its word was said. The app and the command go together.
Command add_blk(CLI::App& app);
Command add_net(CLI::App& app);
Command add_limit(CLI::App& app);    // the physical limits; see limit.hpp
Command add_compare(CLI::App& app);  // the whole table, beside the peers
Command add_report(CLI::App& app);   // a page and a table of what was compared

}  // namespace millrace::bench
