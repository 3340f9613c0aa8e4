// JsonFramer: cuts a byte stream into JSON documents without parsing them.
//
// A document is a balanced {...} or [...], or, where something else begins, the rest of the line
// (which a parser then refuses). Bounded in length and depth: a stream that exceeds a bound is
// `broken`.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace millrace::qmp {

class JsonFramer {
 public:
  static constexpr std::size_t document_max = 256 * 1024;
  static constexpr unsigned depth_max = 32;

  void feed(std::string_view bytes) { input_.append(bytes); }
  // The next whole document; nullopt: more bytes are needed, or the stream is broken.
  [[nodiscard]] std::optional<std::string> next();
  // Why no further document can be found; nullptr: nothing is wrong.
  [[nodiscard]] const char* broken() const { return broken_; }
  [[nodiscard]] std::size_t buffered() const { return input_.size() - begin_; }

 private:
  enum class Scan { between, line, nested };
  // Looks at one byte; true when the document ends with it.
  bool step(char c);
  std::string take();

  std::string input_;
  std::size_t begin_ = 0;  // of the document being scanned
  std::size_t at_ = 0;     // the next byte to look at
  Scan scan_ = Scan::between;
  unsigned depth_ = 0;
  bool in_text_ = false, escaped_ = false;
  const char* broken_ = nullptr;
};

}  // namespace millrace::qmp
