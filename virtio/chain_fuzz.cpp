// libFuzzer: a driver that writes anything into its rings, tables and inflight region. Whatever a
// ring hands out must lie inside guest memory and within the limits; whatever is wrong must be a
// Fault.
//
// Input: a byte of mode, a byte of size, a byte of script length, the script, then the memory's
// bytes.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "base/check.hpp"
#include "virtio/features.hpp"
#include "virtio/inflight.hpp"
#include "virtio/packed_ring.hpp"
#include "virtio/split_ring.hpp"

namespace millrace::virtio {
namespace {

constexpr std::uint64_t ring_bytes = 4096, piece_bytes = 256;
constexpr std::uint64_t user_base = 0x1000'0000;
constexpr std::uint32_t queue_sizes[] = {1, 2, 4, 8, 16, 3, 5, 7};

// Rings at guest address 0; right behind them two small regions, and one more after a gap.
struct Guest {
  Guest() {
    std::vector<Region> regions;
    const auto add = [&](std::uint64_t guest, std::uint64_t size) {
      regions.push_back({guest, size, user_base + guest, *base::Mapping::anonymous(size)});
    };
    add(0, ring_bytes);
    add(ring_bytes, piece_bytes);
    add(ring_bytes + piece_bytes, piece_bytes);
    add(ring_bytes + 4 * piece_bytes, piece_bytes);
    memory = *GuestMemory::build(std::move(regions));
    inflight = *base::Mapping::anonymous(4096);
  }
  std::shared_ptr<const GuestMemory> memory;
  std::shared_ptr<const base::Mapping> inflight;
};

std::size_t fill(const base::Mapping& mapping, const std::uint8_t* data, std::size_t size) {
  const auto count = std::min<std::size_t>(size, mapping.size());
  std::memset(mapping.data(), 0, mapping.size());
  if (count != 0) std::memcpy(mapping.data(), data, count);
  return count;
}

void check_segments(const GuestMemory& memory, std::span<const Segment> segments,
                    std::uint64_t bytes) {
  std::uint64_t sum = 0;
  for (const Segment& segment : segments) {
    GuestMemory::Hint hint;
    const auto found = memory.translate(segment.guest_address, segment.size, hint);
    CHECK(segment.size != 0 && found.size() == segment.size && found.data() == segment.data);
    sum += segment.size;
  }
  CHECK(sum == bytes);
}

template <class R>
void play(R& ring, const Guest& guest, std::span<const std::uint8_t> script, std::uint32_t size) {
  static const auto chain = std::make_unique<Chain>();
  std::vector<Ticket> held;
  for (const std::uint8_t op : script) {
    switch (op % 6) {
      case 0:
      case 1:
        if (ring.take(*chain) != Take::chain) break;
        CHECK(ring.fault() == Fault::none);
        check_segments(*guest.memory, chain->readable(), chain->readable_bytes());
        check_segments(*guest.memory, chain->writable(), chain->writable_bytes());
        CHECK(chain->readable().size() + chain->writable().size() <= limits::chain_segments_max);
        CHECK(chain->readable_bytes() + chain->writable_bytes() <= limits::chain_bytes_max);
        CHECK(chain->ticket().id() < size);
        held.push_back(chain->ticket());
        CHECK(held.size() <= size);
        break;
      case 2: {
        const Mark mark = ring.mark();
        for (unsigned i = op / 64 + 1u; i != 0 && ring.take(*chain) == Take::chain; --i) {
        }
        ring.rewind(mark);
        break;
      }
      case 3:
        if (held.empty()) break;
        std::swap(held[op % held.size()], held.back());
        ring.give(held.back(), op);
        held.pop_back();
        break;
      case 4:
        static_cast<void>(ring.publish());
        break;
      default:  // the driver changes its mind: one byte of the ring's memory
        guest.memory->regions()[0].mapping->data()[op * 16u % ring_bytes] ^= std::byte{op};
        static_cast<void>(ring.arm());
        ring.disarm();
    }
  }
  for (const auto& ticket : held) ring.give(ticket, 0);
  static_cast<void>(ring.publish());
  static_cast<void>(ring.position());
}

void run(const std::uint8_t* data, std::size_t size) {
  static const Guest guest;
  if (size < 3) return;
  const std::uint8_t mode = data[0];
  const bool packed = (mode & 1) != 0, tracked = (mode & 2) != 0;
  RingSetup setup;
  setup.size = queue_sizes[data[1] % std::size(queue_sizes)];
  setup.features = ((mode & 4) != 0 ? feature::indirect_desc : 0) |
                   ((mode & 8) != 0 ? feature::event_idx : 0) |
                   ((mode & 16) != 0 ? feature::in_order : 0) | (packed ? feature::ring_packed : 0);
  setup.descriptors = user_base;
  setup.driver_area = user_base + 1024;
  setup.device_area = user_base + 2048;
  setup.base = static_cast<std::uint32_t>(data[1] / 8 % setup.size) | (mode & 32u) << 10;
  const auto length = std::min<std::size_t>(data[2], size - 3);
  const std::span script{data + 3, length};
  data += 3 + length;
  size -= 3 + length;
  for (const auto& region : guest.memory->regions()) {
    const auto used = fill(*region.mapping, data, size);
    data += used;
    size -= used;
  }
  fill(*guest.inflight, data, size);

  const auto region = *InflightRegion::attach(guest.inflight, 0, 1, setup.size, packed);
  if (packed) {
    auto ring =
        PackedRing::open(setup, *guest.memory, tracked ? region->packed(0, setup.size) : nullptr);
    if (ring) play(*ring, guest, script, setup.size);
  } else {
    auto ring =
        SplitRing::open(setup, *guest.memory, tracked ? region->split(0, setup.size) : nullptr);
    if (ring) play(*ring, guest, script, setup.size);
  }
}

}  // namespace
}  // namespace millrace::virtio

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  millrace::virtio::run(data, size);
  return 0;
}
