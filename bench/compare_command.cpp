// millrace-bench compare and report: the table is made by a program in Python that starts the
// peers, and this program again for each figure.
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "bench/commands.hpp"

namespace millrace::bench {

namespace {

namespace fs = std::filesystem;

// The folder with the program: of the sources that this was built from, beside the build folder or
// where it was when that was made.
fs::path program_folder(const fs::path& self) {
  for (const fs::path& root : {self.parent_path().parent_path(), fs::path{MILLRACE_SOURCE}}) {
    if (fs::exists(root / "bench" / "table" / "__main__.py")) return root;
  }
  return {};
}

struct Passed {
  std::string word;
  CLI::App* app = nullptr;

  base::Result<void> run() const {
    std::error_code gone;
    const auto self = fs::read_symlink("/proc/self/exe", gone);
    const auto root = program_folder(self);
    if (root.empty()) {
      return base::fail(word + ": bench/table is neither beside " + self.parent_path().string() +
                        " nor in " MILLRACE_SOURCE "; run it from a tree of the sources");
    }
    ::setenv("PYTHONPATH", root.c_str(), 1);
    ::setenv("PYTHONDONTWRITEBYTECODE", "1", 0);
    if (::getenv("MILLRACE_BUILD") == nullptr) {
      ::setenv("MILLRACE_BUILD", self.parent_path().c_str(), 1);
    }
    std::vector<std::string> words{"python3", "-m", "bench.table", word};
    const auto rest = app->remaining();
    words.insert(words.end(), rest.begin(), rest.end());
    std::vector<char*> pointers;
    for (auto& each : words) pointers.push_back(each.data());
    pointers.push_back(nullptr);
    ::execvp(pointers.front(), pointers.data());
    return base::fail(word + ": cannot run python3: " + std::strerror(errno));
  }
};

Command add_passed(CLI::App& app, const char* word, const char* help) {
  auto* const command = app.add_subcommand(word, help);
  command->prefix_command();
  command->set_help_flag();  // --help is the program's, too
  auto passed = std::make_shared<Passed>(Passed{word, command});
  return [passed] { return passed->run(); };
}

}  // namespace

Command add_compare(CLI::App& app) {
  return add_passed(app, "compare", "millraced beside its peers and limits: the whole table");
}

Command add_report(CLI::App& app) {
  return add_passed(app, "report", "a page and a table of what compare has written");
}

}  // namespace millrace::bench
