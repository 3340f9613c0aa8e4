#include "daemon/ctl/table.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "base/check.hpp"

namespace millrace::ctl {

namespace {

constexpr std::string_view style_end = "\x1b[0m";

bool begins_character(char byte) {
  return (static_cast<unsigned char>(byte) & 0xc0) != 0x80;
}

// Three significant digits.
std::string digits(double value, const char* unit) {
  std::array<char, 32> text{};
  const int decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  std::snprintf(text.data(), text.size(), "%.*f%s", decimals, value, unit);
  return text.data();
}

}  // namespace

std::size_t columns_of(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), begins_character));
}

std::string clip(std::string_view text, std::size_t columns) {
  if (columns_of(text) <= columns) return std::string{text};
  if (columns == 0) return {};
  std::size_t at = 0;
  for (std::size_t seen = 0; at < text.size(); ++at) {
    if (begins_character(text[at]) && ++seen == columns) break;
  }
  return std::string{text.substr(0, at)} + "…";
}

std::string short_number(double value) {
  if (value < 999.5) {
    std::array<char, 32> text{};
    const bool whole = value == std::floor(value) || value >= 99.95;
    std::snprintf(text.data(), text.size(), whole ? "%.0f" : "%.1f", value);
    return text.data();
  }
  static constexpr std::array units{"k", "M", "G", "T", "P"};
  std::size_t unit = 0;
  for (value /= 1000; value >= 999.5 && unit + 1 < units.size(); ++unit) value /= 1000;
  return digits(value, units[unit]);
}

std::string short_duration(std::uint64_t ns) {
  if (ns == 0) return "-";
  const auto value = static_cast<double>(ns);
  if (ns < 1000) return std::to_string(ns) + "ns";
  if (ns < 1'000'000) return digits(value / 1e3, "us");
  if (ns < 1'000'000'000) return digits(value / 1e6, "ms");
  return digits(value / 1e9, "s");
}

std::string uptime(double seconds) {
  const auto s = static_cast<std::uint64_t>(seconds);
  const auto two = [](std::uint64_t a, const char* unit_a, std::uint64_t b, const char* unit_b) {
    return std::to_string(a) + unit_a + " " + std::to_string(b) + unit_b;
  };
  if (s >= 86'400) return two(s / 86'400, "d", s % 86'400 / 3600, "h");
  if (s >= 3600) return two(s / 3600, "h", s % 3600 / 60, "m");
  if (s >= 60) return two(s / 60, "m", s % 60, "s");
  return std::to_string(s) + "s";
}

void Table::add(std::vector<std::string> cells, std::string style) {
  CHECK(cells.size() == columns_.size());
  rows_.push_back({std::move(cells), std::move(style)});
}

std::string Table::line(const std::vector<std::string>& cells,
                        const std::vector<std::size_t>& widths) const {
  std::string out;
  for (std::size_t i = 0; i < cells.size(); ++i) {
    const auto text = clip(cells[i], widths[i]);
    const std::string padding(widths[i] - columns_of(text), ' ');
    if (i != 0) out += "  ";
    if (columns_[i].align == Align::right) {
      out += padding + text;
    } else {
      out += text + (i + 1 == cells.size() ? "" : padding);
    }
  }
  return out;
}

std::vector<std::string> Table::lines(std::size_t width, std::string_view title_style) const {
  std::vector<std::string> titles;
  std::vector<std::size_t> widths;
  for (const auto& column : columns_) {
    titles.push_back(column.title);
    widths.push_back(columns_of(column.title));
  }
  for (const auto& row : rows_) {
    for (std::size_t i = 0; i < widths.size(); ++i) {
      widths[i] = std::max(widths[i], std::min(columns_of(row.cells[i]), columns_[i].width_max));
    }
  }
  const auto fitted = [&](const std::vector<std::string>& cells, std::string_view style) {
    auto text = line(cells, widths);
    if (width != 0) text = clip(text, width);
    return style.empty() ? text : std::string{style} + text + std::string{style_end};
  };
  std::vector<std::string> out{fitted(titles, title_style)};
  for (const auto& row : rows_)
    out.push_back(fitted(row.cells, title_style.empty() ? "" : row.style));
  return out;
}

}  // namespace millrace::ctl
