// Sysfs: reads /sys and /proc, of this machine or of a copy of the parts that matter (tests).
// Thread: control (file access; none of these files blocks).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"
#include "sriov/pci_address.hpp"

namespace millrace::sriov {

class Sysfs {
 public:
  // `root` is put before every path: "/" or a folder that holds sys/ and proc/.
  explicit Sysfs(std::string root = "/");

  // The folder of a function: "/sys/bus/pci/devices/0000:01:00.0/", below the root.
  [[nodiscard]] std::string folder(const PciAddress& address) const;
  // Any other path, below the root: "sys/bus/pci/drivers_probe".
  [[nodiscard]] std::string path(std::string_view relative) const;

  // Paths below are complete, as folder() and path() make them.
  // The file's first line without its end; nullopt: it cannot be read.
  [[nodiscard]] std::optional<std::string> text(const std::string& path) const;
  // A decimal or 0x-hexadecimal number; nullopt: cannot be read, or is none.
  [[nodiscard]] std::optional<std::int64_t> number(const std::string& path) const;
  // The last part of what a symbolic link points to; empty: it is none.
  [[nodiscard]] std::string link_name(const std::string& path) const;
  // What a symbolic link points to, as it is; empty: it is none, or may not be read.
  [[nodiscard]] std::string link(const std::string& path) const;
  // The names in a folder, sorted; none where it cannot be read.
  [[nodiscard]] std::vector<std::string> names(const std::string& folder) const;

 private:
  std::string root_;  // ends with a slash
};

}  // namespace millrace::sriov
