// Sockets of a vhost-user server, made, adopted and connected without blocking. Thread: control.
#pragma once

#include <string>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace millrace::vhost {

// Binds and listens. A socket file that nobody listens on is replaced; nothing else is.
base::Result<base::Fd> listen_on(const std::string& path, unsigned permissions);
// "fd:N": takes over descriptor N, which must be a listening Unix stream socket.
base::Result<base::Fd> adopt_listener(const std::string& name);
[[nodiscard]] bool names_descriptor(const std::string& socket);
// An empty descriptor: nobody is there now, try again. An error: the path cannot be one.
base::Result<base::Fd> connect_to(const std::string& path);
// "pid 1234 (qemu-system-x86)", from SO_PEERCRED.
[[nodiscard]] std::string peer_of(const base::Fd& socket);

}  // namespace millrace::vhost
