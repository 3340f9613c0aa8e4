// DiskEnd: one vhost-user disk as a driver sees it: requests that are put up and come back. One
// queue, one thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.hpp"
#include "base/result.hpp"
#include "bench/blk_load.hpp"
#include "bench/ring_driver.hpp"
#include "bench/socket_guest.hpp"
#include "virtio/wire/blk.hpp"

namespace millrace::bench {

inline constexpr unsigned request_segments = 3;  // header, data, status

// The disk as it was found, and where in the guest's memory the requests are.
struct Disk {
  BlkLoadConfig config;
  std::unique_ptr<SocketGuest> guest;
  std::uint64_t capacity = 0, blocks = 0;  // bytes; blocks of config.block in use
  std::uint64_t requests = 0, data = 0;
};

// What a request is beside its data, in a line of its own, as drivers have it.
struct alignas(64) RequestRoom {
  virtio::wire::BlkHeader header;
  std::uint8_t status;
};

// Connects to config.socket and starts the queue. Fails in one line.
base::Result<Disk> find_disk(const BlkLoadConfig& config);

template <class Driver>
class DiskEnd {
 public:
  explicit DiskEnd(Disk disk)
      : disk_{std::move(disk)},
        driver_{*disk_.guest, 0, request_segments},
        sent_(driver_.places()) {}

  struct Sent {
    std::uint64_t at = 0, block = 0;  // `at` in TSC cycles
    unsigned place = 0;
    bool write = false;
  };

  // Puts one request up, not visible yet; its data are those of next_place().
  // `now`: TSC cycles.
  void add(bool write, std::uint64_t block, std::uint64_t now) {
    using virtio::wire::BlkHeader;
    const auto place = driver_.next_place();
    const auto room_at = room_of(place);
    const auto type =
        static_cast<std::uint32_t>(write ? virtio::wire::BlkType::out : virtio::wire::BlkType::in);
    const auto sectors = disk_.config.block / virtio::wire::blk_sector_size;
    const BlkHeader header{base::le32{type}, base::le32{0}, base::le64{block * sectors}};
    std::memcpy(disk_.guest->at(room_at), &header, sizeof header);
    *disk_.guest->at(room_at + status_at) = std::byte{no_status};
    const std::array<Segment, request_segments> chain{
        Segment{room_at, sizeof header, false},
        Segment{data_of(place), disk_.config.block, !write},
        Segment{room_at + status_at, 1, true},
    };
    sent_[place] = {now, block, place, write};
    driver_.add(chain);
    ++in_flight_;
  }
  // Shows the device what was added.
  void show() { shown_ = driver_.show() || shown_; }
  // After that and a full fence: kicks where the device wants it. True: it was kicked.
  bool kick() {
    if (!std::exchange(shown_, false) || !driver_.wants_kick()) return false;
    driver_.kick();
    return true;
  }
  // A finished request; none where none is.
  std::optional<Sent> reap() {
    const auto done = driver_.reap();
    if (!done) return std::nullopt;
    const auto& sent = sent_[done->id];
    --in_flight_;
    const auto status = *disk_.guest->at(room_of(sent.place) + status_at);
    failed_ = failed_ || status != std::byte{0};
    return sent;
  }
  // Waits for what is in flight, so that the next run starts with an idle device.
  base::Result<void> finish() {
    const auto deadline = base::cycles() + base::ns_to_cycles(patience_ns);
    while (in_flight_ > 0 && trouble().empty()) {
      if (!reap() && base::cycles() > deadline) return base::fail(stood_still(in_flight_));
    }
    return trouble().empty() ? base::Result<void>{} : base::fail(trouble());
  }

  [[nodiscard]] unsigned next_place() const { return driver_.next_place(); }
  [[nodiscard]] std::span<std::byte> data(unsigned place) {
    return {disk_.guest->at(data_of(place)), disk_.config.block};
  }
  [[nodiscard]] bool well() const { return !failed_ && !driver_.broken(); }
  // Why nothing more is worth doing; empty: all is well.
  [[nodiscard]] std::string trouble() const {
    if (failed_) return "a request failed: the device gave a status that is not OK";
    if (driver_.broken()) return "the device gave back a buffer that it did not have";
    return {};
  }
  [[nodiscard]] unsigned in_flight() const { return in_flight_; }
  [[nodiscard]] const Disk& disk() const { return disk_; }

 private:
  static constexpr std::uint8_t no_status = 0xff;
  static constexpr std::uint64_t status_at = offsetof(RequestRoom, status);
  [[nodiscard]] std::uint64_t room_of(unsigned place) const {
    return disk_.requests + place * sizeof(RequestRoom);
  }
  [[nodiscard]] std::uint64_t data_of(unsigned place) const {
    return disk_.data + std::uint64_t{place} * disk_.config.block;
  }

  Disk disk_;
  Driver driver_;
  std::vector<Sent> sent_;
  unsigned in_flight_ = 0;
  bool shown_ = false;  // and the device was not kicked since
  bool failed_ = false;
};

}  // namespace millrace::bench
