// The driver's side of one virtqueue at native speed: SplitDriver and PackedDriver, alike.
//
// Every buffer is a chain of the same number of descriptors, so that a ring of N descriptors has
// N / segments places and a buffer is known by its place. A device may finish them in any order.
// Kicks are asked for by the device (no event index here), calls are never. One thread; the ring's
// guest outlives the driver.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "bench/socket_guest.hpp"

namespace millrace::bench {

struct Segment {
  std::uint64_t address = 0;  // guest's
  std::uint32_t length = 0;
  bool writable = false;  // by the device
};

class SplitDriver {
 public:
  SplitDriver(SocketGuest& guest, unsigned ring, unsigned segments);

  // How many buffers can be with the device at once.
  [[nodiscard]] unsigned places() const { return places_; }
  [[nodiscard]] bool room() const { return !free_.empty(); }
  // The place of the next buffer, below places(). There must be room.
  [[nodiscard]] unsigned next_place() const { return free_.back(); }
  // Puts a buffer up at that place, not visible yet; `chain` has exactly the segments that the
  // driver was made for.
  void add(std::span<const Segment> chain);
  // Makes what was added visible. True: the device wants to be kicked.
  bool publish();
  void kick() { guest_.kick(ring_); }
  // A buffer that came back: its place, free again, and the bytes that the device says it wrote.
  std::optional<Completed> reap();
  // The device gave back what it was not given: nothing comes from reap() any more.
  [[nodiscard]] bool broken() const { return broken_; }

 private:
  SocketGuest& guest_;
  const unsigned ring_, segments_, places_;
  const std::uint16_t mask_;
  virtio::wire::Descriptor* descriptors_;
  virtio::wire::Available* available_;
  base::le16* heads_;
  const virtio::wire::Used* used_;
  const virtio::wire::UsedElement* elements_;
  std::uint16_t next_ = 0, published_ = 0, reaped_ = 0, seen_ = 0;
  std::vector<std::uint16_t> free_;
  bool broken_ = false;
};

class PackedDriver {
 public:
  PackedDriver(SocketGuest& guest, unsigned ring, unsigned segments);

  [[nodiscard]] unsigned places() const { return places_; }
  [[nodiscard]] bool room() const { return !free_.empty(); }
  [[nodiscard]] unsigned next_place() const { return free_.back(); }
  void add(std::span<const Segment> chain);
  bool publish();
  void kick() { guest_.kick(ring_); }
  std::optional<Completed> reap();
  [[nodiscard]] bool broken() const { return broken_; }

 private:
  [[nodiscard]] std::uint16_t available_flags() const;
  void advance(std::uint16_t& index, bool& wrap, unsigned by) const;

  SocketGuest& guest_;
  const unsigned ring_, segments_, places_;
  const std::uint16_t size_;
  virtio::wire::PackedDescriptor* descriptors_;
  const virtio::wire::EventSuppression* device_;
  std::uint16_t next_ = 0, reap_next_ = 0;
  bool wrap_ = true, reap_wrap_ = true;
  // The first descriptor of what was added and not published, and the flags that will show it.
  virtio::wire::PackedDescriptor* held_ = nullptr;
  std::uint16_t held_flags_ = 0;
  std::vector<std::uint16_t> free_;
  bool broken_ = false;
};

}  // namespace millrace::bench
