#include "vmm/power.hpp"

#include <algorithm>

namespace millrace::vmm {

namespace {

constexpr std::uint8_t sleep_enable = 1 << 5;
constexpr unsigned sleep_type_shift = 2, sleep_type_mask = 7;
constexpr std::byte pull_reset{0xfe};

}  // namespace

void PowerPorts::raise(std::uint8_t event) {
  events_.fetch_or(event);
  interrupt_(true);
  interrupt_(false);
}

void PowerPorts::read(std::uint64_t offset, std::span<std::byte> data) {
  for (auto& byte : data) {
    // Reading the events takes them.
    byte = std::byte{offset == events ? events_.exchange(0) : std::uint8_t{0}};
    ++offset;
  }
}

void PowerPorts::write(std::uint64_t offset, std::span<const std::byte> data) {
  for (const auto byte : data) {
    const auto value = std::to_integer<unsigned>(byte);
    if (offset == sleep_control && (value & sleep_enable) != 0 &&
        (value >> sleep_type_shift & sleep_type_mask) == sleep_type_off) {
      handler_(GuestEvent::power_off);
    }
    ++offset;
  }
}

// Zero: its input buffer is empty, so nobody waits for it.
void KeyboardReset::read(std::uint64_t, std::span<std::byte> data) {
  std::ranges::fill(data, std::byte{0});
}

void KeyboardReset::write(std::uint64_t, std::span<const std::byte> data) {
  if (data.front() == pull_reset) handler_(GuestEvent::reset);
}

void PanicPort::read(std::uint64_t, std::span<std::byte> data) {
  data.front() = std::byte{event_panicked | event_crash_loaded};
}

void PanicPort::write(std::uint64_t, std::span<const std::byte> data) {
  const auto value = std::to_integer<unsigned>(data.front());
  if ((value & event_panicked) != 0) handler_(GuestEvent::panicked);
  if ((value & event_crash_loaded) != 0) handler_(GuestEvent::crash_loaded);
}

}  // namespace millrace::vmm
