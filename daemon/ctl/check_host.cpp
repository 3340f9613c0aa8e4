#include "daemon/ctl/check_host.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "base/units.hpp"
#include "daemon/ctl/commands.hpp"
#include "sriov/functions.hpp"
#include "vfio/host_function.hpp"

namespace millrace::ctl {

namespace {

namespace fs = std::filesystem;
using Level = Finding::Level;

constexpr auto iommu_on =
    "turn it on in the firmware (VT-d, AMD-Vi), and put intel_iommu=on or amd_iommu=on on the "
    "kernel's command line";

class HostCheck {
 public:
  explicit HostCheck(const std::string& root) : root_{root} {}

  std::vector<Finding> run() {
    check_iommu();
    check_remapping();
    check_modules();
    check_locked_memory();
    check_huge_pages();
    check_functions();
    return std::move(found_);
  }

 private:
  void say(Level level, const std::string& what, const std::string& text) {
    found_.push_back({level, what, text});
  }

  [[nodiscard]] fs::path at(const char* path) const { return fs::path{root_} / path; }
  [[nodiscard]] bool is_there(const char* path) const {
    std::error_code error;
    return fs::exists(at(path), error);
  }
  // To read and write, as whoever runs us. Opens nothing: that would keep a group from others.
  [[nodiscard]] bool may_open(const std::string& path) const {
    return ::faccessat(AT_FDCWD, at(path.c_str() + 1).c_str(), R_OK | W_OK, AT_EACCESS) == 0;
  }
  // Empty where it cannot be read.
  [[nodiscard]] static std::string text_of(const fs::path& path) {
    std::ifstream file{path};
    std::ostringstream text;
    text << file.rdbuf();
    auto all = text.str();
    while (!all.empty() && all.back() == '\n') all.pop_back();
    return all;
  }
  [[nodiscard]] std::vector<fs::path> entries_of(const fs::path& folder) const {
    std::vector<fs::path> entries;
    std::error_code error;
    for (const auto& entry : fs::directory_iterator{folder, error}) entries.push_back(entry.path());
    std::ranges::sort(entries);
    return entries;
  }
  // The line of a file that begins with `name`, from there on; none: there is no such line.
  [[nodiscard]] std::optional<std::string> line_of(const char* path, const char* name) const {
    std::istringstream lines{text_of(at(path))};
    const std::string wanted{name};
    for (std::string line; std::getline(lines, line);) {
      if (line.starts_with(wanted)) return line.substr(wanted.size());
    }
    return std::nullopt;
  }

  void check_iommu() {
    groups_ = entries_of(at("sys/kernel/iommu_groups")).size();
    if (groups_ != 0) return say(Level::ok, "IOMMU", std::to_string(groups_) + " groups");
    say(Level::problem, "IOMMU", std::string{"there is none in use: "} + iommu_on);
  }

  // The kernel names an interrupt's controller "IR-..." where a remapping unit is in front of it.
  void check_remapping() {
    if (groups_ == 0) return;
    if (text_of(at("proc/interrupts")).find(" IR-") != std::string::npos) {
      return say(Level::ok, "interrupts", "are remapped");
    }
    const auto unsafe =
        text_of(at("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"));
    if (unsafe == "Y") {
      return say(Level::note, "interrupts",
                 "are not remapped, and vfio_iommu_type1 is told not to mind "
                 "(allow_unsafe_interrupts): a guest with a function can send the host any "
                 "interrupt");
    }
    say(Level::problem, "interrupts",
        "are not remapped, and VFIO refuses functions then: turn interrupt remapping on in the "
        "firmware, and leave intremap=off away");
  }

  void check_modules() {
    for (const auto* const name : {"vfio_pci", "vfio_iommu_type1"}) {
      const auto path = std::string{"sys/module/"} + name;
      if (!is_there(path.c_str())) {
        say(Level::problem, "VFIO",
            std::string{"the module "} + name + " is not loaded: modprobe vfio-pci");
        return;
      }
    }
    if (!is_there("dev/vfio/vfio")) {
      return say(Level::problem, "VFIO", "/dev/vfio/vfio is not there: modprobe vfio-pci");
    }
    if (!may_open("/dev/vfio/vfio")) {
      return say(Level::problem, "VFIO",
                 "is loaded; /dev/vfio/vfio may not be opened by this user: chmod 666 "
                 "/dev/vfio/vfio");
    }
    say(Level::ok, "VFIO", "is loaded");
  }

  // The limit does not hold for who has CAP_IPC_LOCK.
  [[nodiscard]] bool may_lock_anything() const {
    constexpr unsigned lock = 14;
    const auto line = line_of("proc/self/status", "CapEff:");
    std::uint64_t capabilities = 0;
    if (line) std::istringstream{*line} >> std::hex >> capabilities;
    return (capabilities >> lock & 1) != 0;
  }

  // A guest's memory is locked, all of it, while it has a function.
  void check_locked_memory() {
    const auto line = line_of("proc/self/limits", "Max locked memory");
    if (!line) return;
    std::istringstream words{*line};
    std::string soft;
    words >> soft;
    if (soft == "unlimited" || may_lock_anything()) {
      return say(Level::ok, "locked memory", "is not limited for this user");
    }
    std::uint64_t bytes = 0;
    std::from_chars(soft.data(), soft.data() + soft.size(), bytes);
    constexpr std::uint64_t small = 64ull << 20;  // the least memory of a guest
    say(bytes < small ? Level::problem : Level::note, "locked memory",
        "this user may lock " + base::format_bytes(bytes) +
            ", and what functions reach is locked: raise it to the guests' memory (ulimit -l, "
            "LimitMEMLOCK= of a systemd unit, memlock in /etc/security/limits.conf)");
  }

  void check_huge_pages() {
    const auto number = [this](const char* name) {
      const auto line = line_of("proc/meminfo", name);
      std::uint64_t value = 0;
      if (line) std::istringstream{*line} >> value;
      return value;
    };
    const auto total = number("HugePages_Total:"), free = number("HugePages_Free:");
    const auto size = base::format_bytes(number("Hugepagesize:") << 10);
    if (total == 0) {
      return say(Level::note, "huge pages",
                 "none are set aside; with them memory is locked faster and the IOMMU has less to "
                 "look up: sysctl vm.nr_hugepages=N");
    }
    say(free == 0 ? Level::note : Level::ok, "huge pages",
        std::to_string(free) + " of " + std::to_string(total) + " of " + size + " are free");
  }

  void check_functions() {
    constexpr std::string_view network{"0x02"};
    std::size_t seen = 0;
    holders_ = sriov::vfio_holders(sriov::Sysfs{root_});
    for (const auto& path : entries_of(at("sys/bus/pci/devices"))) {
      if (!text_of(path / "class").starts_with(network)) continue;
      ++seen;
      const auto function = vfio::find_function(path.filename(), root_);
      if (function) check_function(*function, path);
    }
    if (seen == 0) say(Level::note, "functions", "this host has no PCI network function");
  }

  void check_function(const vfio::HostFunction& function, const fs::path& path) {
    const auto& name = function.address;
    if (!function.group) {
      return say(Level::problem, name, std::string{"has no IOMMU group: "} + iommu_on);
    }
    const auto group = "IOMMU group " + std::to_string(*function.group);
    if (function.group_members.size() > 1) {
      std::string others;
      for (const auto& member : function.group_members) {
        if (member != name) others += (others.empty() ? "" : ", ") + member;
      }
      say(Level::problem, name,
          "shares " + group + " with " + others +
              ": they can only be given away together; a slot behind a port with ACS, or ACS "
              "turned on in the firmware, separates them");
    }
    if (function.driver == "vfio-pci") return check_access(function, group);
    const auto functions = text_of(path / "sriov_totalvfs");
    if (!functions.empty() && functions != "0") {
      return say(Level::ok, name,
                 group + ", driver " + (function.driver.empty() ? "none" : function.driver) + ", " +
                     functions + " virtual functions at most, " + text_of(path / "sriov_numvfs") +
                     " made");
    }
    const auto why = vfio::check_ready(function);
    say(Level::note, name, group + "; " + why.error().message.substr(name.size() + 1));
  }

  void check_access(const vfio::HostFunction& function, const std::string& group) {
    const auto path = "/dev/vfio/" + std::to_string(*function.group);
    if (!is_there(path.c_str() + 1)) {
      return say(Level::problem, function.address,
                 group + ", vfio-pci; " + path + " is not there: is /dev mounted?");
    }
    if (const auto held = holders_.find(*function.group); held != holders_.end()) {
      return say(Level::ok, function.address,
                 group + ", vfio-pci: in use by " + sriov::format(held->second));
    }
    if (!may_open(path)) {
      return say(Level::note, function.address,
                 group + ", vfio-pci; " + path + " may not be opened by this user: chown " +
                     std::to_string(::geteuid()) + " " + path);
    }
    say(Level::ok, function.address, group + ", vfio-pci: ready to be given away");
  }

  const std::string root_;
  std::size_t groups_ = 0;
  sriov::Holders holders_;
  std::vector<Finding> found_;
};

const char* name_of(Level level) {
  switch (level) {
    case Level::ok:
      return "ok";
    case Level::note:
      return "note";
    case Level::problem:
      return "problem";
  }
  return "";
}

}  // namespace

std::vector<Finding> check_host(const std::string& root) {
  return HostCheck{root}.run();
}

int show_host(bool json, const std::string& root) {
  const auto findings = check_host(root);
  auto list = nlohmann::json::array();
  for (const auto& [level, what, text] : findings) {
    if (json) {
      list.push_back({{"level", name_of(level)}, {"what", what}, {"text", text}});
    } else {
      std::printf("%-8s %s: %s\n", name_of(level), what.c_str(), text.c_str());
    }
  }
  if (json) std::printf("%s\n", list.dump(2).c_str());
  const auto is_problem = [](const Finding& each) { return each.level == Level::problem; };
  return std::ranges::any_of(findings, is_problem) ? exit_refused : exit_ok;
}

}  // namespace millrace::ctl
