// What the greeting and query-version say of a program's version.
#pragma once

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

namespace millrace::qmp {

// `version`: "MAJOR.MINOR.MICRO". The member "qemu" is what QMP libraries look for.
[[nodiscard]] inline nlohmann::json version_object(const char* version) {
  int major = 0, minor = 0, micro = 0;
  std::sscanf(version, "%d.%d.%d", &major, &minor, &micro);
  const nlohmann::json numbers{{"major", major}, {"minor", minor}, {"micro", micro}};
  return {{"qemu", numbers}, {"package", std::string{"millrace "} + version}};
}

}  // namespace millrace::qmp
