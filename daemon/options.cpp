#include "daemon/options.hpp"

#include <CLI/CLI.hpp>

#include "daemon/version.hpp"

namespace millrace::daemon {

std::optional<Options> parse_options(int argc, char** argv, int& status) {
  Options options;
  CLI::App app{"millraced serves vhost-user network and block devices to virtual machines.",
               "millraced"};
  app.set_version_flag("--version", std::string{"millraced "} + version);
  app.add_option("--config", options.config, "The configuration, a TOML file")->required();
  app.add_flag("--check", options.check, "Validate the configuration, start nothing");
  app.add_option("--log-level", options.log_level, "trace, debug, info, warning or error")
      ->check(CLI::IsMember({"trace", "debug", "info", "warning", "error"}));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    status = app.exit(error) == 0 ? exit_ok : exit_usage;
    return std::nullopt;
  }
  return options;
}

}  // namespace millrace::daemon
