#include "base/log.hpp"

#include <spdlog/sinks/stdout_sinks.h>

#include <cstdlib>
#include <string_view>

namespace millrace::base {

void set_up_log(const char* level) {
  constexpr const char* name = "millrace";
  spdlog::drop(name);
  auto logger = spdlog::stderr_logger_mt(name);
  // The journal stamps every line itself.
  const bool journal = std::getenv("JOURNAL_STREAM") != nullptr;
  logger->set_pattern(journal ? "%l: %v" : "%Y-%m-%dT%H:%M:%S.%e %l: %v");
  auto wanted = spdlog::level::from_str(level);
  if (wanted == spdlog::level::off && std::string_view{level} != "off") {
    wanted = spdlog::level::info;
  }
  logger->set_level(wanted);
  logger->flush_on(spdlog::level::trace);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace millrace::base
