// WireNic: an ethdev that puts 802.1Q tags on and takes them off, between a test and a wire that
// the test reads and writes. One at a time. Needs an EAL that was started. Threads: control, but
// for the driver's calls, which are a reactor's; the test looks while that is between two of its
// commands.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "switch/ethdev_device.hpp"
#include "switch/testing/frames.hpp"

struct rte_mbuf;

namespace millrace::vswitch::testing {

class WireNic {
 public:
  WireNic();
  ~WireNic();
  WireNic(const WireNic&) = delete;
  WireNic& operator=(const WireNic&) = delete;

  // Its queue. It checksums and makes segments by itself, if it shall.
  struct Abilities {
    bool insert = true, strip = true, checksum = false, tso = false;
    std::uint32_t zero_copy_min = 0;
  };
  [[nodiscard]] EthdevQueueConfig queue(const Abilities& abilities) const;

  // What was sent, as the wire has it: with the tag that the driver was asked for.
  struct Sent {
    std::array<std::uint8_t, 10'000> bytes;
    std::size_t size = 0;
    unsigned segments = 0;
    unsigned l2 = 0, l3 = 0, l4 = 0, segment_size = 0;  // as the driver was told
    bool tagged = false, checksum = false, tso = false;
    bool prepared = false;  // by the driver, before it was sent
    [[nodiscard]] Bytes frame() const {
      return Bytes(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
    }
  };
  // Since the last time.
  [[nodiscard]] std::vector<Sent> sent();

  // Frames come, which the driver hands out in one burst, with their outermost tag off where it
  // `strips`. Of a verified one the L4 checksum was found right.
  void receive(const std::vector<Bytes>& frames, bool strips = true, bool verified = false);
  [[nodiscard]] bool received_all();

 private:
  friend std::uint16_t wire_nic_receive(void*, rte_mbuf** out, std::uint16_t count);
  friend std::uint16_t wire_nic_prepare(void*, rte_mbuf** mbufs, std::uint16_t count);
  friend std::uint16_t wire_nic_send(void*, rte_mbuf** mbufs, std::uint16_t count);
  void keep(const rte_mbuf& mbuf) noexcept;

  std::unique_ptr<EthdevDevice> device_;
  std::vector<Sent> sent_;
  std::size_t sent_count_ = 0;
  std::array<rte_mbuf*, burst_max> prepared_{};
  std::size_t prepared_count_ = 0;
  std::mutex mutex_;  // of what follows
  std::vector<rte_mbuf*> coming_;
  std::size_t handed_ = 0;
};

}  // namespace millrace::vswitch::testing
