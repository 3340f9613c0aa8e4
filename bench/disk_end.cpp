#include "bench/disk_end.hpp"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>

#include "virtio/features.hpp"

namespace millrace::bench {

namespace wire = virtio::wire;
using base::fail;
using base::Result;

namespace {

constexpr std::uint32_t rings_bytes = 4u << 20;
constexpr std::uint64_t page = 4096;
constexpr std::uint64_t blocks_max = 0xffff'ffff;  // a load on a larger disk uses its start
constexpr std::chrono::seconds connect_patience{5};

}  // namespace

Result<Disk> find_disk(const BlkLoadConfig& config) {
  Disk disk;
  disk.config = config;
  GuestConfig guest;
  guest.rings = 1;
  guest.listen = config.listen;
  guest.size = static_cast<std::uint16_t>(std::bit_ceil(config.depth * request_segments));
  guest.features = wire::blk_feature::ro | wire::blk_feature::blk_size |
                   wire::blk_feature::seg_max | wire::blk_feature::flush |
                   (config.packed ? virtio::feature::ring_packed : 0) |
                   (config.stock ? stock_features : 0);
  if (config.stock) guest.inflight = GuestConfig::Inflight::if_there;
  const std::uint64_t places = config.stock ? guest.size : guest.size / request_segments;
  guest.memory = rings_bytes + places * (config.block + sizeof(RequestRoom));
  guest.memory = (guest.memory + page - 1) / page * page;
  auto made = SocketGuest::connect(config.socket, guest, connect_patience);
  if (!made) return base::Unexpected{made.error()};
  disk.guest = *std::move(made);
  if (config.packed && !disk.guest->packed()) return fail("this back-end has no packed rings");
  if (config.write_percent > 0 && (disk.guest->features() & wire::blk_feature::ro) != 0) {
    return fail("this disk is read-only");
  }
  const auto bytes = disk.guest->frontend().get_config(0, wire::blk_config_size);
  if (!bytes) return base::Unexpected{bytes.error()};
  wire::BlkConfig seen{};
  std::memcpy(&seen, bytes->data(), std::min(bytes->size(), sizeof seen));
  disk.capacity = seen.capacity.host() * wire::blk_sector_size;
  const auto used = config.span == 0 ? disk.capacity : std::min(disk.capacity, config.span);
  disk.blocks = used / config.block;
  if (disk.blocks == 0) return fail("the disk is smaller than one request");
  disk.blocks = std::min(disk.blocks, blocks_max);
  disk.requests = disk.guest->allocate(places * sizeof(RequestRoom), alignof(RequestRoom));
  disk.data = disk.guest->allocate(places * config.block, page);
  return disk;
}

}  // namespace millrace::bench
