#include "vhost/server.hpp"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include "base/clock.hpp"
#include "base/log.hpp"
#include "vhost/listener.hpp"
#include "vhost/session.hpp"

namespace millrace::vhost {

namespace {

using namespace std::chrono_literals;
constexpr std::chrono::milliseconds retry_min = 100ms, retry_max = 2s;
// A front-end that comes and goes in a loop costs log lines and time of the control thread: after
// this many sessions shorter than brief_session in a row, the next one waits, ever longer up to
// retry_max.
constexpr unsigned brief_sessions_free = 5;
constexpr std::chrono::milliseconds brief_session = 500ms;

class SocketServer final : public Server {
 public:
  SocketServer(base::EventLoop& loop, virtio::Device& device, const ServerConfig& config)
      : loop_{loop}, device_{device}, config_{config} {}
  ~SocketServer() override {
    session_.reset();
    remove_file();
  }

  base::Result<void> open();
  [[nodiscard]] SessionStatus status() const override;
  void close(std::function<void()> done) override;
  void on_change(std::function<void(bool)> hook) override { hook_ = std::move(hook); }
  void on_fault(std::function<void(unsigned, virtio::Fault)> hook) override {
    fault_hook_ = std::move(hook);
  }

 private:
  void wait_for_peer();
  void accept_one();
  void try_connect();
  void retry(std::function<void()> what);
  void begin(base::Fd socket);
  void session_ended();
  void closed();
  void remove_file();

  base::EventLoop& loop_;
  virtio::Device& device_;
  const ServerConfig config_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  base::Fd listener_;
  struct stat file_ {};  // of the socket file that we made
  bool made_file_ = false;
  base::EventLoop::Watch watch_;
  base::EventLoop::Timer retry_;
  std::chrono::milliseconds retry_delay_ = retry_min;
  std::uint64_t began_ns_ = 0;   // when the session began
  unsigned brief_sessions_ = 0;  // in a row
  std::unique_ptr<Session> session_;
  std::function<void(bool)> hook_;
  std::function<void(unsigned, virtio::Fault)> fault_hook_;
  std::function<void()> closing_;
  bool is_closing_ = false;
  std::uint64_t sessions_ = 0, refused_before_ = 0;
  std::string last_error_;
};

base::Result<void> SocketServer::open() {
  if (config_.mode == SocketMode::connect) {
    auto probe = connect_to(config_.socket);
    if (!probe) return base::Unexpected{probe.error()};
    if (probe->valid()) {
      begin(std::move(probe).value());
    } else {
      retry([this] { try_connect(); });
    }
    return {};
  }
  const bool passed = names_descriptor(config_.socket);
  auto listener =
      passed ? adopt_listener(config_.socket) : listen_on(config_.socket, config_.permissions);
  if (!listener) return base::Unexpected{listener.error()};
  listener_ = std::move(listener).value();
  made_file_ = !passed && ::lstat(config_.socket.c_str(), &file_) == 0;
  wait_for_peer();
  if (!watch_.active()) return base::fail("cannot watch socket " + config_.socket);
  return {};
}

void SocketServer::wait_for_peer() {
  if (is_closing_) return;
  if (config_.mode == SocketMode::connect) return retry([this] { try_connect(); });
  auto watch = loop_.watch(listener_.get(), EPOLLIN, [this](std::uint32_t) { accept_one(); });
  if (watch) {
    watch_ = std::move(watch).value();
  } else {
    retry([this] { wait_for_peer(); });
  }
}

void SocketServer::accept_one() {
  base::Fd socket{::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC)};
  if (socket.valid()) return begin(std::move(socket));
  if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return;
  // Out of descriptors: the peer stays in the backlog, and the loop must not spin on it.
  watch_.reset();
  retry([this] { wait_for_peer(); });
}

void SocketServer::try_connect() {
  auto socket = connect_to(config_.socket);
  if (socket && socket->valid()) return begin(std::move(socket).value());
  retry([this] { try_connect(); });
}

void SocketServer::retry(std::function<void()> what) {
  retry_ = loop_.after(retry_delay_, std::move(what));
  retry_delay_ = std::min(retry_delay_ * 2, retry_max);
}

void SocketServer::begin(base::Fd socket) {
  watch_.reset();
  if (brief_sessions_ <= brief_sessions_free) retry_delay_ = retry_min;
  began_ns_ = base::monotonic_ns();
  auto peer = peer_of(socket);
  session_ = std::make_unique<Session>(loop_, device_, std::move(socket), std::move(peer), [this] {
    loop_.defer([this, alive = std::weak_ptr<bool>{alive_}] {
      if (!alive.expired()) session_ended();
    });
  });
  session_->on_fault([this](unsigned index, virtio::Fault fault) {
    if (fault_hook_) fault_hook_(index, fault);
  });
  ++sessions_;
  if (const auto ok = session_->start(); !ok) return session_->end(ok.error().message);
  spdlog::info("{}: front-end {} connected", device_.name(), session_->peer());
  if (hook_) hook_(true);
}

void SocketServer::session_ended() {
  refused_before_ += session_->counters().refused;
  last_error_ = session_->reason();
  spdlog::info("{}: front-end {} is gone", device_.name(), session_->peer());
  session_.reset();
  if (hook_) hook_(false);
  if (is_closing_) return closed();
  const auto lasted = std::chrono::nanoseconds{base::monotonic_ns() - began_ns_};
  brief_sessions_ = lasted < brief_session ? brief_sessions_ + 1 : 0;
  if (brief_sessions_ <= brief_sessions_free) return wait_for_peer();
  if (config_.mode == SocketMode::connect) return retry([this] { try_connect(); });
  retry([this] { wait_for_peer(); });
}

SessionStatus SocketServer::status() const {
  SessionStatus status;
  status.sessions = sessions_;
  status.refused = refused_before_;
  status.last_error = last_error_;
  if (session_ == nullptr) return status;
  status.connected = true;
  status.messages = session_->counters().messages;
  status.refused += session_->counters().refused;
  status.peer = session_->peer();
  status.phase = name_of(session_->phase());
  status.virtio_features = session_->features();
  status.protocol_features = session_->protocol_features();
  status.memory_regions = session_->memory().count();
  status.memory_bytes = session_->memory().bytes();
  return status;
}

void SocketServer::close(std::function<void()> done) {
  closing_ = std::move(done);
  if (std::exchange(is_closing_, true)) return;
  watch_.reset();
  retry_.reset();
  if (session_ != nullptr) return session_->end("");
  loop_.defer([this, alive = std::weak_ptr<bool>{alive_}] {
    if (!alive.expired()) closed();
  });
}

void SocketServer::closed() {
  listener_.reset();
  remove_file();
  const auto done = std::exchange(closing_, nullptr);
  if (done) done();
}

// Only the file that we made: another server may have taken the path since.
void SocketServer::remove_file() {
  if (!std::exchange(made_file_, false)) return;
  struct stat now {};
  if (::lstat(config_.socket.c_str(), &now) == 0 && now.st_ino == file_.st_ino &&
      now.st_dev == file_.st_dev) {
    ::unlink(config_.socket.c_str());
  }
}

}  // namespace

base::Result<std::unique_ptr<Server>> Server::make(base::EventLoop& loop, virtio::Device& device,
                                                   const ServerConfig& config) {
  auto server = std::make_unique<SocketServer>(loop, device, config);
  if (const auto ok = server->open(); !ok) return base::Unexpected{ok.error()};
  return std::unique_ptr<Server>{std::move(server)};
}

}  // namespace millrace::vhost
