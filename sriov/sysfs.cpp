#include "sriov/sysfs.hpp"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <system_error>

namespace millrace::sriov {

namespace fs = std::filesystem;

Sysfs::Sysfs(std::string root) : root_{std::move(root)} {
  if (root_.empty() || root_.back() != '/') root_ += '/';
}

std::string Sysfs::path(std::string_view relative) const {
  return root_ + std::string{relative};
}

std::string Sysfs::folder(const PciAddress& address) const {
  return path("sys/bus/pci/devices/") + format(address) + "/";
}

std::optional<std::string> Sysfs::text(const std::string& path) const {
  std::ifstream file{path};
  std::string line;
  if (!file.is_open() || (!std::getline(file, line) && file.bad())) return std::nullopt;
  return line;
}

std::optional<std::int64_t> Sysfs::number(const std::string& path) const {
  const auto line = text(path);
  if (!line) return std::nullopt;
  std::string_view digits{*line};
  int base = 10;
  if (digits.starts_with("0x")) {
    digits.remove_prefix(2);
    base = 16;
  }
  std::int64_t value = 0;
  const char* const end = digits.data() + digits.size();
  const auto [at, error] = std::from_chars(digits.data(), end, value, base);
  if (error != std::errc{} || at != end) return std::nullopt;
  return value;
}

std::string Sysfs::link(const std::string& path) const {
  std::error_code error;
  const auto target = fs::read_symlink(path, error);
  return error ? std::string{} : target.string();
}

std::string Sysfs::link_name(const std::string& path) const {
  return fs::path{link(path)}.filename().string();
}

std::vector<std::string> Sysfs::names(const std::string& folder) const {
  std::vector<std::string> out;
  std::error_code error;
  fs::directory_iterator at{folder, error};
  // increment(error), not the loop's own: a process may end while its folder is read
  for (; !error && at != fs::directory_iterator{}; at.increment(error)) {
    out.push_back(at->path().filename().string());
  }
  std::ranges::sort(out);
  return out;
}

}  // namespace millrace::sriov
