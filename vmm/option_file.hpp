// A guest's options in a TOML file, as words of the command line.
//
// Keys are the long options without their dashes. An option that may be given several times takes
// tables, whose keys and values are what stands on the command line as KEY=VALUE,KEY=VALUE:
// [[net]], [[disk]]. So a file can say whatever a command line can, and it is checked in the same
// place. Thread: one.
#pragma once

#include <string>
#include <vector>

#include "base/result.hpp"

namespace CLI {
class App;
}

namespace millrace::vmm {

class OptionFile {
 public:
  // For the options that `app` declares, but for those that the command line `given` has and that
  // can be there once. Fails with one line where the file cannot be read or is no TOML.
  static base::Result<OptionFile> read(const std::string& path, const CLI::App& app,
                                       const std::vector<std::string>& given);

  // "--memory=1G" and so on, in the order of the file.
  [[nodiscard]] std::vector<std::string> words() const;
  // What cannot be used, a line each: "FILE:LINE:COLUMN: what is wrong; what to do".
  [[nodiscard]] const std::vector<std::string>& problems() const { return problems_; }
  // "FILE:LINE:COLUMN: " of the option that an error of the command line's reader names, where it
  // came from this file; else nothing.
  [[nodiscard]] std::string place_in(const std::string& error) const;

 private:
  friend class OptionReader;
  struct Word {
    std::string option, value, place;
    unsigned line;
  };
  std::vector<Word> words_;
  std::vector<std::string> problems_;
};

}  // namespace millrace::vmm
