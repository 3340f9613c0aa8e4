// GuestRing: a FakeDriver that speaks in bytes: posts chains of any shape, returns what was written
// into them in the order of the ring, and checks the dirty log, the inflight region, and that no
// byte behind a buffer was written.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "net/testing/frames.hpp"
#include "virtio/features.hpp"
#include "virtio/inflight.hpp"
#include "virtio/queue.hpp"
#include "virtio/shared.hpp"
#include "virtio/testing/fake_driver.hpp"

namespace millrace::net::testing {

class GuestRing {
 public:
  struct Done {
    unsigned chain;        // as send() named it
    std::uint32_t length;  // what the device says it wrote
    Bytes bytes;           // those bytes
  };

  GuestRing(std::uint64_t features, std::uint32_t size)
      : driver_{{.size = size,
                 .packed = (features & virtio::feature::ring_packed) != 0,
                 .features = features,
                 .regions = {region_size}}} {}

  [[nodiscard]] virtio::QueueStart start(unsigned index, bool enabled) {
    virtio::QueueStart out = driver_.start(index, enabled);
    out.inflight = inflight_;
    return out;
  }
  [[nodiscard]] std::unique_ptr<virtio::Queue> open(unsigned index, bool enabled) {
    return std::move(virtio::Queue::open(start(index, enabled)).value());
  }

  // From now on its queue, of index 0 or 1, has an inflight region.
  void track() {
    const auto setup = driver_.setup();
    const bool packed = (setup.features & virtio::feature::ring_packed) != 0;
    const auto bytes = virtio::InflightRegion::size_for(2, setup.size, packed);
    inflight_ =
        *virtio::InflightRegion::attach(*base::Mapping::anonymous(bytes), 0, 2, setup.size, packed);
  }
  // What a successor would be told is in flight. The queue is not used afterwards.
  [[nodiscard]] std::size_t left_in_flight(unsigned index) {
    return open(index, true)->with_ring([](auto& ring) { return ring.resubmits(); });
  }
  // A chain of one descriptor goes without a table, as Linux does it.
  void tables_for_several() { table_min_ = 2; }

  // A chain of readable descriptors with these bytes, then of writable ones of these sizes. In an
  // indirect table where that was negotiated and is short enough. Does not kick.
  unsigned send(const std::vector<Bytes>& readable, const std::vector<std::size_t>& writable = {}) {
    std::vector<Buffer> out, in;
    for (const Bytes& bytes : readable) {
      out.push_back(place(bytes.size()));
      driver_.write(out.back().address, std::as_bytes(std::span{bytes}));
    }
    for (const std::size_t size : writable) in.push_back(place(size));
    return publish(out, in);
  }
  unsigned post(const std::vector<std::size_t>& writable) { return send({}, writable); }
  void send_outside_memory() { publish({{1ull << 50, 100}}, {}); }

  // The oldest buffer that the device gave back and that was not seen yet.
  [[nodiscard]] std::optional<Done> take_used() {
    const auto place = driver_.used_place();
    const auto used = driver_.poll();
    if (!used) return std::nullopt;
    note_used(place.index);
    EXPECT_FALSE(outstanding_.empty());
    EXPECT_EQ(used->id, outstanding_.front().id) << "buffers are used in order";
    const Chain chain = outstanding_.front();
    outstanding_.pop_front();
    for (const Buffer& buffer : chain.writable) {
      EXPECT_EQ(*driver_.at(buffer.address + buffer.size), guard) << "written behind a buffer";
    }
    Done done{chain.number, used->length, {}};
    std::uint32_t left = used->length;
    for (const Buffer& buffer : chain.writable) {
      const std::uint32_t part = std::min(left, buffer.size);
      if (part == 0) break;
      const auto* from = reinterpret_cast<const std::uint8_t*>(driver_.at(buffer.address, part));
      done.bytes.insert(done.bytes.end(), from, from + part);
      for (auto at = buffer.address / 4096; at <= (buffer.address + part - 1) / 4096; ++at) {
        written_pages_.insert(at);
      }
      left -= part;
    }
    EXPECT_EQ(left, 0u) << "more used than there is";
    return done;
  }

  void kick() { driver_.kick(); }
  // Whether the device asks for a kick at the next buffer.
  [[nodiscard]] bool wants_kick() {
    if ((driver_.features() & virtio::feature::ring_packed) != 0) {
      return virtio::load_acquire(&driver_.device_event()->flags).host() !=
             virtio::wire::event_disable;
    }
    if ((driver_.features() & virtio::feature::event_idx) == 0) {
      return (virtio::load_acquire(&driver_.used()->flags).host() & virtio::wire::used_no_notify) ==
             0;
    }
    return virtio::load_acquire(driver_.available_event()) == driver_.available()->index;
  }

  // Inverts one byte of what send() put into memory.
  void flip_sent(unsigned chain, std::size_t offset) {
    for (const Buffer& buffer : sent_.at(chain)) {
      if (offset < buffer.size) {
        *driver_.at(buffer.address + offset) ^= std::byte{0xff};
        return;
      }
      offset -= buffer.size;
    }
    ADD_FAILURE() << "no such byte";
  }

  void start_log(virtio::QueueWorker& worker) {
    const std::uint64_t end = driver_.memory()->guest_end();
    bitmap_ = base::Mapping::anonymous(end / virtio::DirtyLog::page_size / 8 + 8).value();
    auto log = std::make_shared<virtio::DirtyLog>(bitmap_);
    worker.queue().swap_log(log);
    written_pages_.clear();
  }
  // Every page of what the device said it wrote, since start_log(), is marked.
  [[nodiscard]] bool every_written_page_is_logged() const {
    bool all = !written_pages_.empty();
    for (const std::uint64_t page : written_pages_) {
      const auto byte = std::to_integer<unsigned>(bitmap_->data()[page / 8]);
      all = all && ((byte >> (page % 8)) & 1) != 0;
    }
    return all;
  }
  // The same, and no other page is. Begins the log anew.
  [[nodiscard]] bool exactly_what_was_written_is_logged() {
    std::set<std::uint64_t> marked;
    for (const virtio::Region& region : driver_.memory()->regions()) {
      const std::uint64_t first = region.guest_address / virtio::DirtyLog::page_size;
      const std::uint64_t end = first + region.size / virtio::DirtyLog::page_size;
      for (auto byte = first / 8; byte <= (end - 1) / 8; ++byte) {
        auto bits = std::to_integer<unsigned>(std::exchange(bitmap_->data()[byte], std::byte{}));
        for (; bits != 0; bits &= bits - 1) {
          marked.insert(8 * byte + static_cast<unsigned>(std::countr_zero(bits)));
        }
      }
    }
    return marked == std::exchange(written_pages_, {});
  }
  [[nodiscard]] bool all_came_back() const { return outstanding_.empty(); }

 private:
  using Buffer = virtio::testing::Buffer;
  struct Chain {
    unsigned number;
    std::uint16_t id;
    std::vector<Buffer> writable;
  };
  static constexpr std::uint64_t region_size = 24u << 20;
  static constexpr std::size_t table_max = 16;  // FakeDriver's own indirect tables
  static constexpr std::byte guard{0xa5};

  // Room for `size` bytes, at an odd address now and then. Old buffers are overwritten in the end.
  [[nodiscard]] Buffer place(std::size_t size) {
    if (placed_ + size + 1 > region_size) driver_.free_all(), placed_ = 0;
    placed_ += size + 1;
    return {driver_.allocate(size + 1, 1), static_cast<std::uint32_t>(size)};
  }
  unsigned publish(const std::vector<Buffer>& out, const std::vector<Buffer>& in) {
    for (const Buffer& buffer : in) {
      std::memset(driver_.at(buffer.address, buffer.size + 1), std::to_integer<int>(guard),
                  buffer.size + 1);
    }
    const std::size_t count = out.size() + in.size();
    const bool indirect = (driver_.features() & virtio::feature::indirect_desc) != 0 &&
                          count >= table_min_ && count <= table_max;
    const auto id = driver_.add(
        out, in, indirect ? virtio::testing::Layout::indirect : virtio::testing::Layout::direct);
    EXPECT_TRUE(id.has_value()) << "the test overfills its ring";
    static_cast<void>(driver_.publish());
    sent_[chains_] = out;
    outstanding_.push_back({chains_, id.value_or(0), in});
    return chains_++;
  }
  // The device wrote the used entry there, and with a split ring its index.
  void note_used(std::uint32_t at) {
    const auto setup = driver_.setup();
    if ((setup.features & virtio::feature::ring_packed) != 0) {
      const auto address =
          driver_.descriptors_guest() + at * sizeof(virtio::wire::PackedDescriptor);
      written_pages_.insert(address / virtio::DirtyLog::page_size);
      return;
    }
    const auto entry =
        sizeof(virtio::wire::Used) + at % setup.size * sizeof(virtio::wire::UsedElement);
    written_pages_.insert(driver_.device_area_guest() / virtio::DirtyLog::page_size);
    written_pages_.insert((driver_.device_area_guest() + entry) / virtio::DirtyLog::page_size);
    written_pages_.insert((driver_.device_area_guest() + entry + 7) / virtio::DirtyLog::page_size);
  }

  virtio::testing::FakeDriver driver_;
  std::shared_ptr<virtio::InflightRegion> inflight_;
  std::size_t table_min_ = 1;
  std::shared_ptr<const base::Mapping> bitmap_;
  std::deque<Chain> outstanding_;
  std::map<unsigned, std::vector<Buffer>> sent_;
  std::set<std::uint64_t> written_pages_;
  std::uint64_t placed_ = 0;
  unsigned chains_ = 0;
};

}  // namespace millrace::net::testing
