// Session: features, ownership, status and reset.
#include <algorithm>

#include "base/log.hpp"
#include "vhost/session.hpp"
#include "virtio/features.hpp"

namespace millrace::vhost {

namespace {

constexpr std::uint8_t status_needs_reset = 0x40;  // virtio 1.2 §2.1

}  // namespace

std::uint64_t Session::offered_features(const virtio::Device& device) {
  return device.features() | vhost_bits;
}

std::uint64_t Session::offered_protocol_features(const virtio::Device& device) {
  namespace p = wire::protocol;
  std::uint64_t bits = p::mq | p::log_shmfd | p::reply_ack | p::backend_req | p::backend_send_fd |
                       p::inflight_shmfd | p::reset_device | p::configure_mem_slots | p::status;
  if (device.kind() == virtio::DeviceKind::net) bits |= p::rarp | p::mtu;
  if (device.offers_config()) bits |= p::config;
  return bits;
}

Session::Handled Session::get_features(Message&) {
  reply_u64(offered_features(device_));
  return Progress::replied;
}

Session::Handled Session::set_features(Message& message) {
  const auto wanted = message.as<std::uint64_t>();
  if ((wanted & ~offered_features(device_)) != 0) return base::fail("bits that were not offered");
  const auto changed = features_ ^ wanted;
  if (any_started() && (changed & ~virtio::feature::log_all) != 0) {
    // A front-end that resets its guest by disabling the rings negotiates anew over them.
    if (std::ranges::any_of(rings_, [this](const Ring& r) { return r.started && enabled(r); })) {
      return base::fail("bits other than LOG_ALL changed under a running ring");
    }
    waiting_ = true;
    stop_all([this, wanted] {
      apply_features(wanted);
      finish({});
    });
    return Progress::pending;
  }
  const bool relog = any_started() && (changed & virtio::feature::log_all) != 0;
  apply_features(wanted);
  if (!relog) return Progress::done;
  device_.set_log(active_log(), finish_when_done());
  return Progress::pending;
}

void Session::apply_features(std::uint64_t features) {
  features_ = features;
  if (!any_started()) device_.set_features(features & ~vhost_bits);
}

Session::Handled Session::get_protocol_features(Message&) {
  reply_u64(offered_protocol_features(device_));
  return Progress::replied;
}

Session::Handled Session::set_protocol_features(Message& message) {
  const auto wanted = message.as<std::uint64_t>();
  if ((wanted & ~offered_protocol_features(device_)) != 0) {
    return base::fail("bits that were not offered");
  }
  protocol_ = wanted;
  return Progress::done;
}

// Front-ends differ in when they send it, so nothing depends on it.
Session::Handled Session::set_owner(Message&) {
  return Progress::done;
}

// Virtqueues, for net too: Cloud Hypervisor and crosvm count virtqueues and must find two for a
// pair, QEMU compares it with pairs and is content with more.
Session::Handled Session::get_queue_num(Message&) {
  reply_u64(device_.queues_max());
  return Progress::replied;
}

Session::Handled Session::set_status(Message& message) {
  const auto status = message.as<std::uint64_t>();
  if (status > 0xff) return base::fail("a status of more than a byte");
  status_ = static_cast<std::uint8_t>(status);
  if (status_ != 0 || !any_started()) return Progress::done;
  waiting_ = true;
  reset_rings([this] { finish({}); });
  return Progress::pending;
}

Session::Handled Session::get_status(Message&) {
  reply_u64(status_);
  return Progress::replied;
}

// RESET_DEVICE, and RESET_OWNER, which the specification lets us take for "disable all rings". The
// memory table stays: front-ends send only what changes in it.
Session::Handled Session::reset(Message&) {
  status_ = 0;
  waiting_ = true;
  reset_rings([this] { finish({}); });
  return Progress::pending;
}

// The queue is poisoned already; here it is only told.
void Session::note_fault(unsigned index, virtio::Fault fault) {
  if (status_ != 0) status_ |= status_needs_reset;
  spdlog::warn("{}: front-end {}: queue {} is stopped: {}", device_.name(), peer_, index,
               virtio::name_of(fault));
  if (fault_hook_) fault_hook_(index, fault);
}

}  // namespace millrace::vhost
