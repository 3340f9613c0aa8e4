#include "vhost/channel.hpp"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <utility>

namespace millrace::vhost {

namespace {

// Room for the credentials that an inherited listening socket may have asked the kernel for.
constexpr std::size_t control_bytes =
    CMSG_SPACE(wire::message_fds_max * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred));

}  // namespace

Channel::Channel(base::EventLoop& loop, base::Fd socket, Owner& owner, unsigned fds_max,
                 std::chrono::milliseconds timeout)
    : loop_{loop},
      socket_{std::move(socket)},
      owner_{owner},
      fds_max_{fds_max},
      timeout_{timeout} {}

base::Result<void> Channel::open() {
  auto watch =
      loop_.watch(socket_.get(), EPOLLIN, [this](std::uint32_t events) { on_events(events); });
  if (!watch) return base::Unexpected{watch.error()};
  watch_ = std::move(watch).value();
  return {};
}

void Channel::pause() {
  paused_ = true;
  update_interest();
}

void Channel::resume() {
  paused_ = false;
  update_interest();
}

void Channel::close() {
  closed_ = true;
  watch_.reset();
  incomplete_.reset();
  unread_.reset();
  message_ = Message{};
  unsent_.clear();
  unsent_fd_.reset();
}

void Channel::hang_up() {
  close();
  socket_.reset();
}

void Channel::fail(const std::string& why) {
  if (closed_) return;
  close();
  owner_.on_closed(why);
}

void Channel::update_interest() {
  if (closed_ || !watch_.active()) return;
  if (!unsent_.empty()) {
    watch_.modify(EPOLLOUT);
  } else {
    watch_.modify(paused_ ? 0u : static_cast<std::uint32_t>(EPOLLIN));
  }
}

void Channel::on_events(std::uint32_t events) {
  if (!unsent_.empty() && !flush()) return;
  for (unsigned count = 0; count < messages_per_visit && !closed_;) {
    if (paused_ || !unsent_.empty()) {
      // Nobody reads now, so the hang-up is seen here or for ever again.
      if ((events & (EPOLLHUP | EPOLLERR)) != 0) fail("");
      return;
    }
    switch (read_some()) {
      case Step::again:
        if (have_ == 0) ++count;
        break;
      case Step::wait:
      case Step::over:
        return;
    }
  }
}

Channel::Step Channel::read_some() {
  constexpr std::size_t header_size = sizeof(wire::Header);
  std::array<std::byte, header_size> raw;
  ssize_t got = 0;
  if (have_ < header_size) {
    std::memcpy(raw.data(), &message_.header, header_size);
    got = receive(raw.data() + have_, header_size - have_);
    std::memcpy(&message_.header, raw.data(), header_size);
  } else {
    const std::size_t at = have_ - header_size;
    got = receive(message_.payload.data() + at, message_.payload.size() - at);
  }
  if (closed_) return Step::over;
  if (got < 0) return Step::wait;
  if (got == 0) {
    fail(have_ == 0 ? "" : "hung up in the middle of a message");
    return Step::over;
  }
  const bool was_header = have_ < header_size;
  have_ += static_cast<std::size_t>(got);
  if (was_header && have_ == header_size) {
    if (const auto ok = owner_.on_header(message_.header); !ok) {
      fail(ok.error().message);
      return Step::over;
    }
    message_.payload.resize(message_.header.size);
  }
  if (have_ >= header_size && have_ == header_size + message_.payload.size()) {
    deliver();
  } else if (!incomplete_.active()) {
    incomplete_ = loop_.after(timeout_, [this] { fail("a message stayed incomplete"); });
  }
  return closed_ ? Step::over : Step::again;
}

void Channel::deliver() {
  incomplete_.reset();
  have_ = 0;
  owner_.on_message(std::exchange(message_, Message{}));
}

ssize_t Channel::receive(std::byte* into, std::size_t size) {
  alignas(struct cmsghdr) std::array<char, control_bytes> control;
  struct iovec part {
    .iov_base = into, .iov_len = size
  };
  ::msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  ssize_t got = 0;
  do {
    got = ::recvmsg(socket_.get(), &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0) {
    const int error = errno;
    if (error == EAGAIN || error == EWOULDBLOCK) return -1;
    fail(error == ECONNRESET ? std::string{}
                             : std::string{"receiving failed: "} + std::strerror(error));
    return -1;
  }
  if (const auto ok = take_fds(header); !ok) fail(ok.error().message);
  return got;
}

base::Result<void> Channel::take_fds(::msghdr& header) {
  for (auto* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
      message_.fds.emplace_back(fd);
    }
  }
  if ((header.msg_flags & MSG_CTRUNC) != 0) {
    return base::fail(
        "descriptors of a message were lost (too many at once, or we are out of them)");
  }
  if (message_.fds.size() > fds_max_) {
    return base::fail("a message came with " + std::to_string(message_.fds.size()) +
                      " descriptors, at most " + std::to_string(fds_max_) + " are allowed");
  }
  return {};
}

void Channel::send(const wire::Header& header, std::span<const std::byte> payload, int fd) {
  if (closed_) return;
  const auto head = bytes_of(header);
  if (unsent_.size() + head.size() + payload.size() > unsent_max ||
      (fd >= 0 && unsent_fd_.valid())) {
    return fail("does not read its replies");
  }
  if (fd >= 0) {
    unsent_fd_ = base::Fd{::fcntl(fd, F_DUPFD_CLOEXEC, 0)};
    if (!unsent_fd_.valid()) return fail("no descriptor left for a reply");
  }
  unsent_.insert(unsent_.end(), head.begin(), head.end());
  unsent_.insert(unsent_.end(), payload.begin(), payload.end());
  if (flush()) update_interest();
}

// False: the channel is over.
bool Channel::flush() {
  alignas(struct cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control;
  while (!unsent_.empty()) {
    struct iovec part {
      .iov_base = unsent_.data(), .iov_len = unsent_.size()
    };
    ::msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    if (unsent_fd_.valid()) {
      control.fill(0);
      header.msg_control = control.data();
      header.msg_controllen = control.size();
      auto* rights = CMSG_FIRSTHDR(&header);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(sizeof(int));
      const int fd = unsent_fd_.get();
      std::memcpy(CMSG_DATA(rights), &fd, sizeof fd);
    }
    const ssize_t sent = ::sendmsg(socket_.get(), &header, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN && errno != EWOULDBLOCK) {
        fail("");
        return false;
      }
      if (!unread_.active()) {
        unread_ = loop_.after(timeout_, [this] { fail("does not read its replies"); });
      }
      update_interest();
      return true;
    }
    unsent_fd_.reset();
    unsent_.erase(unsent_.begin(), unsent_.begin() + sent);
  }
  unread_.reset();
  update_interest();
  return true;
}

}  // namespace millrace::vhost
