// What a host has and lacks for NICs and other PCI functions in user space: millctl check-host.
// It asks the kernel's own files, and no daemon.
#pragma once

#include <string>
#include <vector>

namespace millrace::ctl {

struct Finding {
  enum class Level {
    ok,
    note,     // worth knowing; nothing has to be done
    problem,  // something will be refused until it is done
  };
  Level level = Level::ok;
  std::string what;  // "IOMMU", "0000:01:10.0"...
  std::string text;  // one line, with what to do
};

// `root`: in place of "/", for tests. In the order in which they are best worked off; network
// functions last, by address.
[[nodiscard]] std::vector<Finding> check_host(const std::string& root = "/");

// Prints them. Answers the exit status: whether there was no problem.
int show_host(bool json, const std::string& root);

}  // namespace millrace::ctl
