#include "vhost/listener.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <utility>

namespace millrace::vhost {

namespace {

constexpr int backlog = 16;  // front-ends that wait for the one before them
constexpr char descriptor_prefix[] = "fd:";

base::Result<struct sockaddr_un> address_of(const std::string& path) {
  struct sockaddr_un address {};
  if (path.empty()) return base::fail("a socket path is empty");
  if (path.size() >= sizeof address.sun_path) {
    return base::fail("socket path " + path + " is longer than " +
                      std::to_string(sizeof address.sun_path - 1) + " bytes");
  }
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

base::Result<base::Fd> make_socket() {
  base::Fd fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
  if (!fd.valid()) return base::fail(std::string{"cannot make a socket: "} + std::strerror(errno));
  return fd;
}

int connect_socket(const base::Fd& fd, const struct sockaddr_un& address) {
  const auto* generic = reinterpret_cast<const struct sockaddr*>(&address);
  return ::connect(fd.get(), generic, sizeof address) == 0 ? 0 : errno;
}

std::string directory_of(const std::string& path) {
  const auto slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// Takes a dead server's socket file away. Anything else in its place is an error.
base::Result<void> remove_stale(const std::string& path, const struct sockaddr_un& address) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) return {};
    return base::fail("cannot examine " + path + ": " + std::strerror(errno));
  }
  if (!S_ISSOCK(status.st_mode)) {
    return base::fail(path + " exists and is not a socket; remove it or choose another path");
  }
  auto probe = make_socket();
  if (!probe) return base::Unexpected{probe.error()};
  const int error = connect_socket(*probe, address);
  if (error == ENOENT) return {};
  if (error != ECONNREFUSED) return base::fail("socket " + path + " is in use by another process");
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
    return base::fail("cannot replace the stale socket " + path + ": " + std::strerror(errno));
  }
  return {};
}

}  // namespace

base::Result<base::Fd> listen_on(const std::string& path, unsigned permissions) {
  const auto address = address_of(path);
  if (!address) return base::Unexpected{address.error()};
  const auto directory = directory_of(path);
  struct stat status {};
  if (::stat(directory.c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) {
    return base::fail("directory " + directory + " of socket " + path + " does not exist");
  }
  if (const auto ok = remove_stale(path, *address); !ok) return base::Unexpected{ok.error()};
  auto fd = make_socket();
  if (!fd) return fd;
  // bind(2) gives the file the socket's mode less the umask: it is never wider than asked for.
  ::fchmod(fd->get(), permissions);
  const auto* generic = reinterpret_cast<const struct sockaddr*>(&*address);
  if (::bind(fd->get(), generic, sizeof *address) != 0) {
    return base::fail("cannot bind socket " + path + ": " + std::strerror(errno));
  }
  if (::chmod(path.c_str(), permissions) != 0 || ::listen(fd->get(), backlog) != 0) {
    const int error = errno;
    ::unlink(path.c_str());
    return base::fail("cannot listen on socket " + path + ": " + std::strerror(error));
  }
  return fd;
}

bool names_descriptor(const std::string& socket) {
  return socket.starts_with(descriptor_prefix);
}

base::Result<base::Fd> adopt_listener(const std::string& name) {
  int number = -1;
  const char* first = name.data() + sizeof descriptor_prefix - 1;
  const char* last = name.data() + name.size();
  const auto parsed = std::from_chars(first, last, number);
  if (parsed.ec != std::errc{} || parsed.ptr != last || number < 0) {
    return base::fail("socket " + name + " is not fd: and a number");
  }
  int listening = 0, domain = 0, type = 0;
  socklen_t size = sizeof listening;
  const bool is_listener =
      ::getsockopt(number, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) == 0 && listening == 1 &&
      ::getsockopt(number, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_UNIX &&
      ::getsockopt(number, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_STREAM;
  if (!is_listener) {
    return base::fail("socket " + name + " is not a listening Unix stream socket");
  }
  base::Fd fd{number};
  const int flags = ::fcntl(number, F_GETFL);
  if (flags < 0 || ::fcntl(number, F_SETFL, flags | O_NONBLOCK) != 0 ||
      ::fcntl(number, F_SETFD, FD_CLOEXEC) != 0) {
    return base::fail("socket " + name + ": " + std::strerror(errno));
  }
  return fd;
}

base::Result<base::Fd> connect_to(const std::string& path) {
  const auto address = address_of(path);
  if (!address) return base::Unexpected{address.error()};
  auto fd = make_socket();
  if (!fd) return base::Fd{};
  if (connect_socket(*fd, *address) != 0) return base::Fd{};
  return fd;
}

std::string peer_of(const base::Fd& socket) {
  struct ucred credentials {};
  socklen_t size = sizeof credentials;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0)
    return "unknown";
  std::string text = "pid " + std::to_string(credentials.pid);
  const std::string path = "/proc/" + std::to_string(credentials.pid) + "/comm";
  const base::Fd comm{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  std::array<char, 32> name{};
  const auto got = comm.valid() ? ::read(comm.get(), name.data(), name.size()) : -1;
  if (got <= 1) return text;
  text += " (";
  // The peer chose its name, and this goes to logs and terminals.
  for (const char c : std::string_view{name.data(), static_cast<std::size_t>(got)}) {
    if (c == '\n') break;
    text += c >= ' ' && c <= '~' ? c : '?';
  }
  return text + ")";
}

}  // namespace millrace::vhost
