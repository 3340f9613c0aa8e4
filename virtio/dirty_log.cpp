#include "virtio/dirty_log.hpp"

#include <algorithm>

namespace millrace::virtio {

// Always a locked OR, also where the bit is set already: without it our data could become visible
// after the front-end cleared the bit and copied the page.
void DirtyLog::mark(std::uint64_t guest_address, std::uint64_t size) noexcept {
  if (size == 0) return;
  const std::uint64_t pages = bitmap_->size() * 8;
  const std::uint64_t first = guest_address / page_size;
  if (first >= pages) return;
  const std::uint64_t room = ~guest_address;  // bytes that follow before the address wraps
  const std::uint64_t last =
      std::min((guest_address + std::min(size - 1, room)) / page_size, pages - 1);
  auto* bytes = reinterpret_cast<std::uint8_t*>(bitmap_->data());
  for (std::uint64_t page = first; page <= last;) {
    const std::uint64_t byte = page / 8;
    unsigned bits = 0;
    for (; page <= last && page / 8 == byte; ++page) bits |= 1u << (page % 8);
    __atomic_fetch_or(bytes + byte, static_cast<std::uint8_t>(bits), __ATOMIC_SEQ_CST);
  }
}

}  // namespace millrace::virtio
