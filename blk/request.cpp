#include "blk/request.hpp"

#include <algorithm>
#include <array>

namespace millrace::blk {

namespace wire = virtio::wire;
using wire::BlkStatus;
using wire::BlkType;

namespace {

constexpr std::uint64_t sector_size = wire::blk_sector_size;

// True if `sectors` from `sector` on lie inside the disk. Cannot overflow.
bool inside(std::uint64_t sector, std::uint64_t sectors, const Rules& rules) {
  const std::uint64_t capacity = rules.bytes / sector_size;
  return sector <= capacity && sectors <= capacity - sector;
}

Parsed transfer(Operation operation, std::uint64_t sector, std::uint64_t length, const Rules& rules,
                const StatusByte& status, virtio::Ticket ticket) {
  const bool writes = operation == Operation::write;
  const bool aligned = length % rules.block_size == 0 && length % sector_size == 0;
  if ((writes && rules.readonly) || !aligned || !inside(sector, length / sector_size, rules) ||
      sector * sector_size % rules.block_size != 0) {
    return Reject{BlkStatus::io_error, status, ticket};
  }
  return Request{operation, false, sector * sector_size, length, {}, status, ticket};
}

// Checks one range of the driver's; `out` is valid when ok is answered.
BlkStatus check_range(const wire::BlkRange& range, bool zeroes, const Rules& rules, Range& out) {
  const std::uint32_t flags = range.flags.host();
  // §5.2.6.2: reserved flags, and unmap in a discard, are answered with UNSUPP.
  if ((flags & ~wire::blk_range_unmap) != 0) return BlkStatus::unsupported;
  if (!zeroes && flags != 0) return BlkStatus::unsupported;
  const std::uint64_t sector = range.sector.host(), sectors = range.sectors.host();
  if (sectors > (zeroes ? rules.zero_sectors_max : rules.discard_sectors_max)) {
    return BlkStatus::io_error;
  }
  if (!inside(sector, sectors, rules)) return BlkStatus::io_error;
  out = Range{sector * sector_size, sectors * sector_size};
  return BlkStatus::ok;
}

Parsed ranges_of(bool zeroes, const virtio::Chain& chain, const Rules& rules,
                 std::span<Range> ranges, const StatusByte& status) {
  const virtio::Ticket ticket = chain.ticket();
  if (!(zeroes ? rules.write_zeroes : rules.discard) && !rules.readonly) {
    return Reject{BlkStatus::unsupported, status, ticket};
  }
  const std::uint64_t bytes = chain.readable_bytes() - sizeof(wire::BlkHeader);
  const std::uint64_t count = bytes / sizeof(wire::BlkRange);
  if (rules.readonly || count == 0 || bytes % sizeof(wire::BlkRange) != 0) {
    return Reject{BlkStatus::io_error, status, ticket};
  }
  if (count > (zeroes ? rules.zero_ranges_max : rules.discard_ranges_max) ||
      count > ranges.size()) {
    return Reject{BlkStatus::unsupported, status, ticket};
  }
  // All are checked before the first is carried out. Only WRITE_ZEROES may be told to unmap; a
  // request frees space only where every range says so.
  bool unmap = zeroes && rules.may_unmap;
  for (std::size_t i = 0; i < count; ++i) {
    wire::BlkRange range;
    const std::size_t at = sizeof(wire::BlkHeader) + i * sizeof range;
    CHECK(virtio::copy_from(chain.readable(), at, std::as_writable_bytes(std::span{&range, 1})) ==
          sizeof range);
    const BlkStatus verdict = check_range(range, zeroes, rules, ranges[i]);
    if (verdict != BlkStatus::ok) return Reject{verdict, status, ticket};
    unmap = unmap && (range.flags.host() & wire::blk_range_unmap) != 0;
  }
  return Request{zeroes ? Operation::write_zeroes : Operation::discard,
                 unmap,
                 0,
                 0,
                 ranges.first(count),
                 status,
                 ticket};
}

}  // namespace

void StatusByte::write(BlkStatus status, virtio::Queue& queue) const noexcept {
  *static_cast<volatile std::uint8_t*>(static_cast<void*>(at)) = static_cast<std::uint8_t>(status);
  queue.wrote(virtio::Segment{at, guest_address, 1}, 1);
}

Parsed parse(const virtio::Chain& chain, const Rules& rules, std::span<Range> ranges) noexcept {
  wire::BlkHeader header;
  const auto writable = chain.writable();
  if (writable.empty()) return Malformed{};
  if (virtio::copy_from(chain.readable(), 0, std::as_writable_bytes(std::span{&header, 1})) !=
      sizeof header) {
    return Malformed{};
  }
  const virtio::Segment& last = writable.back();
  const StatusByte status{last.data + (last.size - 1), last.guest_address + (last.size - 1)};
  const virtio::Ticket ticket = chain.ticket();
  const std::uint64_t sector = header.sector.host();
  switch (static_cast<BlkType>(header.type.host())) {
    case BlkType::in:
      return transfer(Operation::read, sector, chain.writable_bytes() - 1, rules, status, ticket);
    case BlkType::out:
      return transfer(Operation::write, sector, chain.readable_bytes() - sizeof header, rules,
                      status, ticket);
    case BlkType::flush:
      return Request{Operation::flush, false, 0, 0, {}, status, ticket};
    case BlkType::get_id:
      return Identify{status, ticket};
    case BlkType::discard:
      return ranges_of(false, chain, rules, ranges, status);
    case BlkType::write_zeroes:
      return ranges_of(true, chain, rules, ranges, status);
    case BlkType::get_lifetime:
    case BlkType::secure_erase:
      break;
  }
  return Reject{BlkStatus::unsupported, status, ticket};
}

Completed answer(const Reject& reject, virtio::Queue& queue) noexcept {
  reject.status.write(reject.why, queue);
  return Completed{reject.ticket, 1, reject.why};
}

Completed answer(const Identify& identify, const virtio::Chain& chain,
                 std::span<const std::byte, wire::blk_id_size> id, virtio::Queue& queue) noexcept {
  const auto room = static_cast<std::size_t>(
      std::min<std::uint64_t>(chain.writable_bytes() - 1, wire::blk_id_size));
  virtio::copy_to(chain.writable(), 0, id.first(room));
  std::size_t left = room;
  for (const virtio::Segment& segment : chain.writable()) {
    if (left == 0) break;
    const std::size_t bytes = std::min<std::size_t>(left, segment.size);
    queue.wrote(segment, static_cast<std::uint32_t>(bytes));
    left -= bytes;
  }
  identify.status.write(BlkStatus::ok, queue);
  return Completed{identify.ticket, static_cast<std::uint32_t>(room) + 1, BlkStatus::ok};
}

}  // namespace millrace::blk
