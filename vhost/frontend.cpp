#include "vhost/frontend.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <thread>
#include <utility>

#include "base/error.hpp"
#include "vhost/listener.hpp"

namespace millrace::vhost {

namespace {

using Clock = std::chrono::steady_clock;
using wire::Request;

// No answer of a back-end, and no request of its own, has more than one.
constexpr std::size_t answer_fds_max = 8;

void adopt_fds(::msghdr& header, std::vector<base::Fd>& fds) {
  for (auto* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
      fds.emplace_back(fd);
    }
  }
}

wire::MemoryRegion wire_of(const Frontend::Region& region) {
  return {.guest_address = region.guest_address,
          .size = region.size,
          .user_address = region.user_address,
          .file_offset = region.file_offset};
}

}  // namespace

base::Result<std::unique_ptr<Frontend>> Frontend::connect(const std::string& path,
                                                          std::chrono::milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  while (true) {
    auto socket = connect_to(path);
    if (!socket) return base::Unexpected{socket.error()};
    if (socket->valid()) return std::make_unique<Frontend>(std::move(socket).value());
    if (Clock::now() >= deadline) return base::fail("nobody listens on " + path);
    std::this_thread::sleep_for(std::chrono::milliseconds{5});
  }
}

base::Result<std::unique_ptr<Frontend>> Frontend::accept(const std::string& path,
                                                         std::chrono::milliseconds timeout) {
  constexpr unsigned owner_only = 0600;
  const auto listener = listen_on(path, owner_only);
  if (!listener) return base::Unexpected{listener.error()};
  struct pollfd watched {
    .fd = listener->get(), .events = POLLIN, .revents = 0
  };
  ::poll(&watched, 1, static_cast<int>(timeout.count()));
  base::Fd socket{::accept4(listener->get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
  ::unlink(path.c_str());
  if (!socket) return base::fail("no back-end has connected to " + path);
  return std::make_unique<Frontend>(std::move(socket));
}

base::Result<void> Frontend::wait(short events, Clock::time_point deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
  if (left.count() <= 0) return base::fail("the back-end did not answer in time");
  if (pump_) {
    pump_();
    return {};
  }
  std::array<struct pollfd, 2> watched{{{.fd = socket_.get(), .events = events, .revents = 0},
                                        {.fd = cancel_, .events = POLLIN, .revents = 0}}};
  ::poll(watched.data(), watched.size(), static_cast<int>(left.count()));
  if (watched[1].revents != 0) return base::fail("given up: this end is closing");
  return {};
}

base::Result<void> Frontend::send_bytes(std::span<const std::byte> bytes,
                                        std::span<const int> fds) {
  alignas(struct cmsghdr) std::array<char, CMSG_SPACE(wire::message_fds_max * sizeof(int))> control;
  const auto deadline = Clock::now() + timeout_;
  while (!bytes.empty()) {
    struct iovec part {
      .iov_base = const_cast<std::byte*>(bytes.data()), .iov_len = bytes.size()
    };
    ::msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    if (!fds.empty()) {
      if (fds.size() > wire::message_fds_max) return base::fail("too many descriptors");
      control.fill(0);
      header.msg_control = control.data();
      header.msg_controllen = CMSG_SPACE(fds.size_bytes());
      auto* rights = CMSG_FIRSTHDR(&header);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(fds.size_bytes());
      std::memcpy(CMSG_DATA(rights), fds.data(), fds.size_bytes());
    }
    const ssize_t sent = ::sendmsg(socket_.get(), &header, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(sent));
      fds = {};
    } else if (errno == EAGAIN || errno == EINTR) {
      if (const auto ok = wait(POLLOUT, deadline); !ok) return ok;
    } else {
      return base::fail_errno("cannot send to the back-end");
    }
  }
  return {};
}

base::Result<void> Frontend::send(Request request, std::span<const std::byte> payload,
                                  std::span<const int> fds, std::uint32_t flags) {
  const wire::Header header{.request = static_cast<std::uint32_t>(request),
                            .flags = flags,
                            .size = static_cast<std::uint32_t>(payload.size())};
  const auto head = bytes_of(header);
  std::vector<std::byte> bytes{head.begin(), head.end()};
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  return send_bytes(bytes, fds);
}

base::Result<void> Frontend::receive_bytes(std::span<std::byte> into, std::vector<base::Fd>& fds,
                                           Clock::time_point deadline) {
  alignas(struct cmsghdr) std::array<char, CMSG_SPACE(answer_fds_max * sizeof(int))> control;
  while (!into.empty()) {
    struct iovec part {
      .iov_base = into.data(), .iov_len = into.size()
    };
    ::msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    const ssize_t got = ::recvmsg(socket_.get(), &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got > 0) {
      adopt_fds(header, fds);
      // It could send some with every byte, until this process has no more.
      if (fds.size() > answer_fds_max) {
        return base::fail("the back-end sends more descriptors than a message has");
      }
      into = into.subspan(static_cast<std::size_t>(got));
    } else if (got == 0) {
      return base::fail("the back-end hung up");
    } else if (errno == EAGAIN || errno == EINTR) {
      if (const auto ok = wait(POLLIN, deadline); !ok) return ok;
    } else {
      return base::fail_errno("cannot receive from the back-end");
    }
  }
  return {};
}

base::Result<Message> Frontend::receive() {
  const auto deadline = Clock::now() + timeout_;
  Message message;
  std::array<std::byte, sizeof(wire::Header)> head;
  if (const auto ok = receive_bytes(head, message.fds, deadline); !ok) {
    return base::Unexpected{ok.error()};
  }
  std::memcpy(&message.header, head.data(), head.size());
  if (message.header.size > wire::payload_max) return base::fail("the reply is too long");
  message.payload.resize(message.header.size);
  if (const auto ok = receive_bytes(message.payload, message.fds, deadline); !ok) {
    return base::Unexpected{ok.error()};
  }
  return message;
}

base::Result<void> Frontend::request(Request request, std::span<const std::byte> payload,
                                     std::span<const int> fds) {
  refused_ = false;
  const bool ack = ask_ack_ && (protocol_ & wire::protocol::reply_ack) != 0;
  const auto flags = wire::version | (ack ? wire::flag_need_reply : 0u);
  if (const auto ok = send(request, payload, fds, flags); !ok) return ok;
  const bool always = request == Request::set_log_base;
  if (!ack && !always) return {};
  const auto answer = receive();
  if (!answer) return base::Unexpected{answer.error()};
  if (answer->header.request != static_cast<std::uint32_t>(request) ||
      answer->header.flags != (wire::version | wire::flag_reply) || answer->payload.size() != 8) {
    return base::fail("the back-end's acknowledgement is malformed");
  }
  refused_ = answer->as<std::uint64_t>() != 0;
  if (refused_) return base::fail("the back-end refused");
  return {};
}

base::Result<Message> Frontend::ask(Request request, std::span<const std::byte> payload,
                                    std::size_t size) {
  refused_ = false;
  if (const auto ok = send(request, payload); !ok) return base::Unexpected{ok.error()};
  auto answer = receive();
  if (!answer) return answer;
  if (answer->header.request != static_cast<std::uint32_t>(request) ||
      answer->header.flags != (wire::version | wire::flag_reply) ||
      answer->payload.size() != size) {
    return base::fail("the back-end's reply is malformed");
  }
  return answer;
}

base::Result<std::uint64_t> Frontend::ask_u64(Request request) {
  const auto answer = ask(request, {}, sizeof(std::uint64_t));
  if (!answer) return base::Unexpected{answer.error()};
  return answer->as<std::uint64_t>();
}

base::Result<std::uint64_t> Frontend::get_features() {
  return ask_u64(Request::get_features);
}

base::Result<void> Frontend::set_features(std::uint64_t features) {
  return request(Request::set_features, bytes_of(features));
}

base::Result<std::uint64_t> Frontend::get_protocol_features() {
  return ask_u64(Request::get_protocol_features);
}

base::Result<void> Frontend::set_protocol_features(std::uint64_t features) {
  protocol_ = 0;  // this one message is never acknowledged
  const auto sent = request(Request::set_protocol_features, bytes_of(features));
  protocol_ = features;
  return sent;
}

base::Result<void> Frontend::set_owner() {
  return request(Request::set_owner, {});
}
base::Result<void> Frontend::reset_owner() {
  return request(Request::reset_owner, {});
}
base::Result<void> Frontend::reset_device() {
  return request(Request::reset_device, {});
}
base::Result<std::uint64_t> Frontend::get_queue_num() {
  return ask_u64(Request::get_queue_num);
}

base::Result<void> Frontend::set_status(std::uint8_t status) {
  return request(Request::set_status, bytes_of(std::uint64_t{status}));
}

base::Result<std::uint64_t> Frontend::get_status() {
  return ask_u64(Request::get_status);
}

base::Result<void> Frontend::set_mem_table(std::span<const Region> regions) {
  const wire::MemoryHeader header{.count = static_cast<std::uint32_t>(regions.size()),
                                  .padding = 0};
  const auto head = bytes_of(header);
  std::vector<std::byte> payload{head.begin(), head.end()};
  std::vector<int> fds;
  for (const auto& region : regions) {
    const auto raw = wire_of(region);
    const auto bytes = bytes_of(raw);
    payload.insert(payload.end(), bytes.begin(), bytes.end());
    fds.push_back(region.fd);
  }
  return request(Request::set_mem_table, payload, fds);
}

base::Result<std::uint64_t> Frontend::get_max_mem_slots() {
  return ask_u64(Request::get_max_mem_slots);
}

base::Result<void> Frontend::add_mem_reg(const Region& region) {
  const std::array<int, 1> fds{region.fd};
  return request(Request::add_mem_reg,
                 bytes_of(wire::SingleRegion{.padding = 0, .region = wire_of(region)}), fds);
}

base::Result<void> Frontend::rem_mem_reg(const Region& region) {
  return request(Request::rem_mem_reg,
                 bytes_of(wire::SingleRegion{.padding = 0, .region = wire_of(region)}));
}

base::Result<void> Frontend::set_log_base(std::uint64_t size, std::uint64_t offset, int fd) {
  const std::array<int, 1> fds{fd};
  return request(Request::set_log_base, bytes_of(wire::Log{.size = size, .offset = offset}), fds);
}

base::Result<void> Frontend::set_log_fd(int fd) {
  const std::array<int, 1> fds{fd};
  return request(Request::set_log_fd, {}, fds);
}

base::Result<void> Frontend::set_vring_num(std::uint32_t index, std::uint32_t num) {
  return request(Request::set_vring_num, bytes_of(wire::VringState{.index = index, .num = num}));
}

base::Result<void> Frontend::set_vring_addr(const wire::VringAddr& address) {
  return request(Request::set_vring_addr, bytes_of(address));
}

base::Result<void> Frontend::set_vring_base(std::uint32_t index, std::uint32_t base) {
  return request(Request::set_vring_base, bytes_of(wire::VringState{.index = index, .num = base}));
}

base::Result<std::uint32_t> Frontend::get_vring_base(std::uint32_t index) {
  const auto answer =
      ask(Request::get_vring_base, bytes_of(wire::VringState{.index = index, .num = 0}),
          sizeof(wire::VringState));
  if (!answer) return base::Unexpected{answer.error()};
  const auto state = answer->as<wire::VringState>();
  if (state.index != index) return base::fail("the reply is for another queue");
  return state.num;
}

base::Result<void> Frontend::request_ring_fd(Request what, std::uint32_t index, int fd) {
  const std::uint64_t word = index | (fd < 0 ? wire::vring_no_fd : 0);
  const std::array<int, 1> fds{fd};
  return request(what, bytes_of(word), std::span{fds}.first(fd < 0 ? 0 : 1));
}

base::Result<void> Frontend::set_vring_kick(std::uint32_t index, int fd) {
  return request_ring_fd(Request::set_vring_kick, index, fd);
}

base::Result<void> Frontend::set_vring_call(std::uint32_t index, int fd) {
  return request_ring_fd(Request::set_vring_call, index, fd);
}

base::Result<void> Frontend::set_vring_err(std::uint32_t index, int fd) {
  return request_ring_fd(Request::set_vring_err, index, fd);
}

base::Result<void> Frontend::set_vring_enable(std::uint32_t index, bool enable) {
  return request(Request::set_vring_enable,
                 bytes_of(wire::VringState{.index = index, .num = enable ? 1u : 0u}));
}

base::Result<std::vector<std::byte>> Frontend::get_config(std::uint32_t offset,
                                                          std::uint32_t size) {
  std::vector<std::byte> payload(sizeof(wire::ConfigHeader) + size);
  const wire::ConfigHeader header{.offset = offset, .size = size, .flags = 0};
  std::memcpy(payload.data(), &header, sizeof header);
  const auto answer = ask(Request::get_config, payload, payload.size());
  if (!answer) return base::Unexpected{answer.error()};
  return std::vector<std::byte>{answer->payload.begin() + sizeof header, answer->payload.end()};
}

base::Result<void> Frontend::set_config(std::uint32_t offset, std::span<const std::byte> bytes) {
  std::vector<std::byte> payload(sizeof(wire::ConfigHeader));
  const wire::ConfigHeader header{
      .offset = offset, .size = static_cast<std::uint32_t>(bytes.size()), .flags = 0};
  std::memcpy(payload.data(), &header, sizeof header);
  payload.insert(payload.end(), bytes.begin(), bytes.end());
  return request(Request::set_config, payload);
}

base::Result<void> Frontend::set_backend_req_fd(int fd) {
  const std::array<int, 1> fds{fd};
  return request(Request::set_backend_req_fd, {}, fds);
}

base::Result<void> Frontend::send_rarp(std::span<const std::uint8_t, 6> mac) {
  std::array<std::byte, 8> payload{};
  std::memcpy(payload.data(), mac.data(), mac.size());
  return request(Request::send_rarp, payload);
}

base::Result<void> Frontend::net_set_mtu(std::uint64_t mtu) {
  return request(Request::net_set_mtu, bytes_of(mtu));
}

base::Result<Frontend::Inflight> Frontend::get_inflight_fd(std::uint16_t queues,
                                                           std::uint16_t queue_size) {
  wire::Inflight shape{};
  shape.queues = queues;
  shape.queue_size = queue_size;
  auto answer = ask(Request::get_inflight_fd, bytes_of(shape), sizeof shape);
  if (!answer) return base::Unexpected{answer.error()};
  if (answer->fds.size() != 1) return base::fail("the reply came without its descriptor");
  return Inflight{.shape = answer->as<wire::Inflight>(), .fd = std::move(answer->fds[0])};
}

base::Result<void> Frontend::set_inflight_fd(const wire::Inflight& shape, int fd) {
  const std::array<int, 1> fds{fd};
  return request(Request::set_inflight_fd, bytes_of(shape), fds);
}

}  // namespace millrace::vhost
