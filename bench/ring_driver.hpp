// The driver's side of one virtqueue at native speed: SplitDriver and PackedDriver, alike.
//
// Every buffer is a chain of the same number of descriptors, so that a ring of N descriptors has
// N / segments places and a buffer is known by its place. Where indirect descriptors were
// negotiated a chain of more than one is a table, as with Linux: N places, each with table_size()
// bytes of the guest's memory. A device may finish them in any order. Kicks are asked for by the
// device, with its event index if that was negotiated; calls are never. One thread; the ring's
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

// What both have in common: where buffers can be, and which of them are free.
class RingDriver {
 public:
  // How many buffers can be with the device at once.
  [[nodiscard]] unsigned places() const { return places_; }
  [[nodiscard]] bool room() const { return !free_.empty(); }
  // The place of the next buffer, below places(). There must be room.
  [[nodiscard]] unsigned next_place() const { return free_.back(); }
  void kick() { guest_.kick(ring_); }
  static constexpr std::uint64_t table_size(unsigned segments) {
    return (segments * sizeof(virtio::wire::Descriptor) + 63) / 64 * 64;
  }
  // The device gave back what it was not given: nothing comes from reap() any more.
  [[nodiscard]] bool broken() const { return broken_; }

 protected:
  RingDriver(SocketGuest& guest, unsigned ring, unsigned segments);
  unsigned take_place();
  // False: that is no place, or all are free; the device is broken().
  bool free_place(unsigned place);
  [[nodiscard]] std::uint64_t table_of(unsigned place) const {
    return tables_ + place * table_size(segments_);
  }

  SocketGuest& guest_;
  const bool event_index_, indirect_;
  const unsigned ring_, segments_, slots_, places_;  // slots_: of the ring, for each buffer

 private:
  std::uint64_t tables_ = 0;
  std::vector<std::uint16_t> free_;
  bool broken_ = false;
};

class SplitDriver : public RingDriver {
 public:
  SplitDriver(SocketGuest& guest, unsigned ring, unsigned segments);

  // Puts a buffer up at next_place(), not visible yet; `chain` has exactly the segments that the
  // driver was made for.
  void add(std::span<const Segment> chain);
  // Makes what was added visible. True: the device wants to be kicked.
  bool publish();
  // The same in parts, for a driver of many rings with one fence for all: show() answers whether
  // there was anything, wants_kick() is for after a full fence, once for all that was shown.
  bool show();
  [[nodiscard]] bool wants_kick();
  // A buffer that came back: its place, free again, and the bytes that the device says it wrote.
  std::optional<Completed> reap();

 private:
  const std::uint16_t mask_;
  virtio::wire::Descriptor* descriptors_;
  virtio::wire::Available* available_;
  base::le16* heads_;
  const virtio::wire::Used* used_;
  const virtio::wire::UsedElement* elements_;
  const base::le16* kick_event_;  // with an event index
  std::uint16_t next_ = 0, published_ = 0, asked_ = 0, reaped_ = 0, seen_ = 0;
};

class PackedDriver : public RingDriver {
 public:
  PackedDriver(SocketGuest& guest, unsigned ring, unsigned segments);

  void add(std::span<const Segment> chain);
  bool publish();
  bool show();
  [[nodiscard]] bool wants_kick();
  std::optional<Completed> reap();

 private:
  void put(const Segment& segment, std::uint16_t place, std::uint16_t flags);
  [[nodiscard]] std::uint16_t available_flags() const;
  void advance(std::uint16_t& index, bool& wrap, unsigned by) const;

  const std::uint16_t size_;
  virtio::wire::PackedDescriptor* descriptors_;
  const virtio::wire::EventSuppression* device_;
  std::uint16_t next_ = 0, reap_next_ = 0, added_ = 0;  // added_: since wants_kick()
  bool wrap_ = true, reap_wrap_ = true;
  // The first descriptor of what was added and not published, and the flags that will show it.
  virtio::wire::PackedDescriptor* held_ = nullptr;
  std::uint16_t held_flags_ = 0;
};

}  // namespace millrace::bench
