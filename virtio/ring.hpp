// What a device needs to open a ring, and the words both ring formats share.
//
// SplitRing (virtio 1.2 §2.7) and PackedRing (§2.8) offer the same members (the Ring concept
// below), so a device is a template over its ring and nothing is decided per packet.
#pragma once

#include <concepts>
#include <cstdint>
#include <memory>

#include "base/poller.hpp"
#include "virtio/chain.hpp"
#include "virtio/dirty_log.hpp"
#include "virtio/fault.hpp"
#include "virtio/memory.hpp"

namespace millrace::virtio {

struct RingSetup {
  std::uint32_t size = 0;
  std::uint64_t features = 0;     // negotiated: RING_PACKED, EVENT_IDX, INDIRECT_DESC, IN_ORDER
  std::uint64_t descriptors = 0;  // user addresses, as SET_VRING_ADDR gives them
  std::uint64_t driver_area = 0;  // split: available ring; packed: driver event suppression
  std::uint64_t device_area = 0;  // split: used ring; packed: device event suppression
  std::uint64_t log_address = 0;  // guest address of the used ring for the dirty log
  bool log_ring = false;          // VHOST_VRING_F_LOG
  std::uint32_t base = 0;         // SET_VRING_BASE: split: available index; packed: see position
};

enum class Take : std::uint8_t {
  chain,  // `chain` is filled
  empty,  // nothing available
  fault,  // the queue is poisoned; see fault()
};

// Where a ring stands, to go back to after taking chains that were not used (a mergeable receive
// that did not fit). Only chains taken since may be given back, and none of them completed.
struct Mark {
  std::uint16_t available = 0;
  bool wrap = false;
  std::uint32_t resubmitted = 0;
};

// clang-format off
template <class R>
concept Ring = requires(R ring, Chain& chain, const Ticket& ticket, std::uint32_t bytes,
                        Mark mark, std::size_t count) {
  { ring.take(chain) } -> std::same_as<Take>;        // next buffer, resubmitted ones first
  // Brings near what the next so many buffers will need, of those known to be published: their
  // descriptors and used entries; later, once those are here, the buffers' first bytes, to be read
  // or written. Nothing that is read here counts.
  { ring.prefetch(count) };
  { ring.prefetch_to_read(count) };
  { ring.prefetch_to_write(count) };
  { ring.look(count) };                              // sees what is newly published, prefetches it
  { ring.glance() } -> std::same_as<base::Glance>;   // where the next buffer shows; none was there
  { ring.mark() } -> std::same_as<Mark>;
  { ring.rewind(mark) };
  { ring.give(ticket, bytes) };                      // done with `bytes` written; not yet visible
  { ring.show() };                                   // makes all given visible
  { ring.wants_call() } -> std::same_as<bool>;       // of what was shown since; after a full fence
  { ring.publish() } -> std::same_as<bool>;          // all three in one; true: call the driver
  { ring.arm() } -> std::same_as<bool>;              // kicks on; true: work is there already
  { ring.disarm() };                                 // kicks off
  { ring.position() } -> std::same_as<std::uint32_t>;  // for GET_VRING_BASE
  // Takes and gives the usual buffers in the shortest way: where the ring stands is in registers
  // meanwhile, so that few stores queue up behind those to lines that the driver's processor has.
  // While there is one nothing else is asked of the ring.
  // AccountedCursor is for rings that account for each buffer, Cursor for others; see with_cursor().
  // The ring does not hold what a Cursor took: a driver that publishes it again before it was given
  // back is not found out, and has it served again.
  { ring.accounts() } -> std::same_as<bool>;  // settled when the queue is started
  requires requires(typename R::AccountedCursor cursor, typename R::Cursor, bool writable) {
    // The next buffer, where it is one piece of that kind. Of no size: it is not, or there is none,
    // or buffers of a predecessor come first; nothing was done, and take() tells.
    { cursor.next(writable) } -> std::same_as<Segment>;
    { cursor.take() } -> std::same_as<Ticket>;  // what next() answered
    { cursor.serves() } -> std::same_as<bool>;  // false: next() answers nothing, give() is not for it
    { cursor.give(ticket, bytes) };
    // Where it stands; and back there: what was taken since, of which nothing was given, was not.
    { cursor.go_back(cursor.place()) };
  };
};
// clang-format on

// Calls `loop` with a cursor of the ring's own kind, so that a loop is made for each kind. One that
// is not inlined has the cursor in memory.
template <Ring R, class Loop>
[[gnu::always_inline]] inline auto with_cursor(R& ring, const Loop& loop) noexcept {
  if (ring.accounts()) {
    typename R::AccountedCursor cursor{ring};
    return loop(cursor);
  }
  typename R::Cursor cursor{ring};
  return loop(cursor);
}

}  // namespace millrace::virtio
