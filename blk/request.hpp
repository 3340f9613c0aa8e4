// Request: a chain understood and checked (virtio 1.2 §5.2.6). The first of a request's three
// stages: Request -> InFlight -> Completed.
//
// The layout of the chain means nothing: the header is the first 16 readable bytes, the status is
// the last writable byte, whatever descriptors they lie in. Thread: the queue's reactor.
#pragma once

#include <cstdint>
#include <span>
#include <variant>

#include "blk/backend.hpp"
#include "virtio/chain.hpp"
#include "virtio/queue.hpp"
#include "virtio/wire/blk.hpp"

namespace millrace::blk {

// What the disk advertises, and so enforces. Constant for a queue but for `bytes`, which may grow.
struct Rules {
  std::uint64_t bytes = 0;
  std::uint32_t block_size = 512;
  bool readonly = false;  // by configuration, whatever the driver acknowledged
  bool discard = false, write_zeroes = false, may_unmap = false;
  std::uint32_t discard_ranges_max = 0, zero_ranges_max = 0;
  std::uint32_t discard_sectors_max = 0, zero_sectors_max = 0;
};

// A range of DISCARD or WRITE_ZEROES, in bytes, inside the disk.
struct Range {
  std::uint64_t offset = 0, length = 0;
};

// Where the answer goes.
struct StatusByte {
  std::byte* at = nullptr;
  std::uint64_t guest_address = 0;
  // Writes it, and marks it for a migration.
  void write(virtio::wire::BlkStatus status, virtio::Queue& queue) const noexcept;
};

// The last stage: what Ring::give needs.
struct Completed {
  virtio::Ticket ticket;
  // Bytes written into the device-writable part, the status byte included. Of a failed read: the
  // data that arrived and the status byte.
  std::uint32_t written = 0;
  virtio::wire::BlkStatus status = virtio::wire::BlkStatus::ok;
};

struct Request {
  Operation operation = Operation::read;
  bool unmap = false;
  std::uint64_t offset = 0, length = 0;  // read, write: bytes
  std::span<const Range> ranges;         // discard, write_zeroes
  StatusByte status;
  virtio::Ticket ticket;
};

// GET_ID: answered at once.
struct Identify {
  StatusByte status;
  virtio::Ticket ticket;
};

// A request that is wrong, but whose driver can be told so.
struct Reject {
  virtio::wire::BlkStatus why = virtio::wire::BlkStatus::io_error;
  StatusByte status;
  virtio::Ticket ticket;
};

// A chain that has no room for a status byte or is shorter than a header: nobody can be told.
struct Malformed {};

using Parsed = std::variant<Request, Identify, Reject, Malformed>;

// Reads each byte of the header and of the ranges once. `ranges` is room for the longer of the two
// range limits; the request refers to it.
[[nodiscard]] Parsed parse(const virtio::Chain& chain, const Rules& rules,
                           std::span<Range> ranges) noexcept;

// The last stage of a request that never was in flight.
[[nodiscard]] Completed answer(const Reject& reject, virtio::Queue& queue) noexcept;
// Writes as much of `id` (zero padded) as the driver left room for.
[[nodiscard]] Completed answer(const Identify& identify, const virtio::Chain& chain,
                               std::span<const std::byte, virtio::wire::blk_id_size> id,
                               virtio::Queue& queue) noexcept;

}  // namespace millrace::blk
