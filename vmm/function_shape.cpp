#include "vmm/function_shape.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

namespace millrace::vmm {

using base::fail;
using base::Result;

namespace {

constexpr std::size_t vendor_at = 0x00, device_at = 0x02, status_at = 0x06, revision_at = 0x08,
                      header_at = 0x0e, bar_at = 0x10, subsystem_at = 0x2c, capabilities_at = 0x34;
constexpr std::uint16_t status_capabilities = 1 << 4;
constexpr std::uint32_t bar_is_port = 1, bar_kind = 6, bar_wide = 4;
constexpr std::uint8_t msix_id = 0x11, express_id = 0x10;
constexpr std::uint16_t vectors_mask = 0x7ff;
constexpr std::uint32_t bar_mask = 7;
constexpr std::uint64_t page = 4096, entry_size = 16;
constexpr std::size_t first_capability = 0x40, capabilities_most = 48, msix_size = 12;

using Config = std::span<const std::byte, 256>;

template <class T>
T at(Config config, std::size_t offset) {
  T value{};
  if (offset + sizeof value <= config.size()) {
    std::memcpy(&value, config.data() + offset, sizeof value);
  }
  return value;
}

// Bytes of a PCI Express capability by its version: the first has no second set of registers.
std::uint8_t express_size(Config config, std::size_t offset) {
  constexpr std::size_t first = 0x14, second = 0x3c;
  const auto size = (at<std::uint16_t>(config, offset + 2) & 0xf) >= 2 ? second : first;
  return static_cast<std::uint8_t>(std::min(size, config.size() - offset));
}

void find_capabilities(Config config, FunctionShape& shape) {
  if ((at<std::uint16_t>(config, status_at) & status_capabilities) == 0) return;
  std::size_t next = at<std::uint8_t>(config, capabilities_at) & 0xfcu;
  // As many as fit, whatever a list that bites its tail says.
  for (std::size_t i = 0; i < capabilities_most && next >= first_capability; ++i) {
    const auto id = at<std::uint8_t>(config, next);
    const auto here = static_cast<std::uint8_t>(next);
    if (id == msix_id && next + msix_size <= config.size()) shape.msix_at = here;
    if (id == express_id) {
      shape.express_at = here;
      shape.express_size = express_size(config, next);
    }
    next = at<std::uint8_t>(config, next + 1) & 0xfcu;
  }
  // One never reaches into the other.
  if (shape.express_at != 0 && shape.express_at < shape.msix_at) {
    shape.express_size =
        std::min<std::uint8_t>(shape.express_size, shape.msix_at - shape.express_at);
  }
}

Result<void> read_bars(Config config, std::span<const std::uint64_t, 6> sizes,
                       FunctionShape& shape) {
  for (unsigned i = 0; i < PciFunction::bars; ++i) {
    const auto word = at<std::uint32_t>(config, bar_at + 4 * i);
    // Ports are left out: no driver of a function that can be passed through needs them.
    if (sizes[i] == 0 || (word & bar_is_port) != 0) continue;
    const bool wide = (word & bar_kind) == bar_wide;
    if (!std::has_single_bit(sizes[i]) || (wide && i + 1 == PciFunction::bars) ||
        (!wide && sizes[i] > 1u << 31)) {
      return fail("BAR " + std::to_string(i) + " of " + std::to_string(sizes[i]) +
                  " bytes is none that a guest can be given");
    }
    shape.bars[i] = {std::max(sizes[i], page), wide};
    if (wide) ++i;
  }
  return {};
}

Result<FunctionShape::Table> table_at(Config config, std::size_t offset, std::uint64_t size,
                                      const FunctionShape& shape) {
  const auto word = at<std::uint32_t>(config, offset);
  const FunctionShape::Table table{word & bar_mask, word & ~bar_mask, size};
  if (table.bar >= PciFunction::bars || table.offset + size > shape.bars[table.bar].size) {
    return fail("its MSI-X table lies outside of its BARs");
  }
  return table;
}

}  // namespace

Result<FunctionShape> shape_of(Config config, std::span<const std::uint64_t, 6> bar_sizes) {
  FunctionShape shape;
  if ((at<std::uint8_t>(config, header_at) & 0x7f) != 0) {
    return fail("it is a bridge, which no guest can be given");
  }
  shape.identity = {.vendor = at<std::uint16_t>(config, vendor_at),
                    .device = at<std::uint16_t>(config, device_at),
                    .revision = at<std::uint8_t>(config, revision_at),
                    .class_code = at<std::uint32_t>(config, revision_at) >> 8,
                    .subsystem_vendor = at<std::uint16_t>(config, subsystem_at),
                    .subsystem = at<std::uint16_t>(config, subsystem_at + 2)};
  if (auto ok = read_bars(config, bar_sizes, shape); !ok) return base::Unexpected{ok.error()};
  find_capabilities(config, shape);
  if (shape.msix_at == 0) {
    return fail("it has no MSI-X, the only interrupts that a guest is given");
  }
  shape.vectors = (at<std::uint16_t>(config, shape.msix_at + 2u) & vectors_mask) + 1u;
  auto table = table_at(config, shape.msix_at + 4u, shape.vectors * entry_size, shape);
  auto pending = table_at(config, shape.msix_at + 8u, (shape.vectors + 63) / 64 * 8, shape);
  if (!table) return base::Unexpected{table.error()};
  if (!pending) return base::Unexpected{pending.error()};
  shape.table = *table;
  shape.pending = *pending;
  return shape;
}

std::vector<vfio::Area> areas_for_guest(const FunctionShape& shape, unsigned bar,
                                        std::span<const vfio::Area> areas) {
  std::vector<vfio::Area> whole;
  const auto is_free = [&](std::uint64_t at) {
    return !shape.table.touches(bar, at, page) && !shape.pending.touches(bar, at, page);
  };
  // Up to the next page that is not free; a BAR is large, but tables are small and few.
  const auto next_taken = [&](std::uint64_t at, std::uint64_t end) {
    for (const auto* const table : {&shape.table, &shape.pending}) {
      const auto start = table->offset & ~(page - 1);
      if (table->bar == bar && start >= at) end = std::min(end, start);
    }
    return end;
  };
  for (const auto& area : areas) {
    for (auto from = area.offset; from < area.end();) {
      if (!is_free(from)) {
        from += page;
        continue;
      }
      const auto end = next_taken(from, area.end());
      whole.push_back({from, end - from});
      from = end;
    }
  }
  return whole;
}

}  // namespace millrace::vmm
