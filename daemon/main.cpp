// millraced: reads the configuration, checks all of it, then starts it.
//
// From here: service.cpp starts and stops everything; topology.cpp names every part and how it is
// put together; base/reactor.cpp is the loop in which the data path runs.
#include <cstdio>
#include <fstream>
#include <string>

#include "base/cores.hpp"
#include "base/log.hpp"
#include "daemon/options.hpp"
#include "daemon/problems.hpp"
#include "daemon/service.hpp"
#include "daemon/system_check.hpp"

namespace millrace::daemon {

namespace {

// The file's configuration, complete and checked against this machine, or every reason why not.
Config load(const std::string& path, Problems& problems) {
  std::ifstream file{path};
  std::string text;
  std::getline(file, text, '\0');
  if (!file.is_open() || file.bad()) {
    problems.add({}, "cannot be read; give a TOML file");
    return {};
  }
  Config config = parse_config(text, problems);
  const auto usable = base::usable_cores();
  if (!usable) {
    problems.add({}, usable.error().message);
    return config;
  }
  if (config.cores.empty()) config.cores = choose_cores(*usable);
  check_system(config, *usable, problems);
  return config;
}

int run(int argc, char** argv) {
  int status = exit_ok;
  const auto options = parse_options(argc, argv, status);
  if (!options) return status;

  Problems problems{options->config};
  const Config config = load(options->config, problems);
  for (const auto& line : problems.lines()) std::fprintf(stderr, "%s\n", line.c_str());
  if (!problems.none()) return exit_usage;
  if (options->check) {
    std::printf("%s: valid\n", options->config.c_str());
    return exit_ok;
  }
  base::set_up_log(options->log_level.c_str());
  return Service::run(config);
}

}  // namespace

}  // namespace millrace::daemon

int main(int argc, char** argv) {
  return millrace::daemon::run(argc, argv);
}
