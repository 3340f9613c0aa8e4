// A NetLoad of a single NIC: frames go out of it, or come in, or both. And the same against a
// device that does nothing, which is the driver's own speed.
#pragma once

#include <memory>

#include "base/result.hpp"
#include "bench/net_load.hpp"

namespace millrace::bench {

// `config.from` with `out`, `in` or both. Fails in one line, as NetLoad::make().
[[nodiscard]] base::Result<std::unique_ptr<NetLoad>> make_one_way(const NetLoadConfig& config);

}  // namespace millrace::bench
