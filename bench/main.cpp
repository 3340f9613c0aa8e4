// millrace-bench: what a vhost-user back-end can do, millraced or another: requests to a disk,
// frames between NICs; what the machine itself can do; and the table that puts them side by side.
#include <cstdio>
#include <utility>
#include <vector>

#include "bench/commands.hpp"

namespace millrace::bench {
namespace {

int run(int argc, char** argv) {
  CLI::App app{"Measures vhost-user back-ends as a guest's driver sees them."};
  app.require_subcommand(1);
  std::vector<std::pair<const char*, Command>> commands;
  commands.emplace_back("blk", add_blk(app));
  commands.emplace_back("net", add_net(app));
  commands.emplace_back("limit", add_limit(app));
  commands.emplace_back("compare", add_compare(app));
  commands.emplace_back("report", add_report(app));
  CLI11_PARSE(app, argc, argv);
  for (const auto& [word, command] : commands) {
    if (!app.got_subcommand(word)) continue;
    const auto done = command();
    if (done) return 0;
    std::fprintf(stderr, "millrace-bench: %s\n", done.error().message.c_str());
  }
  return 1;
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) {
  return millrace::bench::run(argc, argv);
}
