#include "sriov/pci_address.hpp"

#include <array>
#include <charconv>
#include <cstdio>

namespace millrace::sriov {

namespace {

// Takes `digits` hexadecimal digits off the front of `text`.
std::optional<std::uint32_t> take(std::string_view& text, std::size_t digits) {
  if (text.size() < digits) return std::nullopt;
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + digits, value, 16);
  if (error != std::errc{} || end != text.data() + digits) return std::nullopt;
  text.remove_prefix(digits);
  return value;
}

bool take_sign(std::string_view& text, char wanted) {
  if (text.empty() || text.front() != wanted) return false;
  text.remove_prefix(1);
  return true;
}

}  // namespace

std::optional<PciAddress> parse_pci_address(std::string_view text) {
  PciAddress address;
  // a domain has four digits, and eight where a host bridge of its own has many (VMD)
  const auto colon = text.find(':');
  if (colon == 4 || colon == 8) {
    const auto domain = take(text, colon);
    if (!domain || !take_sign(text, ':')) return std::nullopt;
    address.domain = *domain;
  }
  const auto bus = take(text, 2);
  if (!bus || !take_sign(text, ':')) return std::nullopt;
  const auto device = take(text, 2);
  if (!device || *device > 31 || !take_sign(text, '.')) return std::nullopt;
  const auto function = take(text, 1);
  if (!function || *function > 7 || !text.empty()) return std::nullopt;
  address.bus = static_cast<std::uint8_t>(*bus);
  address.device = static_cast<std::uint8_t>(*device);
  address.function = static_cast<std::uint8_t>(*function);
  return address;
}

std::string format(const PciAddress& address) {
  std::array<char, 24> text{};
  std::snprintf(text.data(), text.size(), "%04x:%02x:%02x.%u", address.domain, address.bus,
                address.device, address.function);
  return text.data();
}

}  // namespace millrace::sriov
