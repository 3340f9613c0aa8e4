// The words of `millctl vm SOCKET ...`.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "daemon/ctl/commands.hpp"

namespace millrace::ctl {

struct VmRequest {
  std::string socket, kind, id, path;
  std::vector<std::string> words;
  bool wait = false;
  unsigned timeout_s = 60, count = 0;
};

// Adds the words to `app`. The one that is given calls `choose` with what to do. `request` outlives
// the parsing and the doing.
void add_vm(CLI::App& app, VmRequest& request,
            std::function<void(std::function<int(const Settings&)>)> choose);

}  // namespace millrace::ctl
