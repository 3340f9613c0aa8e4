// RingNic: an ethdev with a receive ring like a real one's, whose driver takes an mbuf from its
// pool for each frame that it hands out, and whose device writes through an IOMMU. One at a time.
// Needs an EAL that was started. Threads: control, but for the driver's burst, which is a
// reactor's.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "switch/direct_pool.hpp"
#include "switch/dma_regions.hpp"
#include "switch/ethdev_device.hpp"

namespace millrace::vswitch::testing {

class RingNic {
 public:
  static constexpr std::uint16_t ring = 32;
  static constexpr std::uint32_t frame_max = 1522;

  RingNic();
  ~RingNic();
  RingNic(const RingNic&) = delete;
  RingNic& operator=(const RingNic&) = delete;

  [[nodiscard]] EthdevQueueConfig queue() const;
  // The driver fills its ring; takes it back, and hands out nothing any more.
  void start();
  void stop();
  // Memory that the device reaches, besides that of the pool.
  void map(std::vector<DmaRegion> regions);

  // A frame comes: where its first byte was written; null: the ring is full of frames, or the
  // address of the next mbuf is not mapped, which counts. `tag`: one that the device took off.
  std::byte* frame(std::span<const std::uint8_t> bytes, bool verified = false,
                   std::optional<std::uint16_t> tag = std::nullopt);
  std::atomic<unsigned> faults{0};
  // Mbufs of the ring that lie in memory of the pool's own.
  [[nodiscard]] unsigned at_home();

 private:
  friend std::uint16_t ring_nic_burst(void*, rte_mbuf** out, std::uint16_t count);
  struct Slot {
    rte_mbuf* mbuf;
    bool done;
  };
  [[nodiscard]] std::byte* reach(const rte_mbuf& mbuf, std::size_t bytes) const;

  std::unique_ptr<EthdevDevice> device_;
  std::unique_ptr<DirectPool> pool_;
  std::mutex mutex_;  // of what follows
  std::vector<Slot> slots_;
  std::size_t next_ = 0, write_ = 0;
  std::vector<DmaRegion> regions_;
};

}  // namespace millrace::vswitch::testing
