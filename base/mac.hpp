// Ethernet addresses as people write them.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace millrace::base {

using Mac = std::array<std::uint8_t, 6>;

// "52:54:00:00:00:01", either case; nullopt: anything else.
[[nodiscard]] std::optional<Mac> parse_mac(std::string_view text);
[[nodiscard]] std::string format_mac(const Mac& mac);

}  // namespace millrace::base
