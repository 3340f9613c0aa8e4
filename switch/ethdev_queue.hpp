// EthdevQueue: the data path of an uplink: a receive and a transmit queue of a DPDK ethdev.
// Receives views into mbufs, which it frees when forward() returns; transmits copies. Does in
// software what the driver cannot do (checksums, segmentation). Threads: made and destroyed by
// control while no reactor knows it; else its reactor.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>

#include "base/counter.hpp"
#include "base/reactor.hpp"
#include "switch/bridge.hpp"
#include "switch/port.hpp"

struct rte_mbuf;
struct rte_mempool;

namespace millrace::vswitch {

struct EthdevQueueConfig {
  std::uint16_t device = 0, queue = 0;  // DPDK's numbers
  rte_mempool* pool = nullptr;
  bool checksum_offload = false;
  bool tso_offload = false;
  std::uint32_t frame_max = 0;  // longest frame that the device sends, bytes
  int wake_fd = -1;             // readable when a frame waits; -1: the driver has none
  bool pads = false;            // frames are sent with at least 60 bytes
  bool interrupts = false;      // wake_fd is the driver's interrupt, on while the queue is armed
  std::optional<std::array<std::uint8_t, 6>> mac;  // the only station that may send here
};

class EthdevQueue final : public base::Poller, public Port {
 public:
  EthdevQueue(const EthdevQueueConfig& config, base::Reactor& reactor, Bridge& bridge,
              PortCounters& counters, PortId port);

  // On the reactor.
  void start() noexcept;
  void stop() noexcept;

  bool poll() noexcept override;
  bool arm() noexcept override;
  void disarm() noexcept override;
  [[nodiscard]] std::uint64_t sleep_ns_max() const noexcept override;
  void deliver(std::span<const Packet* const> packets) noexcept override;

  // Any thread.
  struct Figures {
    base::Counter received, sent;  // frames
    base::Counter interrupts;      // that said that frames wait
  };
  [[nodiscard]] const Figures& figures() const noexcept { return figures_; }

 private:
  using Mbufs = std::array<rte_mbuf*, burst_max>;

  [[nodiscard]] unsigned receive() noexcept;
  [[nodiscard]] bool takes_whole(const Offload& offload) const noexcept;
  void send_segments(const Packet& whole) noexcept;
  void send(const Packet& packet) noexcept;
  [[nodiscard]] rte_mbuf* copy(const Packet& packet) noexcept;
  [[nodiscard]] bool copy_at_once(const Packet& packet, rte_mbuf& mbuf) const noexcept;
  [[nodiscard]] bool request_offload(const Packet& packet, rte_mbuf& mbuf) noexcept;
  void flush() noexcept;

  const EthdevQueueConfig config_;
  base::Reactor& reactor_;
  Bridge& bridge_;
  PortCounters& counters_;
  const PortId port_;
  const std::uint64_t empty_gap_cycles_, calm_cycles_;
  std::uint64_t empty_at_ = 0;  // TSC of the last poll that found nothing
  std::uint64_t found_at_ = 0;  // TSC of the last poll that found something
  Figures figures_;
  Mbufs sending_;
  std::uint32_t sending_count_ = 0;
  bool prepare_ = false;  // a packet in sending_ asks the driver for an offload
  std::unique_ptr<std::array<Packet, burst_max>> packets_;
  std::unique_ptr<Packet> segment_;
};

}  // namespace millrace::vswitch
