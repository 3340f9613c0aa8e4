#include "guest/port_listener.hpp"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.hpp"

namespace millrace::guest {

namespace {

base::Fd unix_socket() {
  return base::Fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
}

// A file that is a socket on which nobody listens: of a process that was killed.
bool is_stale(const std::string& path, const sockaddr_un& address) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0 || !S_ISSOCK(status.st_mode)) return false;
  const auto probe = unix_socket();
  const auto* const at = reinterpret_cast<const sockaddr*>(&address);
  return probe.valid() && ::connect(probe.get(), at, sizeof address) != 0 && errno == ECONNREFUSED;
}

}  // namespace

base::Result<PortListener> PortListener::open(const std::string& path, unsigned permissions) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return base::fail("socket " + path + " is no path of 1 to 107 bytes");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  const auto* const at = reinterpret_cast<const sockaddr*>(&address);
  auto socket = unix_socket();
  if (!socket) return base::fail_errno("cannot make a socket");
  int bound = ::bind(socket.get(), at, sizeof address);
  if (bound != 0 && errno == EADDRINUSE && is_stale(path, address)) {
    ::unlink(path.c_str());
    bound = ::bind(socket.get(), at, sizeof address);
  }
  if (bound != 0) return base::fail_errno("cannot listen on " + path);
  PortListener listener{std::move(socket), path};
  if (::chmod(path.c_str(), permissions) != 0) {
    return base::fail_errno("cannot set the permissions of " + path);
  }
  if (::listen(listener.fd(), 8) != 0) return base::fail_errno("cannot listen on " + path);
  return listener;
}

PortListener::PortListener(base::Fd socket, std::string path)
    : socket_{std::move(socket)}, path_{std::move(path)} {}

PortListener::PortListener(PortListener&& other) noexcept
    : socket_{std::move(other.socket_)}, path_{std::exchange(other.path_, {})} {}

PortListener::~PortListener() {
  if (!path_.empty()) ::unlink(path_.c_str());
}

base::Fd PortListener::accept() const {
  return base::Fd{::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
}

}  // namespace millrace::guest
