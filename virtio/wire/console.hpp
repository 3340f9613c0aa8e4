// The wire format of virtio-console: virtio 1.2 section 5.3. Layout and numbers only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/endian.hpp"

namespace millrace::virtio::wire {

// Feature bits, §5.3.3.
namespace console_feature {
inline constexpr std::uint64_t size = 1ull << 0;
inline constexpr std::uint64_t multiport = 1ull << 1;
inline constexpr std::uint64_t emerg_write = 1ull << 2;
}  // namespace console_feature

// Configuration space, §5.3.4.
struct ConsoleConfig {
  base::le16 cols, rows;
  base::le32 max_nr_ports;
  base::le32 emerg_wr;
};
static_assert(sizeof(ConsoleConfig) == 12 && std::is_trivially_copyable_v<ConsoleConfig>);
inline constexpr std::uint32_t console_ports_max = 31;  // what drivers and back-ends here can have

// Queues, §5.3.2: port 0 has the first two, the control queues follow, then the other ports.
inline constexpr unsigned console_control_in = 2, console_control_out = 3;

// A control message, §5.3.6.2; after PORT_NAME the name follows.
enum class ConsoleEvent : std::uint16_t {
  device_ready = 0,
  port_add = 1,
  port_remove = 2,
  port_ready = 3,
  console_port = 4,
  resize = 5,
  port_open = 6,
  port_name = 7,
};
struct ConsoleControl {
  base::le32 id;
  base::le16 event;
  base::le16 value;
};
static_assert(sizeof(ConsoleControl) == 8 && std::is_trivially_copyable_v<ConsoleControl>);

}  // namespace millrace::virtio::wire
