#include "base/units.hpp"

#include <array>
#include <cctype>
#include <charconv>
#include <cstdio>
#include <limits>

namespace millrace::base {

namespace {

struct Unit {
  std::string_view name;
  std::uint64_t bytes;
};
constexpr std::array units{
    Unit{"", 1},
    Unit{"b", 1},
    Unit{"k", 1ull << 10},
    Unit{"kib", 1ull << 10},
    Unit{"kb", 1'000},
    Unit{"m", 1ull << 20},
    Unit{"mib", 1ull << 20},
    Unit{"mb", 1'000'000},
    Unit{"g", 1ull << 30},
    Unit{"gib", 1ull << 30},
    Unit{"gb", 1'000'000'000},
    Unit{"t", 1ull << 40},
    Unit{"tib", 1ull << 40},
    Unit{"tb", 1'000'000'000'000},
    Unit{"p", 1ull << 50},
    Unit{"pib", 1ull << 50},
    Unit{"pb", 1'000'000'000'000'000},
};

Unexpected<Error> bad_size(std::string_view text, const char* why) {
  return fail("\"" + std::string{text} + "\" is no size: " + why);
}

// Three digits: 1.23, 12.3 or 123, then the unit.
std::string three_digits(double value, std::string_view prefix, std::string_view unit) {
  const int decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  std::array<char, 64> number{};
  std::snprintf(number.data(), number.size(), "%.*f ", decimals, value);
  std::string out{number.data()};
  out += prefix;
  out += unit;
  return out;
}

}  // namespace

Result<std::uint64_t> parse_size(std::string_view text) {
  std::uint64_t number = 0;
  const auto* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  if (error == std::errc::result_out_of_range) return bad_size(text, "it is too large");
  if (error != std::errc{}) return bad_size(text, "write a whole number and a unit, as in 64MiB");
  std::string name{rest, end};
  if (!name.empty() && name.front() == ' ') name.erase(0, 1);
  for (auto& letter : name) {
    letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  }
  for (const auto& unit : units) {
    if (unit.name != name) continue;
    if (number > std::numeric_limits<std::uint64_t>::max() / unit.bytes) {
      return bad_size(text, "it is too large");
    }
    return number * unit.bytes;
  }
  return bad_size(text, "units are B, KiB, MiB, GiB, TiB and PiB");
}

std::string format_bytes(std::uint64_t bytes) {
  if (bytes < 1024) return std::to_string(bytes) + " B";
  constexpr std::array prefixes{"Ki", "Mi", "Gi", "Ti", "Pi", "Ei"};
  double value = static_cast<double>(bytes) / 1024;
  std::size_t at = 0;
  for (; value >= 999.5 && at + 1 < prefixes.size(); ++at) value /= 1024;
  return three_digits(value, prefixes[at], "B");
}

std::string format_rate(double per_second, std::string_view unit) {
  constexpr std::array prefixes{"", "k", "M", "G", "T"};
  double value = per_second < 0 ? 0 : per_second;
  std::size_t at = 0;
  for (; value >= 999.5 && at + 1 < prefixes.size(); ++at) value /= 1000;
  if (at == 0 && value < 999.5 && value == static_cast<double>(static_cast<int>(value))) {
    return std::to_string(static_cast<int>(value)) + " " + std::string{unit};
  }
  return three_digits(value, prefixes[at], unit);
}

}  // namespace millrace::base
