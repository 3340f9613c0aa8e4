// DiskGuest and NicGuest: drivers over bench::SocketGuest, as small as a test can do with.
#pragma once

#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/check.hpp"
#include "bench/socket_guest.hpp"
#include "virtio/wire/blk.hpp"
#include "virtio/wire/net.hpp"

namespace millrace::tests {

namespace wire = virtio::wire;
using bench::GuestConfig, bench::SocketGuest;
using namespace std::chrono_literals;

// Far longer than anything takes; only a failing test waits this long.
inline constexpr std::chrono::milliseconds patience = 20s;

[[nodiscard]] inline std::unique_ptr<SocketGuest> connect_guest(const std::string& socket,
                                                                const GuestConfig& config) {
  auto guest = SocketGuest::connect(socket, config, patience);
  if (!guest) std::fprintf(stderr, "%s\n", guest.error().message.c_str());
  CHECK(guest.has_value());
  return *std::move(guest);
}

// Slot 0 of different queues may be used from different threads.
class DiskGuest {
 public:
  static constexpr std::uint32_t block = 4096;  // bytes of a request's data
  static constexpr std::uint8_t unanswered = 0xff;

  static GuestConfig usual(unsigned queues = 1) { return {.rings = queues, .size = 64}; }
  DiskGuest(const std::string& socket, const GuestConfig& config)
      : guest_{connect_guest(socket, config)} {
    for (unsigned queue = 0; queue < config.rings; ++queue) place(queue, 0);
  }
  explicit DiskGuest(const std::string& socket, unsigned queues = 1)
      : DiskGuest{socket, usual(queues)} {}

  SocketGuest& operator*() { return *guest_; }
  SocketGuest* operator->() { return guest_.get(); }

  // Up to 21 requests of a queue at a time: `slot` is descriptors 3 * slot and the two after it.
  void submit(unsigned queue, unsigned slot, wire::BlkType type, std::uint64_t sector) {
    const auto& at = place(queue, slot);
    submit_at(queue, slot, type, sector, at.data);
  }
  // The same, with the data at any guest address.
  void submit_at(unsigned queue, unsigned slot, wire::BlkType type, std::uint64_t sector,
                 std::uint64_t data, std::uint32_t bytes = block) {
    const auto& at = place(queue, slot);
    const wire::BlkHeader header{base::le32{static_cast<std::uint32_t>(type)}, base::le32{0},
                                 base::le64{sector}};
    std::memcpy(guest_->at(at.header), &header, sizeof header);
    *guest_->at(at.status) = std::byte{unanswered};
    const auto head = head_of(slot);
    const auto next = [head](int by) { return static_cast<std::uint16_t>(head + by); };
    const bool reads = type != wire::BlkType::out;
    guest_->set_descriptor(queue, head, at.header, sizeof header, false, true);
    guest_->set_descriptor(queue, next(1), data, bytes, reads, true);
    guest_->set_descriptor(queue, next(2), at.status, 1, true, false);
    guest_->offer(queue, head);
  }
  [[nodiscard]] static std::uint16_t head_of(unsigned slot) {
    return static_cast<std::uint16_t>(3 * slot);
  }
  [[nodiscard]] std::uint8_t status(unsigned queue, unsigned slot) {
    return std::to_integer<std::uint8_t>(*guest_->at(place(queue, slot).status));
  }
  [[nodiscard]] std::byte* data(unsigned queue, unsigned slot) {
    return guest_->at(place(queue, slot).data);
  }

  // One request from kick to answer; the status, or nothing.
  std::optional<std::uint8_t> request(unsigned queue, wire::BlkType type, std::uint64_t sector) {
    submit(queue, 0, type, sector);
    guest_->kick(queue);
    return answer(queue, 0);
  }
  std::optional<std::uint8_t> answer(unsigned queue, unsigned slot) {
    const auto done = guest_->wait(queue, patience);
    if (!done || done->id != head_of(slot)) return std::nullopt;
    return status(queue, slot);
  }
  // Where a queue's own block is, which served() writes. The disk's first block is nobody's: a
  // request whose memory went away under it reads as zeroes, and that is a read of sector 0.
  [[nodiscard]] static std::uint64_t sector_of(unsigned queue) { return 8ull * (queue + 1); }
  // Writes a block and reads it back.
  [[nodiscard]] bool served(unsigned queue = 0) {
    const auto mark = std::byte(++place(queue, 0).writes % 250 + 1);
    const auto sector = sector_of(queue);
    std::memset(data(queue, 0), std::to_integer<int>(mark), block);
    if (request(queue, wire::BlkType::out, sector) != 0) return false;
    std::memset(data(queue, 0), 0, block);
    if (request(queue, wire::BlkType::in, sector) != 0) return false;
    const auto* bytes = data(queue, 0);
    return bytes[0] == mark && bytes[block - 1] == mark;
  }

 private:
  struct Place {
    std::uint64_t header = 0, status = 0, data = 0;
    unsigned writes = 0;
  };
  Place& place(unsigned queue, unsigned slot) {
    auto& at = places_[{queue, slot}];
    if (at.data != 0) return at;
    at.header = guest_->allocate(sizeof(wire::BlkHeader));
    at.status = guest_->allocate(1);
    at.data = guest_->allocate(block, 512);
    return at;
  }

  std::unique_ptr<SocketGuest> guest_;
  std::map<std::pair<unsigned, unsigned>, Place> places_;
};

class NicGuest {
 public:
  using Mac = std::array<std::uint8_t, 6>;
  static constexpr std::uint32_t buffer = 256, frame = 60;

  // Starts all rings of `config` and fills the receive queues of `pairs` with buffers.
  NicGuest(const std::string& socket, const GuestConfig& config, std::uint8_t id)
      : guest_{connect_guest(socket, config)}, mac_{2, 0, 0, 0, 0, id}, size_{config.size} {
    for (unsigned pair = 0; pair < config.rings / 2; ++pair) fill(pair);
  }
  NicGuest(const std::string& socket, std::uint8_t id)
      : NicGuest{socket, {.rings = 2, .size = 16}, id} {}

  SocketGuest& operator*() { return *guest_; }
  SocketGuest* operator->() { return guest_.get(); }
  [[nodiscard]] const Mac& mac() const { return mac_; }

  void fill(unsigned pair) {
    for (std::uint16_t slot = 0; slot < size_; ++slot) {
      guest_->set_descriptor(2 * pair, slot, guest_->allocate(buffer), buffer, true, false);
      guest_->offer(2 * pair, slot);
    }
    guest_->kick(2 * pair);
  }
  // Sends one UDP frame and takes its buffer back. `flow` decides where it is received.
  [[nodiscard]] bool send(unsigned pair, const Mac& to, std::uint16_t flow = 0) {
    auto& at = out_[pair];
    constexpr auto header = sizeof(wire::NetHeader);
    if (at == 0) at = guest_->allocate(header + frame);
    auto* bytes = guest_->at(at);
    std::memset(bytes, 0, header + frame);
    std::memcpy(bytes + header, to.data(), to.size());
    std::memcpy(bytes + header + 6, mac_.data(), mac_.size());
    constexpr std::array<std::uint8_t, 24> ipv4_udp{8, 0, 0x45, 0, 0, 46, 0,  0, 0, 0, 64, 17,
                                                    0, 0, 10,   0, 0, 1,  10, 0, 0, 2, 0,  0};
    std::memcpy(bytes + header + 12, ipv4_udp.data(), ipv4_udp.size());
    std::memcpy(bytes + header + 34, &flow, sizeof flow);
    guest_->set_descriptor(2 * pair + 1, 0, at, header + frame, false, false);
    guest_->offer(2 * pair + 1, 0);
    guest_->kick(2 * pair + 1);
    return guest_->wait(2 * pair + 1, patience).has_value();
  }
  // Takes one frame from `pair` and gives its buffer back; whether it came from `from`.
  std::optional<bool> take(unsigned pair, const Mac& from, std::chrono::milliseconds timeout) {
    const auto done = guest_->wait(2 * pair, timeout);
    if (!done) return std::nullopt;
    const auto* bytes = guest_->at(guest_->descriptor_address(2 * pair, done->id));
    const bool mine =
        std::memcmp(bytes + sizeof(wire::NetHeader) + 6, from.data(), from.size()) == 0;
    guest_->offer(2 * pair, static_cast<std::uint16_t>(done->id));
    guest_->kick(2 * pair);
    return mine;
  }
  // Takes frames until one is from `from`.
  [[nodiscard]] bool received(unsigned pair, const Mac& from) {
    while (const auto mine = take(pair, from, patience)) {
      if (*mine) return true;
    }
    return false;
  }

 private:
  std::unique_ptr<SocketGuest> guest_;
  Mac mac_;
  std::uint16_t size_;
  std::map<unsigned, std::uint64_t> out_;
};

// A frame each way between two NICs of one pair.
[[nodiscard]] inline bool talk(NicGuest& a, NicGuest& b) {
  return a.send(0, b.mac()) && b.received(0, a.mac()) && b.send(0, a.mac()) &&
         a.received(0, b.mac());
}

}  // namespace millrace::tests
