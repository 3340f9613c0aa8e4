// millraced: reads the configuration, checks all of it, then starts it.
//
// From here: service.cpp starts and stops everything; topology.cpp names every part and how it is
// put together; base/reactor.cpp is the loop in which the data path runs.
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "base/cores.hpp"
#include "base/error.hpp"
#include "base/fd.hpp"
#include "base/log.hpp"
#include "daemon/options.hpp"
#include "daemon/problems.hpp"
#include "daemon/service.hpp"
#include "daemon/system_check.hpp"

namespace millrace::daemon {

namespace {

// All of a file, with whatever bytes it has.
base::Result<std::string> read_file(const std::string& path) {
  constexpr std::size_t most = 16u << 20, piece = 64u << 10;
  const base::Fd file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (!file) return base::fail_errno("cannot be read");
  std::string text;
  for (std::size_t had = 0; had <= most;) {
    text.resize(had + piece);
    const auto got = ::read(file.get(), text.data() + had, piece);
    if (got < 0) return base::fail_errno("cannot be read");
    had += static_cast<std::size_t>(got);
    text.resize(had);
    if (got == 0) return text;
  }
  return base::fail("has more than 16 MiB");
}

// The file's configuration, complete and checked against this machine, or every reason why not.
Config load(const std::string& path, Problems& problems) {
  const auto text = read_file(path);
  if (!text) {
    problems.add({}, text.error().message + "; give a TOML file");
    return {};
  }
  Config config = parse_config(*text, problems);
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
