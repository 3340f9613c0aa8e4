// The words of `millctl pf ...`: physical functions and their virtual functions; and `lease` and
// `return`, by which a guest that drives a function itself gets and gives back one.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "daemon/ctl/commands.hpp"
#include "daemon/ctl/screen.hpp"

namespace millrace::ctl {

struct PfRequest {
  std::string pci;
  bool given = false;  // pci is
  bool all = false;
  std::vector<std::string> words;  // of a lease
  std::string guest;
};

// Adds the words to `app`. The one that is given calls `choose` with what to do. `request` outlives
// the parsing and the doing.
void add_pf(CLI::App& app, PfRequest& request,
            std::function<void(std::function<int(const Settings&)>)> choose);

// The lines of `millctl pf list`, from the answer to query-pfs.
[[nodiscard]] std::vector<std::string> render_pfs(const nlohmann::json& pfs,
                                                  const ScreenOptions& screen);

}  // namespace millrace::ctl
