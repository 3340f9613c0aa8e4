// The program's version, for people and for clients of the control socket.
#pragma once

#include "qmp/version.hpp"

#ifndef MILLRACE_VERSION
#define MILLRACE_VERSION "0.1.0"
#endif

namespace millrace::daemon {

inline constexpr const char* version = MILLRACE_VERSION;

[[nodiscard]] inline nlohmann::json version_object() {
  return qmp::version_object(version);
}

}  // namespace millrace::daemon
