// CommandTable: what the control socket can be asked, by name. Thread: control.
#pragma once

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "base/result.hpp"

namespace millrace::daemon {

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

[[nodiscard]] inline base::Unexpected<CommandError> refuse(
    std::string line, const char* error_class = "GenericError") {
  return base::Unexpected{CommandError{error_class, std::move(line)}};
}

class CommandTable {
 public:
  void add(std::string name, CommandHandler handler) {
    handlers_.insert_or_assign(std::move(name), std::move(handler));
  }
  [[nodiscard]] const CommandHandler* find(const std::string& name) const {
    const auto found = handlers_.find(name);
    return found == handlers_.end() ? nullptr : &found->second;
  }
  [[nodiscard]] const std::map<std::string, CommandHandler>& all() const { return handlers_; }

 private:
  std::map<std::string, CommandHandler> handlers_;
};

}  // namespace millrace::daemon
