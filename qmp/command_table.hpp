// CommandTable: what the control socket can be asked, by name. Thread: the loop's.
#pragma once

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace millrace::qmp {

// QMP error classes: "GenericError", "CommandNotFound", "DeviceNotFound".
struct CommandError {
  std::string error_class;
  std::string line;
};

using Answer = base::Result<nlohmann::json, CommandError>;
// Called once by a handler, at once or later from the event loop.
using Reply = std::function<void(Answer)>;
// `arguments` is an object and lives only as long as the call.
using CommandHandler = std::function<void(const nlohmann::json& arguments, Reply reply)>;
// `fd`: the oldest descriptor that the client sent and nobody took yet; empty where there is none.
using DescriptorHandler =
    std::function<void(const nlohmann::json& arguments, base::Fd fd, Reply reply)>;

[[nodiscard]] inline base::Unexpected<CommandError> refuse(
    std::string line, const char* error_class = "GenericError") {
  return base::Unexpected{CommandError{error_class, std::move(line)}};
}

class CommandTable {
 public:
  struct Entry {
    CommandHandler run;
    DescriptorHandler run_with_descriptor;  // the one or the other
  };

  void add(std::string name, CommandHandler handler) {
    entries_.insert_or_assign(std::move(name), Entry{std::move(handler), {}});
  }
  void add_with_descriptor(std::string name, DescriptorHandler handler) {
    takes_descriptors_ = true;
    entries_.insert_or_assign(std::move(name), Entry{{}, std::move(handler)});
  }
  [[nodiscard]] const Entry* find(const std::string& name) const {
    const auto found = entries_.find(name);
    return found == entries_.end() ? nullptr : &found->second;
  }
  [[nodiscard]] const std::map<std::string, Entry>& all() const { return entries_; }
  // False: what clients send along with their bytes is not even received.
  [[nodiscard]] bool takes_descriptors() const { return takes_descriptors_; }

 private:
  std::map<std::string, Entry> entries_;
  bool takes_descriptors_ = false;
};

}  // namespace millrace::qmp
