// BackendLink: bringing the back-end to what the device wants.
#include <cstring>
#include <utility>

#include "base/log.hpp"
#include "virtio/features.hpp"
#include "virtio/shared.hpp"
#include "virtio/wire/net.hpp"
#include "virtio/wire/pci.hpp"
#include "virtio/wire/ring.hpp"
#include "vmm/backend_link.hpp"
#include "vmm/signal.hpp"

namespace millrace::vmm {

namespace {

namespace status = virtio::wire::device_status;
namespace protocol = vhost::wire::protocol;
namespace wire = virtio::wire;
using base::fail, base::Result;
using virtio::wire::NetConfig;

constexpr std::uint8_t status_driving =
    status::acknowledge | status::driver | status::features_ok | status::driver_ok;
// A packed ring at its start: index 0, wrap counter 1, of the driver's and of the device's place.
constexpr std::uint32_t packed_start = 0x8000'8000;
// How long a guest's reset waits for a back-end that we hung up on and that nobody took the place
// of. It may still write to the guest's memory; but a guest must not wait for ever.
constexpr std::chrono::seconds abandon_after{10};

// Bytes of a queue's three parts (virtio 1.2 §2.7 and §2.8). The event words exist in any case in
// what drivers lay out, and belong to the parts only with EVENT_IDX.
struct Parts {
  std::uint64_t descriptors, driver, device;
  std::size_t descriptors_align, driver_align, device_align;
};
Parts parts_of(std::uint64_t size, std::uint64_t features) {
  if ((features & virtio::feature::ring_packed) != 0) {
    return {size * sizeof(wire::PackedDescriptor),
            sizeof(wire::EventSuppression),
            sizeof(wire::EventSuppression),
            wire::packed_descriptor_align,
            wire::event_align,
            wire::event_align};
  }
  const std::uint64_t event = (features & virtio::feature::event_idx) != 0 ? 2 : 0;
  return {size * sizeof(wire::Descriptor),
          sizeof(wire::Available) + size * sizeof(base::le16) + event,
          sizeof(wire::Used) + size * sizeof(wire::UsedElement) + event,
          wire::split_descriptor_align,
          wire::available_align,
          wire::used_align};
}

}  // namespace

void BackendLink::apply() {
  Wanted wanted;
  {
    const std::lock_guard lock{mutex_};
    wanted = wanted_;
  }
  if (wanted.stop) return apply_stop();
  apply_queue_stops(wanted);
  if (connection_ == nullptr || !wanted.active || wanted.broken) return;
  hopeless_ = false;
  const auto ok = bring_to(wanted);
  if (ok) return;
  if (hopeless_ || connection_->refused()) return give_up(ok.error().message);
  disconnect(ok.error().message);
}

// Whether nobody can touch the guest's memory any more, given that there is no connection.
bool BackendLink::let_go() const {
  return connection_ == nullptr && (!cut_at_ || Clock::now() - *cut_at_ >= abandon_after);
}

void BackendLink::apply_stop() {
  for (unsigned i = 0; connection_ != nullptr && i < running_.size(); ++i) {
    if (!running_[i]) continue;
    const auto ok = connection_->stop(shape_.vring_of(i, wanted_features_));
    running_[i] = false;
    if (!ok) disconnect(ok.error().message);
  }
  if (connection_ != nullptr && set_up_) {
    if (const auto ok = connection_->reset(); !ok) disconnect(ok.error().message);
  }
  if (connection_ == nullptr && !let_go()) return;
  if (connection_ == nullptr && cut_at_) {
    spdlog::warn("{}: the guest's reset goes on without the back-end's answer", config_.socket);
  }
  set_up_ = restoring_ = false;
  begun_.assign(begun_.size(), false);
  inflight_ = {};
  {
    const std::lock_guard lock{mutex_};
    const auto queues = wanted_.queues.size();
    wanted_ = Wanted{};
    wanted_.queues.resize(queues);
    written_.notify_all();
  }
  listener_->stopped();
}

void BackendLink::apply_queue_stops(const Wanted& wanted) {
  for (unsigned i = 0; i < wanted.queues.size(); ++i) {
    if (!wanted.queues[i].stop) continue;
    const unsigned vring = shape_.vring_of(i, wanted.features);
    if (connection_ != nullptr && running_[i]) {
      const auto ok = connection_->stop(vring);
      running_[i] = false;
      if (!ok) disconnect(ok.error().message);
    }
    if (connection_ == nullptr && !let_go()) continue;
    clear_part(inflight_, vring, (wanted.features & virtio::feature::ring_packed) != 0);
    begun_[i] = false;
    {
      const std::lock_guard lock{mutex_};
      wanted_.queues[i].stop = false;
    }
    listener_->queue_stopped(i);
  }
}

Result<void> BackendLink::bring_to(const Wanted& wanted) {
  const bool was_set_up = set_up_;
  if (!set_up_) {
    if (const auto ok = begin(wanted); !ok) return ok;
  }
  if (wanted.field_new) {
    if (const auto ok = write_field(wanted); !ok) return ok;
  }
  for (unsigned i = 0; i < wanted.queues.size(); ++i) {
    const auto& wish = wanted.queues[i];
    if (!wish.queue) continue;
    if (!running_[i]) {
      if (const auto ok = start_ring(wanted, *wish.queue); !ok) return ok;
    } else if (wish.new_call) {
      const auto vring = shape_.vring_of(i, wanted.features);
      if (const auto ok = connection_->set_call(vring, wish.queue->call); !ok) return ok;
    }
    const std::lock_guard lock{mutex_};
    auto& now = wanted_.queues[i];
    if (now.queue && now.queue->call == wish.queue->call) now.new_call = false;
  }
  if (was_set_up) return {};
  if (const auto ok = connection_->set_status(status_driving); !ok) return ok;
  if (comes_with_record()) {
    if (const auto ok = renew_config(); !ok) return ok;
  }
  return std::exchange(restoring_, false) ? restore_others(wanted) : Result<void>{};
}

Result<void> BackendLink::begin(const Wanted& wanted) {
  wanted_features_ = wanted.features;
  auto features = wanted.features;
  // An address that we gave the NIC ourselves is no matter of a back-end that offers none.
  if (config_.shape.kind == DeviceKind::net) {
    features &= ~virtio::wire::net_feature::mac | connection_->offer().features;
  }
  if (const auto ok = connection_->set_features(features); !ok) return ok;
  if (const auto ok = share_memory(); !ok) return ok;
  if (const auto ok = connection_->share_inflight(inflight_, shape_.vrings, config_.queue_size);
      !ok) {
    return ok;
  }
  const bool net = config_.shape.kind == DeviceKind::net;
  if (net && (wanted.features & virtio::wire::net_feature::mtu) != 0) {
    NetConfig config;
    std::memcpy(&config, shape_.config.data(), sizeof config);
    if (const auto ok = connection_->set_mtu(config.mtu.host()); !ok) return ok;
  }
  set_up_ = true;
  return wanted.field ? write_field(wanted) : Result<void>{};
}

// All of it, or what was added since.
Result<void> BackendLink::share_memory() {
  const auto memory = ram_.regions();
  if (memory.size() == regions_shared_) return {};
  if (const auto ok = connection_->share(memory, regions_shared_); !ok) return ok;
  regions_shared_ = memory.size();
  return {};
}

void BackendLink::take_memory() {
  {
    const std::lock_guard lock{mutex_};
    if (!std::exchange(memory_new_, false)) return;
  }
  // A back-end that has none yet will be given all of it.
  if (connection_ != nullptr && regions_shared_ != 0) {
    if (const auto ok = share_memory(); !ok) disconnect(ok.error().message);
  }
  ram_.taken(*this);
}

// A "no" is the driver's to know: the field keeps its value.
Result<void> BackendLink::write_field(const Wanted& wanted) {
  const auto field = writable_field(config_.shape.kind, shape_.features);
  const auto ok = field ? connection_->write_config(field->offset, *wanted.field)
                        : Result<void>{fail("the driver's field is not there any more")};
  if (!ok && !connection_->refused()) return ok;
  {
    const std::lock_guard lock{mutex_};
    if (wanted_.field != wanted.field) return {};  // there is a newer one
    if (!ok) wanted_.field.reset();
    wanted_.field_new = false;
    written_.notify_all();
  }
  // What was read before it had the record is not true any more.
  return comes_with_record() ? renew_config() : publish_config();
}

// Where the queue lies and stands, for the back-end.
Result<BackendConnection::Ring> BackendLink::place(const VirtQueue& queue, std::uint64_t features) {
  const auto parts = parts_of(queue.size, features);
  const auto descriptors = ram_.at(queue.descriptors, parts.descriptors);
  const auto driver = ram_.at(queue.driver, parts.driver);
  const auto device = ram_.at(queue.device, parts.device);
  const std::string name = "the guest's queue " + std::to_string(queue.index);
  hopeless_ = true;
  if (descriptors.empty() || driver.empty() || device.empty()) {
    return fail(name + " lies outside of its memory");
  }
  if (queue.descriptors % parts.descriptors_align != 0 || queue.driver % parts.driver_align != 0 ||
      queue.device % parts.device_align != 0) {
    return fail(name + " is not aligned as virtio wants it");
  }
  const bool packed = (features & virtio::feature::ring_packed) != 0;
  std::uint32_t base = packed ? packed_start : 0;
  if (begun_[queue.index] && packed && !inflight_.fd.valid()) {
    return fail(name +
                " is packed and nothing says where it stood: the back-end keeps no "
                "inflight region");
  }
  if (begun_[queue.index] && !packed) {
    const auto* used = reinterpret_cast<const wire::Used*>(device.data());
    base = virtio::load_acquire(&used->index).host();
  }
  hopeless_ = false;
  return BackendConnection::Ring{
      .vring = shape_.vring_of(queue.index, features),
      .size = queue.size,
      .descriptors = reinterpret_cast<std::uintptr_t>(descriptors.data()),
      .driver = reinterpret_cast<std::uintptr_t>(driver.data()),
      .device = reinterpret_cast<std::uintptr_t>(device.data()),
      .device_guest = queue.device,
      .base = base,
      .kick = queue.kick,
      .call = queue.call,
      .error = ring_error_.get()};
}

Result<void> BackendLink::start_ring(const Wanted& wanted, const VirtQueue& queue) {
  const auto ring = place(queue, wanted.features);
  if (!ring) return base::Unexpected{ring.error()};
  // From here on it may have taken buffers, whatever it answers.
  running_[queue.index] = begun_[queue.index] = true;
  if (const auto ok = connection_->start(*ring); !ok) {
    return fail("queue " + std::to_string(queue.index) + ": " + ok.error().message);
  }
  return {};
}

// What a back-end lost with the one before: its switch does not know where the guest is, and kicks
// and calls may have come to nobody. One too many of either does no harm.
Result<void> BackendLink::restore_others(const Wanted& wanted) {
  if (config_.shape.kind == DeviceKind::net && connection_->has(protocol::rarp) &&
      (wanted.features & virtio::wire::net_feature::mac) != 0) {
    std::array<std::uint8_t, 6> mac;
    std::memcpy(mac.data(), shape_.config.data(), mac.size());
    const auto ok = connection_->announce(mac);
    if (!ok && !connection_->refused()) return ok;
  }
  for (const auto& wish : wanted.queues) {
    if (!wish.queue) continue;
    signal(wish.queue->kick);
    signal(wish.queue->call);
  }
  return {};
}

void BackendLink::give_up(const std::string& why) {
  blame_guest(why);
  {
    const std::lock_guard lock{mutex_};
    wanted_.broken = true;
    wanted_.field_new = false;
    written_.notify_all();
  }
  listener_->needs_reset();
}

}  // namespace millrace::vmm
