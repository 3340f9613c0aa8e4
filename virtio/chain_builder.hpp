// ChainBuilder: the one walker over a guest's descriptors, for both ring formats and for their
// indirect tables. It fills a Chain, or says what is wrong with the descriptors.
//
// Bounded: by the size of each table, by limits::chain_descriptors_max (descriptors without a
// length count too) and by limits::chain_bytes_max. Each descriptor is read exactly once. Thread:
// the owning reactor.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

#include "virtio/chain.hpp"
#include "virtio/fault.hpp"
#include "virtio/memory.hpp"
#include "virtio/shared.hpp"
#include "virtio/wire/ring.hpp"

namespace millrace::virtio {

// Where the last chain's table and data were; one of each for a queue.
struct ChainHints {
  GuestMemory::Hint table, data;
};

// Bring the beginning of a buffer near: its first two cache lines, which hold a net header and the
// headers of a frame, or a table's first descriptors; or the first alone. Any address is safe.
inline void prefetch_read(const GuestMemory& memory, std::uint64_t address,
                          GuestMemory::Hint& hint) noexcept {
  const auto* const data = memory.translate(address, 1, hint).data();
  __builtin_prefetch(data, 0);
  __builtin_prefetch(data + 64, 0);
}
inline void prefetch_write(const GuestMemory& memory, std::uint64_t address,
                           GuestMemory::Hint& hint, bool one_line = false) noexcept {
  const auto* const data = memory.translate(address, 1, hint).data();
  __builtin_prefetch(data, 1);
  if (!one_line) __builtin_prefetch(data + 64, 1);
}

class ChainBuilder {
 public:
  // `indirect`: INDIRECT_DESC was negotiated.
  ChainBuilder(Chain& chain, const GuestMemory& memory, ChainHints& hints, bool indirect) noexcept
      : chain_{chain}, memory_{memory}, hints_{hints}, indirect_{indirect} {
    chain_.count_ = chain_.readable_count_ = 0;
    chain_.readable_bytes_ = chain_.writable_bytes_ = 0;
  }

  // The piece of memory that a whole chain is, where that is one direct descriptor, as most are,
  // and lies in one piece. Of no size: it is not so.
  [[nodiscard, gnu::always_inline]] static Segment one_piece(const GuestMemory& memory,
                                                             ChainHints& hints,
                                                             std::uint64_t address,
                                                             std::uint32_t length,
                                                             std::uint16_t flags) noexcept {
    static_assert(limits::chain_bytes_max <= 0xffff'ffff);
    constexpr std::uint16_t more = wire::descriptor_next | wire::descriptor_indirect;
    if ((flags & more) != 0 || length == 0 || length > limits::chain_bytes_max) return {};
    const auto piece = memory.translate(address, length, hints.data);
    if (piece.size() != length) return {};  // nothing that wraps around is in one piece
    return {piece.data(), address, length};
  }
  // Makes it the chain. False: it is not so, and nothing was done.
  [[nodiscard, gnu::always_inline]] static bool take_one(Chain& chain, const GuestMemory& memory,
                                                         ChainHints& hints, std::uint64_t address,
                                                         std::uint32_t length,
                                                         std::uint16_t flags) noexcept {
    const Segment piece = one_piece(memory, hints, address, length, flags);
    if (piece.size == 0) return false;
    const bool writable = (flags & wire::descriptor_write) != 0;
    chain.segments_[0] = piece;
    chain.count_ = 1;
    chain.readable_count_ = writable ? 0 : 1;
    chain.readable_bytes_ = writable ? 0 : length;
    chain.writable_bytes_ = writable ? length : 0;
    return true;
  }
  static void name(Chain& chain, const Ticket& ticket) noexcept { chain.ticket_ = ticket; }

  // A split queue's chain from `head` in its table (virtio 1.2 §2.7.5).
  [[nodiscard]] Fault walk_split(const wire::Descriptor* table, std::uint32_t size,
                                 std::uint16_t head) noexcept {
    const auto fetch = [table](std::uint32_t index, wire::Descriptor& out) {
      out = copy_once(table + index);
      return true;
    };
    return walk_list(fetch, size, head, false);
  }
  // One descriptor of a packed queue's ring (§2.8.5), already copied.
  [[nodiscard]] Fault add_packed(const wire::PackedDescriptor& descriptor) noexcept {
    const auto flags = descriptor.flags.host();
    if ((flags & wire::descriptor_indirect) == 0) {
      return add(descriptor.address.host(), descriptor.length.host(), flags);
    }
    if (!indirect_ || (flags & wire::descriptor_next) != 0) return Fault::indirect_bad;
    return walk_indirect_packed(descriptor.address.host(), descriptor.length.host());
  }
  // Nothing with a length so far.
  [[nodiscard]] bool empty() const noexcept { return chain_.count_ == 0; }
  [[nodiscard]] Fault finish(const Ticket& ticket) noexcept {
    if (empty()) return Fault::chain_empty;
    chain_.ticket_ = ticket;
    return Fault::none;
  }

 private:
  // An indirect table in guest memory, possibly spread over regions.
  class Table {
   public:
    Table(const GuestMemory& memory, GuestMemory::Hint& hint, std::uint64_t address,
          std::uint32_t bytes) noexcept
        : memory_{memory}, hint_{hint}, address_{address} {
      const auto whole = memory.translate(address, bytes, hint);
      if (whole.size() == bytes) data_ = whole.data();
    }
    template <class Descriptor>
    [[nodiscard]] bool fetch(std::uint32_t index, Descriptor& out) const noexcept {
      const std::uint64_t offset = std::uint64_t{index} * sizeof out;
      if (data_ != nullptr) [[likely]] {
        out = copy_once_from<Descriptor>(data_ + offset);
        return true;
      }
      std::byte raw[sizeof out];
      for (std::size_t done = 0; done < sizeof out;) {
        const auto piece = memory_.translate(address_ + offset + done, sizeof out - done, hint_);
        if (piece.empty()) return false;
        std::memcpy(raw + done, piece.data(), piece.size());
        done += piece.size();
      }
      std::atomic_signal_fence(std::memory_order_seq_cst);
      std::memcpy(&out, raw, sizeof out);
      return true;
    }

   private:
    const GuestMemory& memory_;
    GuestMemory::Hint& hint_;
    std::uint64_t address_;
    const std::byte* data_ = nullptr;
  };

  static bool wraps(std::uint64_t address, std::uint32_t length) noexcept {
    return length != 0 && address + (length - 1) < address;
  }
  static Fault check_table(std::uint64_t address, std::uint32_t bytes) noexcept {
    if (bytes == 0 || bytes % sizeof(wire::Descriptor) != 0) return Fault::indirect_bad;
    return wraps(address, bytes) ? Fault::length_overflow : Fault::none;
  }

  // Follows `next` from `index`. `nested`: this is an indirect table, which holds no other
  // (§2.7.5.3).
  template <class Fetch>
  [[nodiscard]] Fault walk_list(const Fetch& fetch, std::uint32_t size, std::uint32_t index,
                                bool nested) noexcept {
    for (std::uint32_t steps = 0;; ++steps) {
      if (index >= size) return Fault::head_out_of_range;
      if (steps == size) return Fault::chain_loop;
      wire::Descriptor descriptor;
      if (!fetch(index, descriptor)) return Fault::address_outside_memory;
      const auto flags = descriptor.flags.host();
      if ((flags & wire::descriptor_indirect) != 0) {
        if (nested || !indirect_ || (flags & wire::descriptor_next) != 0) {
          return Fault::indirect_bad;
        }
        return walk_indirect_split(descriptor.address.host(), descriptor.length.host());
      }
      const Fault fault = add(descriptor.address.host(), descriptor.length.host(), flags);
      if (fault != Fault::none) return fault;
      if ((flags & wire::descriptor_next) == 0) return Fault::none;
      index = descriptor.next.host();
    }
  }

  [[nodiscard]] Fault walk_indirect_split(std::uint64_t address, std::uint32_t bytes) noexcept {
    if (const Fault fault = check_table(address, bytes); fault != Fault::none) return fault;
    const Table table{memory_, hints_.table, address, bytes};
    const auto fetch = [&table](std::uint32_t index, wire::Descriptor& out) {
      return table.fetch(index, out);
    };
    return walk_list(fetch, static_cast<std::uint32_t>(bytes / sizeof(wire::Descriptor)), 0, true);
  }

  // §2.8.7: all entries in order; of the flags only WRITE has a meaning.
  [[nodiscard]] Fault walk_indirect_packed(std::uint64_t address, std::uint32_t bytes) noexcept {
    if (const Fault fault = check_table(address, bytes); fault != Fault::none) return fault;
    const Table table{memory_, hints_.table, address, bytes};
    for (std::uint32_t i = 0; i < bytes / sizeof(wire::PackedDescriptor); ++i) {
      wire::PackedDescriptor descriptor;
      if (!table.fetch(i, descriptor)) return Fault::address_outside_memory;
      const auto flags = descriptor.flags.host();
      if ((flags & wire::descriptor_indirect) != 0) return Fault::indirect_bad;
      const Fault fault = add(descriptor.address.host(), descriptor.length.host(), flags);
      if (fault != Fault::none) return fault;
    }
    return Fault::none;
  }

  [[nodiscard]] Fault add(std::uint64_t address, std::uint32_t length,
                          std::uint16_t flags) noexcept {
    if (descriptors_ == limits::chain_descriptors_max) return Fault::chain_too_long;
    ++descriptors_;
    const bool writable = (flags & wire::descriptor_write) != 0;
    if (writing_ && !writable) return Fault::chain_order;
    writing_ = writable;
    if (length == 0) return Fault::none;
    if (wraps(address, length)) return Fault::length_overflow;
    auto& bytes = writable ? chain_.writable_bytes_ : chain_.readable_bytes_;
    bytes += length;
    if (chain_.readable_bytes_ + chain_.writable_bytes_ > limits::chain_bytes_max) {
      return Fault::length_overflow;
    }
    while (length != 0) {
      const auto piece = memory_.translate(address, length, hints_.data);
      if (piece.empty()) return Fault::address_outside_memory;
      if (chain_.count_ == limits::chain_segments_max) return Fault::chain_too_long;
      const auto size = static_cast<std::uint32_t>(piece.size());
      chain_.segments_[chain_.count_++] = {piece.data(), address, size};
      address += size;
      length -= size;
    }
    if (!writable) chain_.readable_count_ = chain_.count_;
    return Fault::none;
  }

  Chain& chain_;
  const GuestMemory& memory_;
  ChainHints& hints_;
  const bool indirect_;
  bool writing_ = false;
  std::uint32_t descriptors_ = 0;
};

}  // namespace millrace::virtio
