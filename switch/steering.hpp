// Steering: by which of its endpoints a port receives a packet, where the port's owner chose (RSS,
// virtio 1.2 §5.1.6.5.7). A port without one spreads its flows by a hash of our own.
// Thread: made by control, constant from then on, read by every reactor.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "switch/packet_hash.hpp"

namespace millrace::vswitch {

struct Steering {
  static constexpr std::uint16_t entries_max = 128;

  std::shared_ptr<const PacketHash> hash;  // never nullptr
  std::uint16_t mask = 0;                  // entries in use, less one; they are a power of two
  std::uint16_t unclassified = 0;          // the slot of packets without a hash
  std::array<std::uint16_t, entries_max> slots{};
};

}  // namespace millrace::vswitch
