// The program's version, for people and for clients of the control socket.
#pragma once

#include <nlohmann/json.hpp>

#ifndef MILLRACE_VERSION
#define MILLRACE_VERSION "0.1.0"
#endif

namespace millrace::daemon {

inline constexpr const char* version = MILLRACE_VERSION;

// What the greeting and query-version say; the member "qemu" is what QMP libraries look for.
[[nodiscard]] inline nlohmann::json version_object() {
  int major = 0, minor = 0, micro = 0;
  std::sscanf(version, "%d.%d.%d", &major, &minor, &micro);
  const nlohmann::json numbers{{"major", major}, {"minor", minor}, {"micro", micro}};
  return {{"qemu", numbers}, {"package", std::string{"millrace "} + version}};
}

}  // namespace millrace::daemon
