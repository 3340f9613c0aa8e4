// TxWorker: a guest's transmit queue: takes frames from the ring and forwards them into the switch.
//
// One visit: take a burst and ask for the beginnings of its frames, fetch each virtio_net_hdr and
// frame header once, forward, give every chain back, signal once. Nothing is in flight between
// visits, but for what is lent to a device (loans.hpp), where lending was turned on. A frame that
// cannot be one (shorter than an Ethernet header, an offload that was not negotiated) is dropped
// and counted; a fault of the ring poisons the queue. The offload request is checked against the
// frame by the Bridge.
//
// A ring that was enabled and then disabled is emptied without sending (vhost-user, "Ring states");
// one that was not enabled yet keeps its frames until it is.
// Thread: the owning reactor, but for the constructor (control).
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "net/call_pacer.hpp"
#include "net/loans.hpp"
#include "net/switch_side.hpp"
#include "switch/packet.hpp"
#include "virtio/chain.hpp"
#include "virtio/queue.hpp"

namespace millrace::net {

class TxWorker final : public virtio::QueueWorker {
 public:
  // `features`: negotiated, ring and device bits.
  TxWorker(std::unique_ptr<virtio::Queue> queue, std::uint64_t features, vswitch::PortId port,
           SwitchSides sides);

  bool poll() noexcept override;
  void come_near() noexcept override;
  bool arm() noexcept override;
  void disarm() noexcept override;
  [[nodiscard]] std::uint64_t sleep_ns_max() const noexcept override;
  // What is lent comes back from outside of poll(), which has to publish it.
  [[nodiscard]] bool may_rest() const noexcept override {
    return !pacer_.owes() && (loans_ == nullptr || (loans_->out() == 0 && !loans_->returned()));
  }
  // How calls to the driver are held back from now on.
  void set_pace(const Pace& pace) noexcept { pacer_.set(pace, queue(), reactor_->calls()); }

  // Whether packets may be held beyond their delivery (Packet::completion). `fresh`: made by
  // control; what is not needed of it stays there.
  void set_lending(bool lends, std::unique_ptr<Loans>& fresh) noexcept;

  [[nodiscard]] bool can_move() const noexcept override { return true; }
  void attached(base::Reactor& reactor) noexcept override;
  void enabled_changed(bool enabled) noexcept override;
  void quiesce() noexcept override;
  [[nodiscard]] bool drained() noexcept override { return loans_ == nullptr || loans_->out() == 0; }
  // Nothing is lent until all of the old memory came back.
  [[nodiscard]] bool memory_released() noexcept override;
  void detached(base::Reactor& reactor) noexcept override;

  // Frames handed to the switch. Thread: any.
  [[nodiscard]] const QueueTraffic& traffic() const noexcept { return traffic_; }

 private:
  // Frames stay in the ring: not enabled yet, stopping, or poisoned.
  [[nodiscard]] bool holding() noexcept;
  // Publishes what came back. True: there was some.
  bool publish_returned() noexcept;
  // What this visit took may be lent.
  void offer_to_lend() noexcept;
  [[nodiscard]] bool owes() const noexcept;
  // What was taken in this visit, but what is lent or has to wait. Answers how many were given.
  template <class R>
  [[nodiscard]] std::size_t give_back(R& ring) noexcept;
  void choose_lender() noexcept;
  template <class R>
  bool visit(R& ring) noexcept;
  // Fills tickets_, and the burst but for their headers; returns the ring's last word.
  template <class R>
  virtio::Take collect(R& ring) noexcept;
  template <class Cursor>
  [[gnu::always_inline]] std::uint64_t collect_usual(Cursor& cursor,
                                                     std::uint64_t bytes_most) noexcept;
  // What is known of a frame before its headers are; `number`: of the buffer in this visit.
  void begin(vswitch::Packet& packet, std::size_t length, std::size_t number) const noexcept;
  // False: the chain is no frame.
  [[nodiscard]] bool describe(vswitch::Packet& packet, const std::byte*& head) noexcept;
  void name_payload(vswitch::Packet& packet) noexcept;
  // Fetches the headers, and hands over what may be sent.
  void forward() noexcept;
  [[nodiscard]] bool fetch(vswitch::Packet& packet, const std::byte* head) noexcept;

  const std::uint64_t features_;
  const std::size_t header_size_;
  const vswitch::PortId port_;
  const SwitchSides sides_;
  SwitchSide side_;
  base::Reactor* reactor_ = nullptr;
  bool quiesced_ = false;
  bool was_enabled_ = false;
  CallPacer pacer_;
  QueueTraffic traffic_;
  std::unique_ptr<Loans> loans_;           // null: lending was never turned on
  vswitch::Completion* lender_ = nullptr;  // of the packets that are taken now
  bool lends_ = false, changing_memory_ = false;

  std::size_t taken_ = 0, count_ = 0;  // of tickets_ and burst_ in this visit
  bool bounce_used_ = false;
  std::array<virtio::Ticket, vswitch::burst_max> tickets_;
  vswitch::Packet* burst_ = nullptr;  // burst_max of them, of the bridge
  // Where a packet's net header and frame header lie; nullptr: they are in parts, and fetched.
  std::array<const std::byte*, vswitch::burst_max> heads_;
  virtio::Chain chain_;
  std::unique_ptr<std::byte[]> bounce_;  // Packet::length_max bytes
};

}  // namespace millrace::net
