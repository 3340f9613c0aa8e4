// Ethernet addresses as people write them.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "switch/fabric.hpp"

namespace millrace::daemon {

// "52:54:00:00:00:01", either case; nullopt: anything else.
[[nodiscard]] std::optional<vswitch::Mac> parse_mac(std::string_view text);
[[nodiscard]] std::string format_mac(const vswitch::Mac& mac);

}  // namespace millrace::daemon
