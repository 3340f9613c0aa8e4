#include "vmm/backend_link.hpp"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <bit>
#include <csignal>
#include <utility>

#include "base/error.hpp"
#include "base/log.hpp"
#include "vhost/listener.hpp"
#include "virtio/limits.hpp"
#include "virtio/wire/net.hpp"
#include "vmm/sandbox.hpp"

namespace millrace::vmm {

namespace {

using base::fail, base::Result;
using std::chrono::milliseconds;

// A guest that waits for its disk shall not wait for us when the back-end is there at last.
constexpr milliseconds first_delay_max{100};
// A connection that lasted so long was a good one, and the next attempt comes at once.
constexpr milliseconds good_connection{1000};
// Log lines that one guest may cause.
constexpr unsigned guest_faults_logged = 16;

bool readable(int fd) {
  struct pollfd one {
    .fd = fd, .events = POLLIN, .revents = 0
  };
  return fd >= 0 && ::poll(&one, 1, 0) == 1;
}

}  // namespace

BackendLink::BackendLink(BackendLinkConfig config, const GuestRam& ram)
    : config_{std::move(config)}, ram_{ram} {}

Result<std::unique_ptr<BackendLink>> BackendLink::make(BackendLinkConfig config,
                                                       const GuestRam& ram) {
  const std::string where = config.socket + ": ";
  if (config.queue_size < 2 || config.queue_size > virtio::limits::queue_size_max ||
      !std::has_single_bit(config.queue_size)) {
    return fail(where + "queue_size=" + std::to_string(config.queue_size) +
                " is no power of two from 2 to 32768");
  }
  std::unique_ptr<BackendLink> link{new BackendLink{std::move(config), ram}};
  for (auto* fd : {&link->wake_, &link->quit_, &link->ring_error_}) {
    *fd = base::Fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    if (!fd->valid()) return base::fail_errno("cannot make an eventfd");
  }
  if (const auto ok = link->connect_first(); !ok) return base::Unexpected{ok.error()};
  link->running_.assign(link->shape_.queues, false);
  link->begun_.assign(link->shape_.queues, false);
  link->wanted_.queues.resize(link->shape_.queues);
  return link;
}

Result<void> BackendLink::connect_first() {
  const std::string where = config_.socket + ": ";
  bool said = false;
  for (auto delay = delay_min;; delay = std::min(2 * delay, first_delay_max)) {
    auto socket = vhost::connect_to(config_.socket);
    if (!socket) return base::Unexpected{socket.error()};
    if (socket->valid()) {
      auto made = BackendConnection::negotiate(
          *std::move(socket), config_size_of(config_.shape.kind), config_.timeouts, config_.cancel);
      if (made) {
        (*made)->set_cancel(quit_.get());
        const auto ok = adopt(*std::move(made));
        if (!ok) return fail(where + ok.error().message);
        if (hides_its_mac()) {
          spdlog::warn(
              "{}the back-end has a MAC address and no configuration space to say it in: "
              "the guest makes one up unless it is given (mac=)",
              where);
        }
        return {};
      }
      if (!config_.wait) return fail(where + made.error().message);
      complain(made.error().message);
    } else if (!config_.wait) {
      return fail(where + "nobody serves this socket: start the back-end first, or let it wait");
    } else if (!std::exchange(said, true)) {
      spdlog::info("{}waiting for a back-end", where);
    }
    struct pollfd one {
      .fd = config_.cancel, .events = POLLIN, .revents = 0
    };
    if (::poll(&one, 1, static_cast<int>(delay.count())) == 1) {
      return fail(where + "no back-end came");
    }
  }
}

bool BackendLink::hides_its_mac() const {
  const auto& offer = connection_->offer();
  return config_.shape.kind == DeviceKind::net && !config_.shape.mac && offer.config.empty() &&
         (offer.features & virtio::wire::net_feature::mac) != 0;
}

BackendLink::~BackendLink() {
  close();
}

void BackendLink::open(Listener& listener) {
  listener_ = &listener;
  ram_.attach(*this);
  thread_ = std::thread{[this] { run(); }};
}

void BackendLink::close() {
  if (!thread_.joinable()) return;
  ::eventfd_write(quit_.get(), 1);
  wake();
  thread_.join();
  ram_.detach(*this);
  connection_.reset();
  const std::lock_guard lock{mutex_};
  connected_ = wanted_.field_new = false;
  refreshes_ = refresh_wanted_;
  written_.notify_all();
  refreshed_.notify_all();
}

void BackendLink::memory_added() {
  const std::lock_guard lock{mutex_};
  memory_new_ = true;
  wake();
}

void BackendLink::wake() const {
  ::eventfd_write(wake_.get(), 1);
}

// --- What the device calls ---

bool BackendLink::connected() const {
  const std::lock_guard lock{mutex_};
  return connected_;
}

std::uint64_t BackendLink::features() const {
  const std::lock_guard lock{mutex_};
  return shape_.features;
}

std::vector<std::byte> BackendLink::config() const {
  const std::lock_guard lock{mutex_};
  return shape_.config;
}

bool BackendLink::write_config(std::uint32_t offset, std::span<const std::byte> bytes) {
  std::unique_lock lock{mutex_};
  const auto field = writable_field(config_.shape.kind, shape_.features);
  if (!field || offset != field->offset || bytes.size() != field->size) return false;
  wanted_.field.emplace(bytes.begin(), bytes.end());
  if (!wanted_.active || !connected_) return true;  // before the queues are started, then
  wanted_.field_new = true;
  wake();
  written_.wait_for(lock, config_.timeouts.reply, [this] { return !wanted_.field_new; });
  return wanted_.field.has_value();
}

void BackendLink::activate(std::uint64_t features, std::span<const VirtQueue> queues) {
  const std::lock_guard lock{mutex_};
  wanted_.active = true;
  wanted_.features = features;
  for (const auto& queue : queues) wanted_.queues.at(queue.index).queue = queue;
  wake();
}

void BackendLink::stop() {
  const std::lock_guard lock{mutex_};
  wanted_.stop = true;
  wake();
}

void BackendLink::start_queue(const VirtQueue& queue) {
  const std::lock_guard lock{mutex_};
  wanted_.queues.at(queue.index).queue = queue;
  wake();
}

void BackendLink::stop_queue(unsigned index) {
  const std::lock_guard lock{mutex_};
  wanted_.queues.at(index) = Wish{.queue = {}, .stop = true};
  wake();
}

void BackendLink::set_call(unsigned index, int call) {
  const std::lock_guard lock{mutex_};
  auto& wish = wanted_.queues.at(index);
  if (!wish.queue) return;
  wish.queue->call = call;
  wish.new_call = true;
  wake();
}

// --- The thread ---

void BackendLink::run() {
  // Signals are for the thread that handles them.
  ::sigset_t all;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
  ::pthread_setname_np(::pthread_self(), "backend-link");
  if (config_.confined) CHECK(confine_thread(ThreadKind::back_end).has_value());
  while (!readable(quit_.get())) turn();
}

void BackendLink::turn() {
  if (connection_ == nullptr && Clock::now() >= retry_at_) connect();
  take_memory();
  apply();
  answer_refresh();
  if (connection_ != nullptr) note_up();
  wait_for_events();
}

void BackendLink::connect() {
  auto socket = vhost::connect_to(config_.socket);
  if (!socket || !socket->valid()) return retry_later();
  auto made = BackendConnection::negotiate(*std::move(socket), config_size_of(config_.shape.kind),
                                           config_.timeouts, quit_.get());
  auto ok = made ? adopt(*std::move(made)) : Result<void>{base::Unexpected{made.error()}};
  if (ok) return;
  complain(ok.error().message);
  retry_later();
}

// The guest keeps the device that it was shown: another back-end must be able to go on with it.
Result<void> BackendLink::adopt(std::unique_ptr<BackendConnection> connection) {
  const bool first = listener_ == nullptr;
  if (const auto ok = tell(*connection); !ok) return ok;
  const auto shape = shape_now(connection->offer());
  if (!shape) return base::Unexpected{shape.error()};
  // Now, and not when the guest's driver starts.
  if (auto ok = connection->check_memory(ram_.regions().size()); !ok) return ok;
  bool later = false;
  {
    const std::lock_guard lock{mutex_};
    if (!first && shape->queues != shape_.queues) {
      return fail("the back-end has " + std::to_string(shape->queues) +
                  " queues, the one before had " + std::to_string(shape_.queues));
    }
    const auto missing = wanted_.active ? wanted_.features & ~shape->features : 0;
    if (missing != 0) {
      return fail(
          fmt::format("the back-end lacks feature bits {:#x}, which the guest uses", missing));
    }
    if (first) shape_ = *shape;
    if (!wanted_.active) shape_.features = shape->features;
    shape_.vrings = shape->vrings;
    connected_ = true;
    // What it says before it has the record of the one before is not for the driver's eyes.
    later = comes_with_record() && wanted_.active;
  }
  connection_ = std::move(connection);
  connected_at_ = Clock::now();
  cut_at_.reset();
  return first || later ? Result<void>{} : publish_config();
}

// Once the guest was shown a number of queues, it is that number.
Result<DeviceShape> BackendLink::shape_now(const BackendOffer& offer) const {
  auto options = config_.shape;
  if (listener_ != nullptr) options.queues = shape_.pairs != 0 ? shape_.pairs : shape_.queues;
  return shape_of(offer, options);
}

void BackendLink::disconnect(const std::string& why) {
  if (!connection_->peer_is_gone()) cut_at_ = Clock::now();
  connection_.reset();
  regions_shared_ = 0;
  set_up_ = false;
  restoring_ = true;
  running_.assign(running_.size(), false);
  {
    const std::lock_guard lock{mutex_};
    connected_ = wanted_.field_new = false;
    written_.notify_all();
  }
  if (readable(quit_.get())) return;
  if (Clock::now() - connected_at_ >= good_connection) {
    delay_ = milliseconds{0};
    last_complaint_.clear();
  }
  complain(why);
  if (std::exchange(up_, false) && config_.on_change) config_.on_change(false, why);
  retry_later();
}

void BackendLink::retry_later() {
  delay_ = std::clamp(2 * delay_, delay_min, delay_max);
  retry_at_ = Clock::now() + delay_;
}

// The same line again and again says nothing.
void BackendLink::complain(const std::string& why) {
  if (why == last_complaint_) return;
  last_complaint_ = why;
  said_gone_ = true;
  spdlog::warn("{}: {}; connecting again until it works", config_.socket, why);
}

// A guest can do it again and again, and the log is not its.
void BackendLink::blame_guest(const std::string& why) {
  if (guest_faults_++ >= guest_faults_logged) return;
  spdlog::warn("{}: {}; the guest must reset the device", config_.socket, why);
}

void BackendLink::note_up() {
  if (std::exchange(up_, true)) return;
  if (std::exchange(said_gone_, false)) spdlog::info("{}: the back-end is back", config_.socket);
  if (config_.on_change) config_.on_change(true, "");
}

void BackendLink::wait_for_events() {
  std::array<struct pollfd, 5> fds{};
  fds[0].fd = wake_.get();
  fds[1].fd = quit_.get();
  fds[2].fd = connection_ ? connection_->fd() : -1;
  fds[3].fd = connection_ ? connection_->request_fd() : -1;
  fds[4].fd = connection_ ? ring_error_.get() : -1;
  for (auto& one : fds) one.events = POLLIN;
  int timeout = -1;
  if (connection_ == nullptr) {
    const auto left = std::chrono::ceil<milliseconds>(retry_at_ - Clock::now());
    timeout = static_cast<int>(std::clamp(left, milliseconds{0}, delay_max).count());
  }
  ::poll(fds.data(), fds.size(), timeout);
  eventfd_t count = 0;
  if (fds[0].revents != 0) ::eventfd_read(wake_.get(), &count);
  if (connection_ == nullptr || fds[1].revents != 0) return;
  if (fds[2].revents != 0) {
    return disconnect(connection_->peer_is_gone() ? "the back-end hung up"
                                                  : "the back-end sent what nobody asked for");
  }
  if (fds[4].revents != 0) take_ring_error();
  if (fds[3].revents != 0) take_request();
}

void BackendLink::take_request() {
  const auto changed = connection_->take_request();
  if (!changed) return disconnect(changed.error().message);
  if (!*changed) return;
  if (const auto ok = renew_config(); !ok) disconnect(ok.error().message);
}

void BackendLink::take_ring_error() {
  eventfd_t count = 0;
  ::eventfd_read(ring_error_.get(), &count);
  blame_guest("the back-end has stopped a queue (its log says why)");
  listener_->needs_reset();
}

}  // namespace millrace::vmm
