// What the companions of a guest are told: entropy, console ports, balloon, memory. Plain
// values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace millrace::guest {

// virtio-rng, virtio 1.2 §5.4.
struct RngSettings {
  // How fast a guest may draw, averaged over a burst of 64 KiB: random bytes cost a core's time.
  std::uint64_t bytes_per_second = 1 << 20;
};

// A port of a console: bytes between a program of the host, which connects to `socket`, and one of
// the guest, which opens /dev/virtio-ports/NAME; or a terminal of the guest's (/dev/hvcN).
struct PortSettings {
  std::string name;
  std::string socket;           // a path
  unsigned permissions = 0660;  // of the socket file
  bool terminal = false;
  std::optional<unsigned> id{};  // its number; none: the first that is free
};

// virtio-console, virtio 1.2 §5.3.
struct ConsoleSettings {
  unsigned ports_max = 8;  // at any time; port 0 can only be a terminal
  std::vector<PortSettings> ports;
  std::string ports_file{};  // a path: where ports that commands change are kept; empty: nowhere
  std::optional<std::vector<PortSettings>> kept{};  // from there, instead of `ports`
  [[nodiscard]] const std::vector<PortSettings>& ports_now() const { return kept ? *kept : ports; }
};

// 2^32 pages of 4096 bytes, less one.
inline constexpr std::uint64_t balloon_size_max = 0xffff'ffffull << 12;

// virtio-balloon, virtio 1.2 §5.5.
struct BalloonSettings {
  std::uint64_t size = 0;      // bytes that the guest gives up, from the start
  bool reporting = true;       // the host gets back what the guest has free
  bool deflate_on_oom = true;  // the guest takes memory back before it kills a program
  unsigned stats_s = 10;       // seconds from one look at the guest's figures to the next; 0: none
};

// virtio-mem, virtio 1.2 §5.15.
struct MemSettings {
  std::uint64_t requested = 0;  // bytes that the guest shall have, from the start
};
// What a size of it is a multiple of, whatever its blocks are; and the most.
inline constexpr std::uint64_t mem_unit = 2 << 20, mem_size_max = 1ull << 44;

using Settings = std::variant<RngSettings, ConsoleSettings, BalloonSettings, MemSettings>;

// "rng": the kind in configurations, commands and messages.
[[nodiscard]] const char* kind_of(const Settings& settings);

}  // namespace millrace::guest
