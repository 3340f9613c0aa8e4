#include "vmm/ioapic.hpp"

#include <algorithm>
#include <cstring>

#include "base/check.hpp"

namespace millrace::vmm {

namespace {

// Memory window, 82093AA §3.1; indirect registers, §3.2.
constexpr std::uint64_t select_at = 0x00, window_at = 0x10;
constexpr std::uint8_t id_register = 0, version_register = 1, arbitration_register = 2,
                       first_entry_register = 0x10;
constexpr std::uint32_t version = 0x11 | (Ioapic::pins - 1) << 16;
// Redirection table entry, §3.2.4.
constexpr std::uint64_t vector_bits = 0xff, mode_bits = 7u << 8, logical = 1u << 11,
                        remote_irr = 1u << 14, level_triggered = 1u << 15, masked = 1u << 16,
                        read_only = 1u << 12 | remote_irr;

// The message that a local APIC understands (Intel SDM volume 3 §11.11).
MsiMessage message_of(std::uint64_t entry) {
  const auto destination = entry >> 56;
  MsiMessage message;
  message.address = 0xfee0'0000 | destination << 12 | ((entry & logical) != 0 ? 1u << 2 : 0u);
  message.data = static_cast<std::uint32_t>(entry & (vector_bits | mode_bits));
  if ((entry & level_triggered) != 0) message.data |= 1u << 15 | 1u << 14;
  return message;
}

}  // namespace

void Ioapic::set_line(unsigned pin, bool high) {
  CHECK(pin < pins);
  const std::lock_guard lock{mutex_};
  const bool rose = high && !lines_[pin];
  lines_[pin] = high;
  if (!rose) return;
  if ((entries_[pin] & level_triggered) == 0) edges_[pin] = true;
  deliver(pin);
}

void Ioapic::deliver(unsigned pin) {
  auto& entry = entries_[pin];
  if ((entry & masked) != 0) return;
  if ((entry & level_triggered) != 0) {
    if (!lines_[pin] || (entry & remote_irr) != 0) return;
    entry |= remote_irr;
  } else {
    if (!edges_[pin]) return;
    edges_[pin] = false;
  }
  output_.send(message_of(entry));
}

void Ioapic::end_of_interrupt(std::uint8_t vector) {
  const std::lock_guard lock{mutex_};
  for (unsigned pin = 0; pin < pins; ++pin) {
    auto& entry = entries_[pin];
    if ((entry & remote_irr) == 0 || (entry & vector_bits) != vector) continue;
    entry &= ~remote_irr;
    deliver(pin);  // again, where the line is still high
  }
}

void Ioapic::set_entry(unsigned pin, std::uint64_t entry) {
  auto& now = entries_[pin];
  const auto before = now;
  now = (entry & ~read_only) | (now & read_only);
  if ((now & level_triggered) == 0) now &= ~remote_irr;
  const auto reported = [](std::uint64_t e) {
    return (e & level_triggered) != 0 && (e & masked) == 0;
  };
  if (reported(now)) {
    if (!reported(before) || message_of(before) != message_of(now)) {
      output_.report_end(pin, message_of(now));
    }
  } else if (reported(before) && (now & remote_irr) == 0) {
    output_.report_end(pin, std::nullopt);
  }
  deliver(pin);
}

std::uint32_t Ioapic::register_value() const {
  switch (selected_) {
    case id_register:
    case arbitration_register:
      return id_;
    case version_register:
      return version;
    default:
      break;
  }
  const auto index = static_cast<unsigned>(selected_) - first_entry_register;
  if (selected_ < first_entry_register || index / 2 >= pins) return 0;
  return static_cast<std::uint32_t>(entries_[index / 2] >> (index % 2 * 32));
}

void Ioapic::set_register(std::uint32_t value) {
  if (selected_ == id_register) id_ = value & 0x0f00'0000;
  const auto index = static_cast<unsigned>(selected_) - first_entry_register;
  if (selected_ < first_entry_register || index / 2 >= pins) return;
  const auto shift = index % 2 * 32;
  const auto kept = entries_[index / 2] & ~(0xffff'ffffull << shift);
  set_entry(index / 2, kept | std::uint64_t{value} << shift);
}

void Ioapic::read(std::uint64_t offset, std::span<std::byte> data) {
  const std::lock_guard lock{mutex_};
  std::uint32_t value = 0;
  if (offset == select_at) value = selected_;
  if (offset == window_at) value = register_value();
  std::ranges::fill(data, std::byte{0});
  std::memcpy(data.data(), &value, std::min(data.size(), sizeof value));
}

void Ioapic::write(std::uint64_t offset, std::span<const std::byte> data) {
  const std::lock_guard lock{mutex_};
  std::uint32_t value = 0;
  std::memcpy(&value, data.data(), std::min(data.size(), sizeof value));
  if (offset == select_at) selected_ = static_cast<std::uint8_t>(value);
  // Registers are whole double words; a part of one means nothing.
  if (offset == window_at && data.size() >= sizeof value) set_register(value);
}

}  // namespace millrace::vmm
