// Link: packets and learned addresses on their way from one reactor to another, and the way back
// for their memory. Bounded, one producer and one consumer each way, no lock.
//
// Parcel: an owned copy of a packet, in chunks of its source reactor's ParcelPool. The receiver
// delivers the packet inside it and gives the parcel back through the link; the source frees its
// chunks.
#pragma once

#include <array>
#include <boost/lockfree/spsc_queue.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "switch/mac_table.hpp"
#include "switch/packet.hpp"

namespace millrace::vswitch {

inline constexpr std::size_t chunk_size = 4096;

// Added to a mirror's destination, which is not a port like others.
inline constexpr PortId copy_mark = 0x8000;
static_assert(ports_max <= copy_mark);

struct Parcel {
  static constexpr std::size_t chunks_max =
      17;  // the first holds this struct and payload behind it

  Packet packet;  // untagged form; views lie in the chunks
  // Receiver; no_port: all members of packet.vlan on that reactor; with copy_mark: of a copy.
  PortId port = no_port;
  std::uint16_t slot = 0;  // which of its endpoints
  std::uint16_t chunk_count = 0;
  std::array<std::byte*, chunks_max> chunks;
};
inline constexpr std::size_t parcel_inline = chunk_size - sizeof(Parcel);
static_assert(parcel_inline >= 1536 && std::is_trivially_destructible_v<Parcel>);
static_assert(parcel_inline + (Parcel::chunks_max - 1) * chunk_size >= Packet::length_max);

// Fixed memory for the parcels of one source reactor. Threads: made by control, then its reactor
// only.
class ParcelPool {
 public:
  static constexpr std::size_t chunk_count = 4096;  // 16 MiB; untouched pages cost nothing

  ParcelPool();
  // Copies `packet` into a parcel of at most `chunks_allowed` chunks; nullptr: not enough are free.
  [[nodiscard]] Parcel* pack(const Packet& packet, std::size_t chunks_allowed) noexcept;
  void free(Parcel& parcel) noexcept;
  [[nodiscard]] std::size_t available() const noexcept { return free_; }

 private:
  struct Unmap {
    void operator()(std::byte* memory) const noexcept;
  };
  std::unique_ptr<std::byte, Unmap> memory_;
  std::unique_ptr<std::byte*[]> stack_;  // the first free_ are free
  std::size_t free_ = chunk_count;
};

struct LearnEvent {
  MacKey key;
  PortId port;
};

class Link {
 public:
  static constexpr std::size_t parcels_max = 1024, events_max = 1024;
  // One stalled receiver must not take what packets to the others need.
  static constexpr std::size_t chunks_max = ParcelPool::chunk_count / 2;
  // Copies for mirrors take what others leave: none where so much is under way, to this reactor or
  // to all.
  static constexpr std::size_t copies_max = parcels_max / 4;
  static constexpr std::size_t spare_min = ParcelPool::chunk_count / 2;

  // --- Source reactor ---
  // Copies and sends; false: the link is full, or the pool is empty.
  [[nodiscard]] bool send(ParcelPool& pool, const Packet& packet, PortId port,
                          std::uint16_t slot) noexcept;
  // Whether there is room for a copy.
  [[nodiscard]] bool spare(const ParcelPool& pool) const noexcept {
    return sent_ - came_back_ < copies_max && chunks_out_ < chunks_max / 4 &&
           pool.available() >= spare_min;
  }
  [[nodiscard]] bool tell(const LearnEvent& event) noexcept { return events_.push(event); }
  // Frees what came back.
  void reclaim(ParcelPool& pool) noexcept;
  // Parcels since the start; they come back in their order, each delivered.
  [[nodiscard]] std::uint64_t sent() const noexcept { return sent_; }
  [[nodiscard]] std::uint64_t came_back() const noexcept { return came_back_; }

  // --- Destination reactor ---
  [[nodiscard]] Parcel* take() noexcept {
    Parcel* parcel = nullptr;
    return parcels_.pop(parcel) ? parcel : nullptr;
  }
  void give_back(Parcel* parcel) noexcept;
  [[nodiscard]] bool hear(LearnEvent& event) noexcept { return events_.pop(event); }
  [[nodiscard]] bool pending() const noexcept {
    return parcels_.read_available() != 0 || events_.read_available() != 0;
  }

 private:
  boost::lockfree::spsc_queue<Parcel*, boost::lockfree::capacity<parcels_max>> parcels_, back_;
  boost::lockfree::spsc_queue<LearnEvent, boost::lockfree::capacity<events_max>> events_;
  std::uint64_t sent_ = 0, came_back_ = 0;  // the source's: parcels
  std::size_t chunks_out_ = 0;              // the source's: sent and not come back yet
};

}  // namespace millrace::vswitch
