#include "net/control_queue.hpp"

#include "base/check.hpp"
#include "net/control_read.hpp"
#include "virtio/wire/net.hpp"

namespace millrace::net {

namespace wire = virtio::wire;
namespace nf = virtio::wire::net_feature;
using base::Progress;
using virtio::Fault;
using virtio::Take;

namespace {

// One of the two tables of MAC TABLE_SET. Moves `offset` behind it; false where it is cut short.
[[nodiscard]] bool read_table(const virtio::Chain& chain, std::size_t& offset,
                              RxFilter::Addresses& out) noexcept {
  base::le32 entries{};
  if (!read_at(chain, offset, entries)) return false;
  offset += sizeof entries;
  out.count = entries.host();
  const auto bytes = std::uint64_t{out.count} * sizeof(RxFilter::Mac);
  if (bytes > chain.readable_bytes() - offset) return false;
  if (out.count <= RxFilter::addresses_max) {
    const auto kept = std::as_writable_bytes(std::span{out.macs}).first(bytes);
    if (virtio::copy_from(chain.readable(), offset, kept) != bytes) return false;
  }
  offset += bytes;
  return true;
}
}  // namespace

ControlQueue::ControlQueue(std::unique_ptr<virtio::Queue> queue, std::uint64_t features,
                           unsigned pairs)
    : QueueWorker{std::move(queue)}, features_{features}, pairs_{pairs} {}

void ControlQueue::attached(base::Reactor& reactor) noexcept {
  reactor_ = &reactor;
  quiesced_ = false;
  disarm();
}

void ControlQueue::detached(base::Reactor&) noexcept {
  reactor_ = nullptr;
}

void ControlQueue::quiesce() noexcept {
  quiesced_ = true;
  if (doorbell_ == nullptr) return;
  reactor_->complete(*doorbell_);
  doorbell_ = nullptr;
}

Progress ControlQueue::take_doorbell(Doorbell& doorbell) noexcept {
  if (waiting_) answer(doorbell.accepted_);
  if (quiesced_) return Progress::done;
  CHECK(doorbell_ == nullptr);
  doorbell_ = &doorbell;
  return Progress::pending;
}

bool ControlQueue::ready() noexcept {
  return doorbell_ != nullptr && !quiesced_ && queue().fault() == Fault::none;
}

bool ControlQueue::poll() noexcept {
  if (!ready()) return false;
  return queue().with_ring([this](auto& ring) { return visit(ring); });
}

bool ControlQueue::arm() noexcept {
  if (!ready()) return false;
  return queue().with_ring([](auto& ring) { return ring.arm(); });
}

void ControlQueue::disarm() noexcept {
  queue().with_ring([](auto& ring) { ring.disarm(); });
}

template <class R>
bool ControlQueue::visit(R& ring) noexcept {
  const Take take = ring.take(chain_);
  if (take == Take::empty) return false;
  if (take == Take::fault) {
    queue().poison(ring.fault(), reactor_->calls());
    return true;
  }
  if (chain_.writable_bytes() == 0) {
    queue().poison(Fault::request_malformed, reactor_->calls());
    return true;
  }
  const Verdict verdict = read();
  waiting_ = true;
  if (verdict != Verdict::control) {
    answer(verdict == Verdict::ok);
    return true;
  }
  doorbell_->request_ = request_;
  reactor_->complete(*doorbell_);
  doorbell_ = nullptr;
  return true;
}

ControlQueue::Verdict ControlQueue::read() noexcept {
  wire::NetControl control{};
  if (!read_at(chain_, 0, control)) return Verdict::error;
  const auto is = [&control](std::uint8_t class_id, std::uint8_t command) {
    return control.class_id == class_id && control.command == command;
  };
  if (is(wire::net_class::mq, wire::net_mq_command::vq_pairs_set)) return read_pairs();
  if (is(wire::net_class::mq, wire::net_mq_command::rss_config)) return read_steering(true);
  if (is(wire::net_class::mq, wire::net_mq_command::hash_config)) return read_steering(false);
  if (is(wire::net_class::notf_coal, wire::net_coal_command::tx_set)) return read_coalescing(true);
  if (is(wire::net_class::notf_coal, wire::net_coal_command::rx_set)) return read_coalescing(false);
  if (is(wire::net_class::mac, wire::net_mac_command::addr_set)) return read_mac();
  if (is(wire::net_class::mac, wire::net_mac_command::table_set)) return read_addresses();
  if (control.class_id == wire::net_class::rx) return read_mode(control.command);
  if (is(wire::net_class::vlan, wire::net_vlan_command::add)) return read_vlan(true);
  if (is(wire::net_class::vlan, wire::net_vlan_command::del)) return read_vlan(false);
  if (is(wire::net_class::announce, wire::net_announce_command::ack)) {
    return (features_ & nf::guest_announce) != 0 ? Verdict::ok : Verdict::error;
  }
  return Verdict::error;
}

ControlQueue::Verdict ControlQueue::read_pairs() noexcept {
  base::le16 pairs{};
  if ((features_ & nf::mq) == 0) return Verdict::error;
  if (!read_at(chain_, sizeof(wire::NetControl), pairs)) return Verdict::error;
  if (pairs.host() < 1 || pairs.host() > pairs_) return Verdict::error;
  request_ = {.kind = ControlRequest::Kind::set_pairs, .number = pairs.host()};
  return Verdict::control;
}

ControlQueue::Verdict ControlQueue::read_mac() noexcept {
  std::array<std::uint8_t, 6> mac{};
  if ((features_ & nf::ctrl_mac_addr) == 0) return Verdict::error;
  if (!read_at(chain_, sizeof(wire::NetControl), mac)) return Verdict::error;
  if ((mac[0] & 1) != 0) return Verdict::error;
  request_ = {.kind = ControlRequest::Kind::set_mac, .mac = mac};
  return Verdict::control;
}

// PROMISC and ALLMULTI come with CTRL_RX, the others with CTRL_RX_EXTRA (§5.1.6.5.1).
ControlQueue::Verdict ControlQueue::read_mode(std::uint8_t command) noexcept {
  std::uint8_t on = 0;
  const bool basic = command <= wire::net_rx_command::allmulti;
  if ((features_ & (basic ? nf::ctrl_rx : nf::ctrl_rx_extra)) == 0) return Verdict::error;
  if (command > wire::net_rx_command::nobcast) return Verdict::error;
  if (!read_at(chain_, sizeof(wire::NetControl), on) || on > 1) return Verdict::error;
  request_ = {.kind = ControlRequest::Kind::set_mode, .mode = command, .on = on == 1};
  return Verdict::control;
}

ControlQueue::Verdict ControlQueue::read_addresses() noexcept {
  if ((features_ & nf::ctrl_rx) == 0) return Verdict::error;
  request_ = {.kind = ControlRequest::Kind::set_addresses};
  std::size_t offset = sizeof(wire::NetControl);
  if (!read_table(chain_, offset, request_.stations)) return Verdict::error;
  if (!read_table(chain_, offset, request_.groups)) return Verdict::error;
  return Verdict::control;
}

ControlQueue::Verdict ControlQueue::read_vlan(bool add) noexcept {
  base::le16 vlan{};
  if ((features_ & nf::ctrl_vlan) == 0) return Verdict::error;
  if (!read_at(chain_, sizeof(wire::NetControl), vlan)) return Verdict::error;
  if (vlan.host() >= RxFilter::vlans) return Verdict::error;
  request_ = {.kind = ControlRequest::Kind::set_vlan, .number = vlan.host(), .on = add};
  return Verdict::control;
}

// The whole of RSS, or what is hashed for reports alone.
ControlQueue::Verdict ControlQueue::read_steering(bool whole) noexcept {
  if ((features_ & (whole ? nf::rss : nf::hash_report)) == 0) return Verdict::error;
  request_ = {.kind = whole ? ControlRequest::Kind::set_rss : ControlRequest::Kind::set_hash};
  const bool good =
      whole ? read_rss(chain_, pairs_, request_.rss) : read_hash(chain_, request_.rss.hash);
  return good ? Verdict::control : Verdict::error;
}

ControlQueue::Verdict ControlQueue::read_coalescing(bool transmit) noexcept {
  using Kind = ControlRequest::Kind;
  wire::NetCoalescing asked{};
  if ((features_ & nf::notf_coal) == 0) return Verdict::error;
  if (!read_at(chain_, sizeof(wire::NetControl), asked)) return Verdict::error;
  request_ = {.kind = transmit ? Kind::set_transmit_coalescing : Kind::set_receive_coalescing};
  request_.coalescing = {asked.max_packets.host(), asked.max_usecs.host()};
  return Verdict::control;
}

void ControlQueue::answer(bool accepted) noexcept {
  const auto status =
      static_cast<std::byte>(accepted ? wire::net_control_ok : wire::net_control_error);
  const auto writable = chain_.writable();
  virtio::copy_to(writable, 0, {&status, 1});
  queue().wrote(writable.front(), 1);
  queue().with_ring([this](auto& ring) { ring.give(chain_.ticket(), 1); });
  queue().publish_and_call(reactor_->calls());
  queue().check_memory(reactor_->calls());
  waiting_ = false;
}

}  // namespace millrace::net
