#include "vhost/session.hpp"

#include <algorithm>
#include <utility>

#include "base/log.hpp"

namespace millrace::vhost {

namespace {

// Log lines that one front-end may cause; the rest is only counted.
constexpr std::uint64_t logged_refusals_max = 16;

}  // namespace

Session::Session(base::EventLoop& loop, virtio::Device& device, base::Fd socket, std::string peer,
                 std::function<void()> ended)
    : loop_{loop},
      device_{device},
      peer_{std::move(peer)},
      ended_{std::move(ended)},
      channel_{loop, std::move(socket), *this, wire::message_fds_max},
      rings_(device.queues_max()) {}

Session::~Session() {
  device_.on_config_change({});
  device_.on_fault({});
}

base::Result<void> Session::start() {
  device_.on_config_change([this] {
    // Who did not ask for our configuration space may not know the message either.
    if (backend_ != nullptr && acked(wire::protocol::config)) backend_->config_changed();
  });
  device_.on_fault([this](unsigned index, virtio::Fault fault) { note_fault(index, fault); });
  device_.set_features(0);
  device_.set_connected(true);
  return channel_.open();
}

Session::Phase Session::phase() const {
  if (finished_) return Phase::ended;
  if (draining_) return Phase::draining;
  return any_started() ? Phase::running : Phase::negotiating;
}

bool Session::any_started() const {
  return std::ranges::any_of(rings_, [](const Ring& ring) { return ring.started; });
}

base::Result<void> Session::on_header(const wire::Header& header) {
  if ((header.flags & wire::version_mask) != wire::version) {
    return base::fail("protocol version " + std::to_string(header.flags & wire::version_mask) +
                      " instead of 1");
  }
  if ((header.flags & wire::flag_reply) != 0)
    return base::fail("sent a reply instead of a request");
  if (header.size > wire::payload_max) {
    return base::fail("a message of " + std::to_string(header.size) + " bytes");
  }
  return {};
}

void Session::on_message(Message message) {
  ++counters_.messages;
  rule_ = rule_of(message.header.request);
  header_ = message.header;
  if (rule_ == nullptr) {
    refuse("message " + std::to_string(message.header.request) + " is not supported");
    return;
  }
  handling_ = true;
  const auto handled = dispatch(*rule_, message);
  handling_ = false;
  if (draining_) {
    if (!waiting_) drain();
  } else if (!handled) {
    refuse(handled.error().message);
  } else if (*handled == Progress::done) {
    acknowledge(0);
  } else if (*handled == Progress::pending && waiting_) {
    channel_.pause();
  }
}

Session::Handled Session::dispatch(const Rule& rule, Message& message) {
  const auto size = message.header.size;
  if (!rule.payload.holds(size)) {
    return base::fail("a payload of " + std::to_string(size) + " bytes");
  }
  if (!rule.fds.holds(message.fds.size())) {
    return base::fail("came with " + std::to_string(message.fds.size()) + " descriptors");
  }
  if (!acked(rule.needs)) return base::fail("its protocol feature was not acknowledged");
  return (this->*rule.handler)(message);
}

void Session::finish(const base::Result<void>& result) {
  waiting_ = false;
  if (result) {
    acknowledge(0);
  } else {
    refuse(result.error().message);
  }
  if (!draining_) channel_.resume();
}

void Session::finish_replied() {
  waiting_ = false;
  if (!draining_) channel_.resume();
}

virtio::Device::Done Session::finish_when_done() {
  waiting_ = true;
  return guarded([this](base::Result<void> result) { proceed([&] { finish(result); }); });
}

void Session::proceed(const Then& then) {
  if (draining_ && !drain_begun_) {
    waiting_ = false;
    if (!handling_) drain();
    return;
  }
  then();
}

bool Session::ack_wanted() const {
  return acked(wire::protocol::reply_ack) && (header_.flags & wire::flag_need_reply) != 0;
}

void Session::acknowledge(std::uint64_t value) {
  const bool always = rule_ != nullptr && rule_->reply == Rule::Reply::always;
  if (ack_wanted() || always) reply_u64(value);
}

void Session::refuse(const std::string& why) {
  const std::string line = rule_ != nullptr ? std::string{rule_->name} + " refused: " + why : why;
  // A reply with a value has no room for "no".
  const bool can_say_no = rule_ == nullptr || rule_->reply != Rule::Reply::value;
  if (ack_wanted() && can_say_no) {
    note_refused(line);
    reply_u64(1);
  } else {
    ++counters_.refused;
    end(line);
  }
}

void Session::note_refused(const std::string& line) {
  ++counters_.refused;
  if (counters_.refused <= logged_refusals_max) {
    spdlog::warn("{}: front-end {}: {}", device_.name(), peer_, line);
  }
}

void Session::reply(std::span<const std::byte> payload, int fd) {
  channel_.send({.request = header_.request,
                 .flags = wire::version | wire::flag_reply,
                 .size = static_cast<std::uint32_t>(payload.size())},
                payload, fd);
}

void Session::reply_u64(std::uint64_t value) {
  reply(bytes_of(value));
}

void Session::on_closed(const std::string& why) {
  end(why);
}

void Session::end(const std::string& why) {
  if (draining_) return;
  draining_ = true;
  reason_ = why;
  if (!why.empty()) spdlog::warn("{}: front-end {}: {}; session ended", device_.name(), peer_, why);
  channel_.close();
  // What the device still owes us comes first; see proceed().
  if (!waiting_ && !handling_) drain();
}

void Session::drain() {
  if (drain_begun_) return;
  drain_begun_ = true;
  device_.on_config_change({});
  stop_all([this] {
    if (log_ == nullptr) return release();
    device_.set_log(nullptr, guarded([this](const base::Result<void>&) { release(); }));
  });
}

// Only now may memory go: no reactor refers to it any more.
void Session::release() {
  backend_.reset();
  log_.reset();
  inflight_.reset();
  device_.set_kept(nullptr);
  memory_.clear();
  for (auto& ring : rings_) ring = Ring{};
  channel_.hang_up();
  device_.set_connected(false);
  finished_ = true;
  if (ended_) ended_();
}

const char* name_of(Session::Phase phase) {
  switch (phase) {
    case Session::Phase::negotiating:
      return "negotiating";
    case Session::Phase::running:
      return "running";
    case Session::Phase::draining:
      return "draining";
    case Session::Phase::ended:
      return "ended";
  }
  return "ended";
}

}  // namespace millrace::vhost
