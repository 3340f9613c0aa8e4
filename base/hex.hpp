// Numbers as addresses are written.
#pragma once

#include <cstdint>
#include <string>

namespace millrace::base {

// "0x1f": lower case, no leading zeros.
[[nodiscard]] std::string format_hex(std::uint64_t value);

}  // namespace millrace::base
