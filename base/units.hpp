// Sizes and rates as people write and read them. Control thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.hpp"

namespace millrace::base {

// Bytes from "4096", "4096B", "64KiB", "1GiB" (powers of 1024; K, M, G, T and P alone mean the
// same) or "1GB" (powers of 1000). Upper and lower case are alike; a space may precede the unit.
Result<std::uint64_t> parse_size(std::string_view text);

// "512 B", "1.5 KiB", "1.00 GiB": three digits and a power of 1024.
[[nodiscard]] std::string format_bytes(std::uint64_t bytes);

// "13.6 Mpps" from (13.6e6, "pps"): three digits and a power of 1000.
[[nodiscard]] std::string format_rate(double per_second, std::string_view unit);

}  // namespace millrace::base
