// Table: rows of text in columns, and numbers as a person reads them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace millrace::ctl {

// Columns a terminal needs for UTF-8 `text` without escapes (every character counts as one).
[[nodiscard]] std::size_t columns_of(std::string_view text);
// At most `columns` of `text`, the cut marked by an ellipsis.
[[nodiscard]] std::string clip(std::string_view text, std::size_t columns);

// "12.3k", "1.20M", "999": at most 5 columns, powers of 1000. 0 is "0".
[[nodiscard]] std::string short_number(double value);
// "850ns", "12.3us", "4.56ms", "1.20s"; 0 is "-".
[[nodiscard]] std::string short_duration(std::uint64_t ns);
// "3d 4h", "2h 5m", "4m 10s", "9s"
[[nodiscard]] std::string uptime(double seconds);

enum class Align { left, right };

class Table {
 public:
  struct Column {
    std::string title;
    Align align = Align::left;
    std::size_t width_max = 40;
  };
  explicit Table(std::vector<Column> columns) : columns_{std::move(columns)} {}

  // As many cells as columns. `style` is an escape sequence around the row, or empty.
  void add(std::vector<std::string> cells, std::string style = {});
  // The title line and the rows, each at most `width` columns wide (0: as wide as needed). The last
  // column is not padded. Columns are as wide as their widest cell.
  [[nodiscard]] std::vector<std::string> lines(std::size_t width,
                                               std::string_view title_style) const;
  [[nodiscard]] std::size_t rows() const { return rows_.size(); }

 private:
  struct Row {
    std::vector<std::string> cells;
    std::string style;
  };
  [[nodiscard]] std::string line(const std::vector<std::string>& cells,
                                 const std::vector<std::size_t>& widths) const;

  std::vector<Column> columns_;
  std::vector<Row> rows_;
};

}  // namespace millrace::ctl
