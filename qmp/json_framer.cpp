#include "qmp/json_framer.hpp"

namespace millrace::qmp {

std::optional<std::string> JsonFramer::next() {
  while (broken_ == nullptr && at_ < input_.size()) {
    const char c = input_[at_++];
    if (scan_ == Scan::between) {
      if (c == ' ' || c == '\t' || c == '\r' || c == '\n') {
        begin_ = at_;
        continue;
      }
      scan_ = c == '{' || c == '[' ? Scan::nested : Scan::line;
    }
    if (step(c)) return take();
    if (at_ - begin_ > document_max) broken_ = "a request is longer than 256 KiB";
    if (depth_ > depth_max) broken_ = "a request is nested deeper than 32 levels";
  }
  if (scan_ == Scan::between) {
    input_.clear();
    begin_ = at_ = 0;
  }
  return std::nullopt;
}

bool JsonFramer::step(char c) {
  if (scan_ == Scan::line) return c == '\n';
  if (in_text_) {
    if (escaped_) {
      escaped_ = false;
    } else if (c == '\\') {
      escaped_ = true;
    } else if (c == '"') {
      in_text_ = false;
    }
    return false;
  }
  if (c == '"') in_text_ = true;
  if (c == '{' || c == '[') ++depth_;
  if (c == '}' || c == ']') --depth_;
  return depth_ == 0;
}

std::string JsonFramer::take() {
  std::string document = input_.substr(begin_, at_ - begin_);
  begin_ = at_;
  scan_ = Scan::between;
  if (begin_ > document_max) {
    input_.erase(0, begin_);
    begin_ = at_ = 0;
  }
  return document;
}

}  // namespace millrace::qmp
