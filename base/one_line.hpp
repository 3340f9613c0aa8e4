// Text from elsewhere as one line that does nothing to a log or a terminal. Thread: any
// (allocates).
#pragma once

#include <string>
#include <string_view>

namespace millrace::base {

// `text` with '?' in place of each control character (line breaks, escape sequences). What is not
// ASCII stays.
[[nodiscard]] inline std::string one_line(std::string_view text) {
  std::string line{text};
  for (char& c : line) {
    if ((c >= 0 && c < ' ') || c == 0x7f) c = '?';
  }
  return line;
}

}  // namespace millrace::base
