// EthdevQueue: the data path of an uplink: a receive and a transmit queue of a DPDK ethdev.
// Receives views into mbufs, which it frees when forward() returns; transmits copies, or, where its
// device reaches the guest's memory, headers of our own and the payload where it lies
// (ethdev_lending.cpp), and may receive into one guest's own buffers (direct_receive.hpp). Does in
// software what the driver cannot do (checksums, segmentation).
// Threads: made and destroyed by control while no reactor knows it; else its reactor.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>

#include "base/counter.hpp"
#include "base/reactor.hpp"
#include "switch/bridge.hpp"
#include "switch/direct_receive.hpp"
#include "switch/dma_regions.hpp"
#include "switch/gro.hpp"
#include "switch/port.hpp"
#include "switch/vlan_set.hpp"
#include "switch/wire_loans.hpp"

struct rte_mbuf;
struct rte_mempool;

namespace millrace::vswitch {

enum class BondMode : std::uint8_t;

struct EthdevQueueConfig {
  std::uint16_t device = 0, queue = 0;  // DPDK's numbers
  rte_mempool* pool = nullptr;
  bool checksum_offload = false;
  bool tso_offload = false;
  bool vlan_insert = false;  // the device puts tags on
  // It takes them off; of these VLANs, where it is not null: tags of others were somebody else's,
  // and such a frame is as if it had none.
  bool vlan_strip = false;
  std::shared_ptr<const VlanSet> vlans;
  std::uint32_t frame_max = 0;  // longest frame that the device sends, bytes
  int wake_fd = -1;             // readable when a frame waits; -1: the driver has none
  bool pads = false;            // frames are sent with at least 60 bytes
  // Payloads of at least so many bytes go without a copy where they can; 0: none does.
  std::uint32_t zero_copy_min = 0;
  std::uint16_t tx_ring = 0;  // descriptors, for zero copy
  bool interrupts = false;    // wake_fd is the driver's interrupt, on while the queue is armed
  std::optional<std::array<std::uint8_t, 6>> mac;  // the only station that may send here
  BondMode bond{};                                 // of a bond, to be tended to
  // The mbufs of its receive ring, which may lie in a guest's memory; null: they never do.
  DirectPool* direct = nullptr;
  std::uint32_t direct_frame_max = 0;  // the most that the device writes of a frame
  std::uint16_t rx_ring = 0;           // descriptors, with `direct`
  bool gro = false;                    // TCP frames that come in one burst are joined
};

class EthdevQueue final : public base::Poller, public Port {
 public:
  EthdevQueue(const EthdevQueueConfig& config, base::Reactor& reactor, Bridge& bridge,
              PortCounters& counters, PortId port);
  ~EthdevQueue() override;

  // On the reactor. What is lent when it stops is looked after until the device is done with it, or
  // is forgotten.
  void start() noexcept;
  void stop() noexcept;

  bool poll() noexcept override;
  bool arm() noexcept override;
  void disarm() noexcept override;
  [[nodiscard]] std::uint64_t sleep_ns_max() const noexcept override;
  void deliver(std::span<const Packet* const> packets) noexcept override;
  [[nodiscard]] bool tags_by_itself() const noexcept override { return config_.vlan_insert; }
  void deliver_apart(std::span<const Packet* const> packets) noexcept override;

  // Memory that the device reaches from now on. What it replaces comes back in the argument.
  void swap_regions(std::shared_ptr<const DmaRegions>& regions) noexcept { regions_.swap(regions); }
  // What the device was given of guests' memory so far, and whether it is done with all of that.
  struct Given {
    std::uint64_t lent = 0, placed = 0;  // payloads to send, buffers to receive into
  };
  [[nodiscard]] Given given() const noexcept {
    return {loans_ ? loans_->pushed() : 0, direct_ ? direct_->placed() : 0};
  }
  [[nodiscard]] bool done_with(const Given& given) const noexcept {
    return (!loans_ || loans_->popped() >= given.lent) &&
           (!direct_ || direct_->done_with(given.placed));
  }
  // The device is about to be stopped, after stop(): it is not asked anything any more.
  void forget_device() noexcept;
  // It was stopped: it reads nothing any more.
  void abandon() noexcept {
    if (loans_) figures_.zero_copy_done.add(loans_->end_all());
    if (direct_) direct_->give_back();
  }

  // With a receive pool for it: frames go to `sink`, where it takes them, before they go to the
  // switch. Until untie(). `vlan`: see DirectReceive::tie().
  void tie(DirectSink& sink, std::uint16_t vlan = 0) noexcept { direct_->tie(sink, vlan); }
  // Nothing more is received into the sink's buffers, what is there now is taken in, and the queue
  // stops. True: the device has some of them still; then it has to be stopped, and abandon().
  [[nodiscard]] bool halt() noexcept;
  // Nothing of the sink's is out.
  void untie() noexcept { direct_->untie(); }
  // After halt(), the device works again; `wake_fd` as in the configuration.
  void resume(int wake_fd) noexcept;
  // Null: it never receives so. Any thread, of its figures.
  [[nodiscard]] const DirectReceive* direct() const noexcept { return direct_.get(); }

  // Any thread.
  struct Figures {
    base::Counter received, sent;    // frames
    base::Counter joined;            // of those received, that became part of another; see Gro
    base::Counter untagged, tagged;  // received without, sent with a tag, which the device did
    base::Counter interrupts;        // that said that frames wait
    // Frames sent with their payload where it lay, the bytes of it, and those of the frames that
    // the device is done with.
    base::Counter zero_copy_packets, zero_copy_bytes, zero_copy_done;
    // Frames that were copied although zero copy is on, by reason.
    base::Counter copied_small;     // shorter than zero_copy_min
    base::Counter copied_not_lent;  // of another reactor or uplink, a queue that stops, or too much
                                    // of the ring is out
    base::Counter copied_unmapped;  // the device does not reach that memory (yet)
    base::Counter copied_busy;      // too many pieces, or too much of the device's ring is out
    base::Counter copied_slow;      // the device takes long to be done with what it was lent
  };
  [[nodiscard]] const Figures& figures() const noexcept { return figures_; }

 private:
  using Mbufs = std::array<rte_mbuf*, burst_max>;

  [[nodiscard]] unsigned receive() noexcept;
  // What the device wrote where the guest has it is copied to mirrors, before the guest is told.
  void mirror_direct(std::span<rte_mbuf* const> mbufs) noexcept;
  // What came goes to the switch.
  void forward(std::span<rte_mbuf* const> mbufs) noexcept;
  [[nodiscard]] bool takes_whole(const Offload& offload) const noexcept;
  // Takes what the device says of a tag that it took off.
  void take_tag(const rte_mbuf& mbuf, Packet& packet) noexcept;
  // With zero copy or without, with a tag from the device or not, so that packets without them cost
  // nothing for them.
  template <bool lends, bool apart>
  void deliver_all(std::span<const Packet* const> packets) noexcept;
  template <bool lends, bool apart>
  void send_segments(const Packet& whole) noexcept;
  template <bool lends, bool apart>
  void send(const Packet& packet) noexcept;
  void note_tags(std::uint16_t sent) noexcept;
  [[nodiscard]] rte_mbuf* copy(const Packet& packet) noexcept;
  // The same without a copy of the payload; null: it has to be copied.
  [[nodiscard]] rte_mbuf* lend(const Packet& packet, std::uint32_t& receipt) noexcept;
  [[nodiscard]] bool find_pieces(const Packet& packet) noexcept;
  [[nodiscard]] rte_mbuf* chain_pieces(const Packet& packet) noexcept;
  void note_sent(std::uint16_t sent, std::uint16_t count) noexcept;
  bool reap() noexcept;
  [[nodiscard]] bool copy_at_once(const Packet& packet, rte_mbuf& mbuf) const noexcept;
  [[nodiscard]] bool request_offload(const Packet& packet, rte_mbuf& mbuf) noexcept;
  void flush() noexcept;

  EthdevQueueConfig config_;  // its wake_fd may change while it is stopped
  base::Reactor& reactor_;
  Bridge& bridge_;
  PortCounters& counters_;
  const PortId port_;
  const std::uint64_t empty_gap_cycles_, calm_cycles_, slow_cycles_, tend_cycles_;
  std::uint64_t empty_at_ = 0;  // TSC of the last poll that found nothing
  std::uint64_t found_at_ = 0;  // TSC of the last poll that found something
  std::uint64_t tended_at_ = 0;
  Figures figures_;
  Mbufs sending_;
  std::uint32_t sending_count_ = 0;
  bool prepare_ = false;     // a packet in sending_ asks the driver for an offload
  std::uint32_t apart_ = 0;  // those of sending_ that the device is to put a tag on, a bit each
  std::unique_ptr<Packet> segment_;

  // Zero copy; null: it is off.
  class Leftovers;
  struct Lending;
  std::unique_ptr<WireLoans> loans_;
  std::unique_ptr<Lending> lending_;
  std::uint64_t loans_moved_at_ = 0;  // TSC when the first of them came to be the first
  // Nothing is lent: they do not end in time, or the device never showed that it sends.
  bool slow_ = true;
  std::shared_ptr<const DmaRegions> regions_;

  std::unique_ptr<Gro> gro_;               // null: it is off
  bool polled_ = false;                    // it is on its reactor
  bool halted_ = false;                    // its device is about to be stopped, or is
  std::unique_ptr<DirectReceive> direct_;  // null: there is no pool for it
};

}  // namespace millrace::vswitch
