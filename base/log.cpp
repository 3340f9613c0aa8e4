#include "base/log.hpp"

#include <spdlog/sinks/stdout_sinks.h>

#include <cstdlib>
#include <string>
#include <string_view>

namespace millrace::base {

void set_up_log(const char* level, std::string_view name) {
  constexpr const char* logger_name = "millrace";
  spdlog::drop(logger_name);
  auto logger = spdlog::stderr_logger_mt(logger_name);
  // The journal stamps every line itself.
  const bool journal = std::getenv("JOURNAL_STREAM") != nullptr;
  std::string pattern = journal ? "%l: " : "%Y-%m-%dT%H:%M:%S.%e %l: ";
  for (const char c : name) pattern += c == '%' ? std::string{"%%"} : std::string{c};
  logger->set_pattern(pattern + (name.empty() ? "%v" : ": %v"));
  auto wanted = spdlog::level::from_str(level);
  if (wanted == spdlog::level::off && std::string_view{level} != "off") {
    wanted = spdlog::level::info;
  }
  logger->set_level(wanted);
  logger->flush_on(spdlog::level::trace);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace millrace::base
