#include "daemon/system_check.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>

namespace millrace::daemon {

namespace {

std::string parent_of(const std::string& path) {
  return std::filesystem::path{path}.parent_path().string();
}

bool is_directory(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

bool listens(int fd) {
  int on = 0;
  socklen_t size = sizeof on;
  return ::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &on, &size) == 0 && on != 0;
}

// Why a socket cannot be made at `socket`; empty: it can.
std::string socket_problem(const vhost::ServerConfig& server) {
  if (server.socket.starts_with("fd:")) {
    const int fd = std::atoi(server.socket.c_str() + 3);
    if (listens(fd)) return {};
    return "descriptor " + std::to_string(fd) + " is no listening socket; pass one, or give a path";
  }
  const auto directory = parent_of(server.socket);
  if (!is_directory(directory) && !is_directory(parent_of(directory))) {
    return "the directory " + directory + " of socket is missing, and so is its parent; make it";
  }
  struct stat status {};
  if (server.mode == vhost::SocketMode::listen && ::lstat(server.socket.c_str(), &status) == 0 &&
      !S_ISSOCK(status.st_mode)) {
    return "socket " + server.socket + " exists and is no socket; remove it, or give another path";
  }
  return {};
}

// Why `path` cannot be a disk; empty: it can.
std::string image_problem(const GuestDisk& disk) {
  const auto& path = disk.device.path;
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) {
    const int error = errno;
    if (error == ENOENT) return "path " + path + " is missing; make it (truncate -s 10G FILE)";
    return "path " + path + ": " + std::strerror(error);
  }
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
    return "path " + path + " is neither a file nor a block device; give one of the two";
  }
  const int mode = disk.device.readonly ? R_OK : R_OK | W_OK;
  if (::faccessat(AT_FDCWD, path.c_str(), mode, AT_EACCESS) != 0) {
    return "path " + path + " may not be " + (disk.device.readonly ? "read" : "written") + " (" +
           std::strerror(errno) + "); change its owner or mode";
  }
  if (S_ISREG(status.st_mode) && (status.st_size == 0 || status.st_size % 512 != 0)) {
    return "path " + path + " has " + std::to_string(status.st_size) +
           " bytes; give an image of whole 512 byte sectors, at least one";
  }
  return {};
}

// One image behind two disks, one of them writable.
void check_shared_images(const Config& config, Problems& problems) {
  std::map<std::pair<dev_t, ino_t>, const GuestDisk*> seen;
  for (const auto& disk : config.disks) {
    struct stat status {};
    if (disk.device.backend != blk::BackendKind::file ||
        ::stat(disk.device.path.c_str(), &status) != 0) {
      continue;
    }
    const auto [first, fresh] = seen.try_emplace({status.st_dev, status.st_ino}, &disk);
    if (fresh || (disk.device.readonly && first->second->device.readonly)) continue;
    problems.add(disk.path_at, "[[disk]] " + disk.device.name + ": path " + disk.device.path +
                                   " is already used by [[disk]] " + first->second->device.name +
                                   "; give another image, or readonly = true to both");
  }
}

void check_cores(const Config& config, const std::vector<int>& usable, Problems& problems) {
  for (const auto core : config.cores) {
    if (std::binary_search(usable.begin(), usable.end(), static_cast<int>(core))) continue;
    std::string list;
    for (const auto each : usable) list += (list.empty() ? "" : ", ") + std::to_string(each);
    problems.add(config.cores_at, "[reactors]: core " + std::to_string(core) +
                                      " cannot be used by this process; give some of " + list);
  }
}

void check_reactors(const std::vector<unsigned>& reactors, std::size_t there,
                    const std::string& title, Position at, Problems& problems) {
  for (const auto each : reactors) {
    if (each < there) continue;
    problems.add(at, title + ": reactor " + std::to_string(each) + " is not there; give 0 to " +
                         std::to_string(there - 1) + ", or more cores to [reactors]");
  }
}

}  // namespace

std::vector<unsigned> choose_cores(const std::vector<int>& usable) {
  const std::size_t spare = usable.size() > 1 ? usable.size() - 1 : 1;
  const auto count = static_cast<std::ptrdiff_t>(std::min<std::size_t>(spare, 2));
  std::vector<unsigned> chosen;
  for (auto core = usable.end() - count; core != usable.end(); ++core) {
    chosen.push_back(static_cast<unsigned>(*core));
  }
  return chosen;
}

void check_system(const GuestPort& port, const std::string& title, Problems& problems) {
  if (const auto line = socket_problem(port.server); !line.empty()) {
    problems.add(port.socket_at, title + ": " + line);
  }
}

void check_system(const GuestDisk& disk, const std::string& title, Problems& problems) {
  if (const auto line = socket_problem(disk.server); !line.empty()) {
    problems.add(disk.socket_at, title + ": " + line);
  }
  if (disk.device.backend != blk::BackendKind::file) return;
  if (const auto line = image_problem(disk); !line.empty()) {
    problems.add(disk.path_at, title + ": " + line);
  }
}

void check_system(const GuestCompanion& companion, const std::string& title, Problems& problems) {
  if (const auto line = socket_problem(companion.server); !line.empty()) {
    problems.add(companion.socket_at, title + ": " + line);
  }
  for (const auto& socket : port_sockets(companion)) {
    vhost::ServerConfig port;
    port.socket = socket;
    const auto line = socket_problem(port);
    if (!line.empty()) problems.add(companion.at, title + ": " + line);
  }
}

void check_system(const Config& config, const std::vector<int>& usable, Problems& problems) {
  check_cores(config, usable, problems);
  const auto reactors = std::max<std::size_t>(config.cores.size(), 1);
  vhost::ServerConfig control;
  control.socket = config.control_socket;
  if (const auto line = socket_problem(control); !line.empty()) {
    problems.add(config.control_at, "[control]: " + line);
  }
  for (const auto& port : config.ports) {
    const auto title = "[[port]] " + port.device.name;
    check_reactors(port.reactors, reactors, title, port.reactors_at, problems);
    check_system(port, title, problems);
  }
  for (const auto& disk : config.disks) {
    const auto title = "[[disk]] " + disk.device.name;
    check_reactors(disk.reactors, reactors, title, disk.reactors_at, problems);
    check_system(disk, title, problems);
  }
  for (const auto& companion : config.companions) {
    check_system(companion, title_of(companion), problems);
  }
  check_shared_images(config, problems);
}

base::Result<void> make_socket_directory(const std::string& socket) {
  if (socket.starts_with("fd:")) return {};
  const auto directory = parent_of(socket);
  if (::mkdir(directory.c_str(), 0750) == 0 || errno == EEXIST) return {};
  return base::fail("cannot make the directory " + directory + ": " + std::strerror(errno));
}

}  // namespace millrace::daemon
