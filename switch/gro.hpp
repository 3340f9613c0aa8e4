// Gro: TCP frames of one flow that came in one burst become one large packet, as a guest with TSO
// sends them: a receiver that takes large packets has one to handle instead of many. Segmenter
// makes the same frames of it again for any other.
//
// Frames are joined only where nothing is lost by it: each follows the one before (sequence, IPv4
// id), their headers are else the same, options included, their checksums were found right, and
// only the last may be shorter. Frames of one flow never pass each other. Nothing is copied: the
// large packet's payload lies where the frames' did. Never allocates. Thread: one reactor.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "switch/gso.hpp"
#include "switch/packet.hpp"

namespace millrace::vswitch {

class Gro {
 public:
  // A frame's first byte, where the whole frame lies in one piece until the packets are forwarded;
  // null: it does not, and the frame is left alone.
  using Place = const std::byte*;

  // Joins what can be joined of `packets`, each with its header fetched from the place of the same
  // number. The packets that are left come first, in their order; answers how many they are.
  [[nodiscard]] std::size_t join(std::span<Packet> packets, std::span<const Place> places) noexcept;

 private:
  static constexpr std::size_t flows_max = 8;  // followed at a time; the oldest makes room
  struct Flow {
    Packet* whole = nullptr;  // null: none is followed here
    Layers layers;
    std::uint32_t sequence = 0, size = 0;  // of the next frame; payload bytes of the first
    std::uint32_t frames = 0;
    std::uint16_t id = 0;  // of the next frame, IPv4
    bool open = false;     // another frame may follow
  };

  void look_at(Packet& packet, Place place, bool& joined) noexcept;
  [[nodiscard]] static bool same_flow(const Flow& flow, const Packet& packet,
                                      const Layers& layers) noexcept;
  [[nodiscard]] static bool follows(const Flow& flow, const Packet& packet,
                                    std::uint32_t payload) noexcept;
  static void append(Flow& flow, const Packet& packet, Place place, std::uint32_t payload) noexcept;
  void begin(Packet& packet, const Layers& layers, std::uint32_t payload) noexcept;
  static void finish(Flow& flow) noexcept;

  std::array<Flow, flows_max> flows_;
  std::size_t next_ = 0;  // of flows_, to be used next
};

}  // namespace millrace::vswitch
