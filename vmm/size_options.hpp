// The options that say how large a guest is, and how large it may become while it runs:
// --cpus 2,max=8 and --memory 512M,max=4G,slots=8. Thread: any.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.hpp"

namespace millrace::vmm {

struct CpusOption {
  unsigned count = 1;  // at the start
  unsigned most = 1;
};
// Fails on what is no number from 1 to cpus_max, and on a maximum below the count.
[[nodiscard]] base::Result<CpusOption> parse_cpus(const std::string& text);

struct MemoryOption {
  std::uint64_t bytes = 0;  // at the start
  std::uint64_t most = 0;
  unsigned slots = 0;  // how often memory may be added; 0: it cannot
};
// Only the form; GuestRam says which sizes it can make.
[[nodiscard]] base::Result<MemoryOption> parse_memory(const std::string& text);

}  // namespace millrace::vmm
