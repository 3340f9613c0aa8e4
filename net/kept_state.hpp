// What a driver has set up, as a record for the next daemon (virtio::KeptArea). Thread: control.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "net/driver_state.hpp"

namespace millrace::net {

// `features`: those that it was set up under.
[[nodiscard]] std::vector<std::byte> pack(const DriverState& state, std::uint64_t features);
// Checked as the driver's commands are: a record is no more trusted than they. Nothing where it is
// of another version, of other features, or holds what no driver can have set up on `pairs` pairs.
// `fresh`: as a driver with these features begins.
[[nodiscard]] std::optional<DriverState> unpack(std::span<const std::byte> record,
                                                std::uint64_t features, unsigned pairs,
                                                const DriverState& fresh);

}  // namespace millrace::net
