// Socket: a test's end of a control socket. It never waits.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/fd.hpp"

namespace millrace::qmp::testing {

class Socket {
 public:
  explicit Socket(const std::string& path)
      : fd_{::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)} {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    connected_ =
        ::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }
  [[nodiscard]] bool connected() const { return connected_; }
  // False: the peer is gone, or its buffer is full.
  bool send(std::string_view text) {
    return ::send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT) ==
           static_cast<ssize_t>(text.size());
  }
  // With a descriptor.
  bool send(std::string text, int fd) {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof fd)> control{};
    iovec part{text.data(), text.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    auto* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
    return ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT) ==
           static_cast<ssize_t>(text.size());
  }
  // Reads what there is; true when the peer hung up.
  bool drain() {
    char bytes[65536];
    ssize_t got = 0;
    while ((got = ::recv(fd_.get(), bytes, sizeof bytes, MSG_DONTWAIT)) > 0) {
      input_.append(bytes, static_cast<std::size_t>(got));
    }
    return got == 0 || (errno != EAGAIN && errno != EINTR);
  }
  nlohmann::json take_message() {
    const auto end = input_.find('\n');
    if (end == std::string::npos) return nullptr;
    auto message = nlohmann::json::parse(input_.substr(0, end), nullptr, false);
    input_.erase(0, end + 1);
    return message;
  }
  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  base::Fd fd_;
  bool connected_ = false;
  std::string input_;
};

}  // namespace millrace::qmp::testing
