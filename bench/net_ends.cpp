#include "bench/net_ends.hpp"

#include <algorithm>
#include <chrono>

#include "virtio/features.hpp"

namespace millrace::bench {

namespace feature = virtio::wire::net_feature;
using base::fail;
using base::Result;

namespace {

constexpr std::chrono::seconds connect_patience{5};
constexpr std::uint64_t rings_bytes = 8u << 20;
constexpr std::uint64_t tso_features =
    feature::csum | feature::guest_csum | feature::host_tso4 | feature::guest_tso4;

// Beside a frame's own bytes: two pages that are not full, and a table.
constexpr std::uint64_t fragments_room =
    2 * nic_page + RingDriver::table_size(FrameShape::most / nic_page + 2);

bool fragmented(const NetLoadConfig& config) {
  return config.stock && config.tso;
}

GuestConfig guest_of(const NetLoadConfig& config) {
  // Both directions at once: frames of the load and the small ones that go back.
  const auto buffer = std::uint64_t{config.frame} * (config.slots > 1 ? 2 : 1) + FrameShape::least +
                      rx_buffer + 256 + (fragmented(config) ? fragments_room : 0);
  GuestConfig guest;
  guest.rings = 2;
  guest.listen = config.listen;
  if (config.inflight) guest.inflight = GuestConfig::Inflight::needed;
  guest.size = config.ring;
  guest.features = feature::mrg_rxbuf | (config.tso ? tso_features : 0) |
                   (config.packed ? virtio::feature::ring_packed : 0) |
                   (config.stock ? stock_features : 0);
  guest.memory = (rings_bytes + config.ring * (buffer + nic_page)) / nic_page * nic_page;
  guest.slots = config.slots;
  // The rings; buffers begin within it and go on in the others.
  guest.first_slot = std::uint64_t{config.ring} * 64 + 16 * nic_page;
  guest.first_slot = guest.first_slot / nic_page * nic_page;
  if (config.slots > 1) {
    guest.memory = guest.first_slot + config.ring * (buffer + nic_page) / nic_page * nic_page;
  }
  return guest;
}

}  // namespace

Buffers buffers_of(const NetLoadConfig& config) {
  if (fragmented(config)) return Buffers::fragments;
  return config.slots > 1 ? Buffers::whole_pages : Buffers::tight;
}

Result<std::unique_ptr<SocketGuest>> connect_nic(const NetLoadConfig& config,
                                                 const std::string& socket) {
  const auto guest = guest_of(config);
  auto made = SocketGuest::connect(socket, guest, connect_patience);
  if (!made) return made;
  const auto missing = guest.features & ~(*made)->features();
  if ((missing & virtio::feature::ring_packed) != 0) {
    return fail(socket + ": this back-end has no packed rings");
  }
  if ((missing & tso_features) != 0) return fail(socket + ": this back-end does not take TSO");
  if ((missing & feature::mrg_rxbuf) != 0) {
    return fail(socket + ": this back-end does not merge receive buffers");
  }
  return made;
}

Result<std::unique_ptr<SocketGuest>> lone_nic(const NetLoadConfig& config) {
  return SocketGuest::alone(guest_of(config));
}

unsigned due(double rate, unsigned burst, std::uint64_t begun, std::uint64_t put_up) {
  if (rate == 0) return burst;
  const auto passed = static_cast<double>(base::cycles_to_ns(base::cycles() - begun)) / 1e9;
  const auto wanted = static_cast<std::uint64_t>(passed * rate);
  return static_cast<unsigned>(std::min<std::uint64_t>(wanted - std::min(wanted, put_up), burst));
}

void set_address(std::byte* mac, std::uint32_t number) {
  mac[2] = static_cast<std::byte>(number >> 16);
  mac[3] = static_cast<std::byte>(number >> 8);
  mac[4] = static_cast<std::byte>(number);
}

}  // namespace millrace::bench
