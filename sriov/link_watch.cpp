#include "sriov/link_watch.hpp"

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>

#include "base/error.hpp"

namespace millrace::sriov {

base::Result<std::unique_ptr<LinkWatch>> LinkWatch::make(base::EventLoop& loop,
                                                         std::chrono::milliseconds calm,
                                                         std::function<void()> changed) {
  base::Fd socket{::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE)};
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_groups = RTMGRP_LINK;
  if (!socket ||
      ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return base::fail_errno("cannot watch the network interfaces (netlink)");
  }
  std::unique_ptr<LinkWatch> self{new LinkWatch{loop, std::move(socket), calm, std::move(changed)}};
  auto watch =
      loop.watch(self->socket_.get(), EPOLLIN, [raw = self.get()](std::uint32_t) { raw->drain(); });
  if (!watch) return base::Unexpected{watch.error()};
  self->watch_ = *std::move(watch);
  return self;
}

LinkWatch::LinkWatch(base::EventLoop& loop, base::Fd socket, std::chrono::milliseconds calm,
                     std::function<void()> changed)
    : loop_{loop}, socket_{std::move(socket)}, calm_{calm}, changed_{std::move(changed)} {}

void LinkWatch::drain() {
  // Bounded: what is left makes the socket readable again at once.
  constexpr unsigned messages_max = 64;
  std::array<std::byte, 64> beginning{};  // nothing in a message is of use; its end is cut off
  for (unsigned count = 0; count < messages_max; ++count) {
    const auto got = ::recv(socket_.get(), beginning.data(), beginning.size(), 0);
    if (got < 0 && errno != ENOBUFS) break;
  }
  if (!timer_.active()) timer_ = loop_.after(calm_, [this] { changed_(); });
}

}  // namespace millrace::sriov
