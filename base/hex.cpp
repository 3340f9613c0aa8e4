#include "base/hex.hpp"

#include <spdlog/fmt/fmt.h>

namespace millrace::base {

std::string format_hex(std::uint64_t value) {
  return fmt::format("{:#x}", value);
}

}  // namespace millrace::base
