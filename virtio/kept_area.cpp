#include "virtio/kept_area.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "base/check.hpp"

namespace millrace::virtio {

namespace {

struct Header {
  std::uint64_t magic;
  std::uint64_t number;    // of the record, from one; 0: the slot is being written
  std::uint64_t size;      // bytes that follow
  std::uint64_t checksum;  // over the three before it and those bytes
};
static_assert(sizeof(Header) == KeptArea::slot_size - KeptArea::record_max);
constexpr std::uint64_t magic = 0x3174'7065'6b6c'6d72;  // "rmlkept1"

// FNV-1a: against a torn write, not against a liar.
std::uint64_t checksum_of(const Header& header, std::span<const std::byte> record) {
  std::uint64_t sum = 0xcbf2'9ce4'8422'2325;
  const auto add = [&sum](std::span<const std::byte> bytes) {
    for (const std::byte byte : bytes) {
      sum = (sum ^ std::to_integer<std::uint64_t>(byte)) * 0x0000'0100'0000'01b3;
    }
  };
  add(std::as_bytes(std::span{&header, 1}).first(offsetof(Header, checksum)));
  add(record);
  return sum;
}

}  // namespace

KeptArea::KeptArea(std::shared_ptr<const base::Mapping> mapping, std::uint64_t offset)
    : mapping_{std::move(mapping)}, data_{mapping_->data() + offset} {
  CHECK(offset <= mapping_->size() && size <= mapping_->size() - offset);
  static_cast<void>(load());  // what is stored next is newer than what is there
}

std::byte* KeptArea::slot(std::uint64_t number) const {
  return data_ + number % slots * slot_size;
}

void KeptArea::store(std::span<const std::byte> record) {
  CHECK(record.size() <= record_max);
  Header header{magic, ++last_, record.size(), 0};
  header.checksum = checksum_of(header, record);
  std::byte* to = slot(last_);
  // The compiler keeps the steps in order; a process that dies has done those before.
  std::memset(to, 0, sizeof header);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  std::ranges::copy(record, to + sizeof header);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  std::memcpy(to, &header, sizeof header);
}

std::vector<std::byte> KeptArea::load() {
  std::vector<std::byte> newest;
  last_ = 0;
  for (std::uint64_t i = 0; i < slots; ++i) {
    // Taken out once, then judged.
    std::array<std::byte, slot_size> copy;
    std::memcpy(copy.data(), slot(i), copy.size());
    Header header;
    std::memcpy(&header, copy.data(), sizeof header);
    if (header.magic != magic || header.size > record_max || header.number <= last_) continue;
    if (header.number % slots != i || header.number == ~0ull) continue;
    const auto record = std::span<const std::byte>{copy}.subspan(sizeof header, header.size);
    if (header.checksum != checksum_of(header, record)) continue;
    last_ = header.number;
    newest.assign(record.begin(), record.end());
  }
  return newest;
}

}  // namespace millrace::virtio
