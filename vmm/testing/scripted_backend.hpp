// ScriptedBackend: the other end of a BackendLink, in a thread of its own. It answers as a good
// back-end does that never looks at a ring, writes down what it was sent, and does what a test says
// instead wherever the test says so.
#pragma once

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/check.hpp"
#include "vhost/frontend.hpp"
#include "vhost/listener.hpp"
#include "virtio/features.hpp"
#include "virtio/wire/blk.hpp"

namespace millrace::vmm::testing {

class ScriptedBackend {
 public:
  using Request = vhost::wire::Request;
  // In place of the usual answer. False: hang up.
  using Script = std::function<bool(vhost::Frontend& peer, const vhost::Message& message)>;
  struct Noted {
    Request request;
    std::uint32_t first = 0, second = 0;  // of the payload, the first two words
    unsigned connection = 0;              // 1 is the first
  };

  ScriptedBackend() {
    auto folder = (std::filesystem::temp_directory_path() / "millrace-script-XXXXXX").string();
    CHECK(::mkdtemp(folder.data()) != nullptr);
    folder_ = folder;
    config.capacity = base::le64{1000};
    config.num_queues = base::le16{2};
    auto listener = vhost::listen_on(path(), 0600);
    CHECK(listener.has_value());
    listener_ = std::move(listener).value();
    thread_ = std::thread{[this] { run(); }};
  }
  ~ScriptedBackend() {
    ::eventfd_write(stop_.get(), 1);
    thread_.join();
    std::filesystem::remove_all(folder_);
  }
  ScriptedBackend(const ScriptedBackend&) = delete;
  ScriptedBackend& operator=(const ScriptedBackend&) = delete;

  [[nodiscard]] std::string path() const { return folder_ + "/socket"; }
  // From now on, `times` times; 0: always.
  void script(Request request, unsigned times, Script what) {
    const std::lock_guard lock{mutex_};
    scripts_[request] = {times, std::move(what)};
  }
  // The next so many of these are answered "no".
  void refuse(Request request, unsigned times = 1) {
    script(request, times, [](vhost::Frontend& peer, const vhost::Message& message) {
      return acknowledge(peer, message, 1);
    });
  }
  void change(const std::function<void(ScriptedBackend&)>& what) {
    const std::lock_guard lock{mutex_};
    what(*this);
  }
  void hang_up() { ::eventfd_write(hang_up_.get(), 1); }
  // Sends bytes that nobody asked for, or on the back-end's own channel a request.
  void say(std::span<const std::byte> bytes) {
    const std::lock_guard lock{mutex_};
    CHECK(peer_ != nullptr && peer_->send_bytes(bytes).has_value());
  }
  void request(std::uint32_t number, std::uint32_t flags) {
    const std::lock_guard lock{mutex_};
    CHECK(requests_ != nullptr);
    CHECK(requests_->send(Request{number}, {}, {}, flags).has_value());
  }
  base::Result<vhost::Message> answer() { return requests_->receive(); }
  [[nodiscard]] std::vector<Noted> noted() const {
    const std::lock_guard lock{mutex_};
    return noted_;
  }
  [[nodiscard]] std::size_t count(Request request) const {
    const auto all = noted();
    return static_cast<std::size_t>(
        std::ranges::count_if(all, [&](const Noted& one) { return one.request == request; }));
  }
  [[nodiscard]] unsigned connections() const {
    const std::lock_guard lock{mutex_};
    return connections_;
  }
  void signal_error(unsigned vring) {
    const std::lock_guard lock{mutex_};
    ::eventfd_write(errors_.at(vring).get(), 1);
  }

  static bool acknowledge(vhost::Frontend& peer, const vhost::Message& message,
                          std::uint64_t value) {
    if ((message.header.flags & vhost::wire::flag_need_reply) == 0) return true;
    return reply(peer, message, vhost::bytes_of(value));
  }
  static bool reply(vhost::Frontend& peer, const vhost::Message& message,
                    std::span<const std::byte> payload, std::span<const int> fds = {}) {
    return peer
        .send(Request{message.header.request}, payload, fds,
              vhost::wire::version | vhost::wire::flag_reply)
        .has_value();
  }

  // What it says of itself; see change().
  std::uint64_t features = virtio::feature::version_1 | virtio::feature::ring_packed |
                           virtio::feature::ring_reset | virtio::feature::protocol_features |
                           virtio::wire::blk_feature::mq | virtio::wire::blk_feature::config_wce;
  std::uint64_t protocol =
      vhost::wire::protocol::mq | vhost::wire::protocol::reply_ack | vhost::wire::protocol::config |
      vhost::wire::protocol::backend_req | vhost::wire::protocol::inflight_shmfd |
      vhost::wire::protocol::configure_mem_slots | vhost::wire::protocol::status;
  std::uint64_t queues = 2, memory_slots = 8;
  virtio::wire::BlkConfig config{};

 private:
  struct Scripted {
    unsigned times = 0;
    Script what;
  };

  void run() {
    while (ready(listener_.get())) {
      base::Fd socket{::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)};
      if (socket.valid()) serve(std::move(socket));
    }
  }
  // Waits for `fd`; false: it is over.
  bool ready(int fd) {
    while (true) {
      std::array<struct pollfd, 3> fds{{{.fd = fd, .events = POLLIN, .revents = 0},
                                        {.fd = stop_.get(), .events = POLLIN, .revents = 0},
                                        {.fd = hang_up_.get(), .events = POLLIN, .revents = 0}}};
      ::poll(fds.data(), fds.size(), -1);
      if (fds[1].revents != 0) return false;
      eventfd_t count = 0;
      if (fds[2].revents != 0) {
        ::eventfd_read(hang_up_.get(), &count);
        const std::lock_guard lock{mutex_};
        if (peer_ != nullptr) return false;
      }
      if (fds[0].revents != 0) return true;
    }
  }
  void serve(base::Fd socket) {
    vhost::Frontend peer{std::move(socket)};
    {
      const std::lock_guard lock{mutex_};
      ++connections_;
      peer_ = &peer;
    }
    while (ready(peer.fd())) {
      const auto message = peer.receive();
      if (!message || !handle(peer, *message)) break;
    }
    const std::lock_guard lock{mutex_};
    peer_ = nullptr;
    requests_.reset();
  }
  bool handle(vhost::Frontend& peer, const vhost::Message& message) {
    Script script;
    {
      const std::lock_guard lock{mutex_};
      const auto request = Request{message.header.request};
      std::array<std::uint32_t, 2> words{};
      std::ranges::copy(
          std::span{message.payload}.first(std::min(sizeof words, message.payload.size())),
          std::as_writable_bytes(std::span{words}).begin());
      noted_.push_back({request, words[0], words[1], connections_});
      const auto found = scripts_.find(request);
      if (found != scripts_.end()) {
        script = found->second.what;
        if (found->second.times != 0 && --found->second.times == 0) scripts_.erase(found);
      }
    }
    return script ? script(peer, message) : usual(peer, message);
  }
  bool usual(vhost::Frontend& peer, const vhost::Message& message) {
    const std::lock_guard lock{mutex_};
    switch (Request{message.header.request}) {
      case Request::get_features:
        return reply(peer, message, vhost::bytes_of(features));
      case Request::get_protocol_features:
        return reply(peer, message, vhost::bytes_of(protocol));
      case Request::get_queue_num:
        return reply(peer, message, vhost::bytes_of(queues));
      case Request::get_max_mem_slots:
        return reply(peer, message, vhost::bytes_of(memory_slots));
      case Request::get_vring_base:
        return reply(peer, message, message.payload);
      case Request::get_config: {
        auto payload = message.payload;
        const auto bytes = std::as_bytes(std::span{&config, 1});
        std::copy_n(bytes.begin(), payload.size() - 12, payload.begin() + 12);
        return reply(peer, message, payload);
      }
      case Request::get_inflight_fd: {
        auto shape = message.as<vhost::wire::Inflight>();
        shape.size = 4096ull * shape.queues;
        const base::Fd memory{::memfd_create("inflight", MFD_CLOEXEC)};
        CHECK(::ftruncate(memory.get(), static_cast<off_t>(shape.size)) == 0);
        const std::array<int, 1> fds{memory.get()};
        return reply(peer, message, vhost::bytes_of(shape), fds);
      }
      default:
        keep(message);
        return acknowledge(peer, message, 0);
    }
  }
  void keep(const vhost::Message& message) {
    if (message.fds.empty()) return;
    base::Fd copy{::dup(message.fds[0].get())};
    const auto request = Request{message.header.request};
    if (request == Request::set_backend_req_fd) {
      requests_ = std::make_unique<vhost::Frontend>(std::move(copy));
      requests_->set_timeout(std::chrono::seconds{10});
    } else if (request == Request::set_vring_err) {
      errors_[message.as<std::uint32_t>()] = std::move(copy);
    }
  }

  std::string folder_;
  base::Fd listener_;
  base::Fd stop_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  base::Fd hang_up_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  mutable std::mutex mutex_;
  std::map<Request, Scripted> scripts_;
  std::vector<Noted> noted_;
  std::map<unsigned, base::Fd> errors_;
  unsigned connections_ = 0;
  vhost::Frontend* peer_ = nullptr;
  std::unique_ptr<vhost::Frontend> requests_;
  std::thread thread_;
};

}  // namespace millrace::vmm::testing
