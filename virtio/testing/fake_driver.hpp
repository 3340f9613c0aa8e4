// FakeDriver: the driver's half of a virtqueue, split or packed, over real shared memory. For unit
// tests, fuzzers and benches of everything that serves a queue. Keeps to the specification unless
// told otherwise; what a hostile driver does is written through the raw pointers below.
//
//   testing::FakeDriver driver{{.size = 8, .packed = true}};
//   auto queue = Queue::open(driver.start());              // or device.start_queue(driver.start(),
//   ..) const auto out = driver.allocate(64), in = driver.allocate(512); driver.store(out,
//   Header{...}); const auto id = driver.add({{out, 64}}, {{in, 512}});   // readable, then
//   writable buffers driver.submit();                                         // publish, and kick
//   if the device wants it
//   ...the device works...
//   const auto used = driver.poll();                         // used->id == *id, used->length
//   const auto answer = driver.load<Answer>(in);
//
// Thread: one, which need not be the device's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/fd.hpp"
#include "virtio/device.hpp"
#include "virtio/features.hpp"
#include "virtio/memory.hpp"
#include "virtio/packed_inflight.hpp"
#include "virtio/ring.hpp"
#include "virtio/wire/ring.hpp"

namespace millrace::virtio::testing {

struct DriverConfig {
  std::uint32_t size = 256;
  bool packed = false;
  // Negotiated; RING_PACKED is added for a packed queue.
  std::uint64_t features = feature::version_1 | feature::indirect_desc | feature::event_idx;
  // Where the rings stand at the start. Split: the index, 0 to 65535. Packed: the slot.
  std::uint16_t start = 0;
  bool start_wrap = true;  // packed: the wrap counter at the start
  // Memory for data, beside one region for the rings. They follow each other in guest addresses, so
  // that a buffer can lie across two, and nowhere else: each has a mapping of its own.
  std::vector<std::uint64_t> regions = {1u << 20, 1u << 20, 2u << 20};
};

struct Buffer {
  std::uint64_t address;  // guest
  std::uint32_t size;
};
struct Used {
  std::uint16_t id;
  std::uint32_t length;
};
enum class Layout { direct, indirect };

class FakeDriver {
 public:
  static constexpr std::uint64_t data_address = 0x1'0000'0000;  // of the first data region

  explicit FakeDriver(const DriverConfig& config = {});
  FakeDriver(const FakeDriver&) = delete;
  FakeDriver& operator=(const FakeDriver&) = delete;

  // --- What the device is given ---
  [[nodiscard]] std::uint64_t features() const { return config_.features; }
  [[nodiscard]] std::shared_ptr<const GuestMemory> memory() const { return memory_; }
  // As a front-end sends it for a ring that starts: base from `start`.
  [[nodiscard]] RingSetup setup() const;
  // Everything: memory, ring, duplicates of the kick and call eventfds.
  [[nodiscard]] QueueStart start(unsigned index = 0, bool enabled = true) const;
  [[nodiscard]] int kick_fd() const { return kick_.get(); }
  [[nodiscard]] int call_fd() const { return call_.get(); }
  [[nodiscard]] int error_fd() const { return error_.get(); }

  // --- Guest memory ---
  // Room in the data regions, never across two of them. Stops the test when there is none left.
  [[nodiscard]] std::uint64_t allocate(std::uint64_t size, std::uint64_t align = 16);
  void free_all() { next_free_ = data_address; }
  // These go across regions.
  void write(std::uint64_t address, std::span<const std::byte> bytes);
  void read(std::uint64_t address, std::span<std::byte> bytes) const;
  void fill(std::uint64_t address, std::uint64_t size, std::uint8_t value);
  template <class T>
  void store(std::uint64_t address, const T& value) {
    write(address, std::as_bytes(std::span{&value, 1}));
  }
  template <class T>
  [[nodiscard]] T load(std::uint64_t address) const {
    T out;
    read(address, std::as_writable_bytes(std::span{&out, 1}));
    return out;
  }
  // The bytes themselves, inside one region.
  [[nodiscard]] std::byte* at(std::uint64_t address, std::uint64_t size = 1) const;

  // --- The queue ---
  // Adds one buffer: `out` is for the device to read, `in` to write. Not visible before publish().
  // Nothing where the queue is full.
  std::optional<std::uint16_t> add(std::span<const Buffer> out, std::span<const Buffer> in,
                                   Layout layout = Layout::direct);
  std::optional<std::uint16_t> add(std::initializer_list<Buffer> out,
                                   std::initializer_list<Buffer> in,
                                   Layout layout = Layout::direct) {
    return add(std::span{out.begin(), out.size()}, std::span{in.begin(), in.size()}, layout);
  }
  // One descriptor that names an indirect table at any address, of any length; or nothing.
  std::optional<std::uint16_t> add_table(std::uint64_t address, std::uint32_t bytes);
  // Makes what was added visible. True: the device wants a kick.
  bool publish();
  void kick();
  void submit() {
    if (publish()) kick();
  }
  // The next buffer that the device used; its id and descriptors are free again.
  std::optional<Used> poll();
  // Asks for a call at the next used buffer. True: there is one already.
  bool arm();
  void disarm();
  // Whether a call came since the last time.
  bool called();
  bool error_signalled();
  // Where the next used buffer will show: split: the index; packed: slot and wrap counter.
  [[nodiscard]] PackedPlace used_place() const {
    return config_.packed ? PackedPlace{used_slot_, used_wrap_} : PackedPlace{used_next_, true};
  }
  [[nodiscard]] std::uint32_t outstanding() const { return outstanding_; }
  [[nodiscard]] std::uint32_t free_descriptors() const { return free_count_; }

  // --- Raw, for hostile drivers and for checks ---
  [[nodiscard]] wire::Descriptor* descriptors() const;  // split
  [[nodiscard]] wire::Available* available() const;
  [[nodiscard]] base::le16* available_ring() const;  // used_event at [size]
  [[nodiscard]] wire::Used* used() const;
  [[nodiscard]] wire::UsedElement* used_ring() const;
  [[nodiscard]] base::le16* available_event() const;
  [[nodiscard]] wire::PackedDescriptor* packed_ring() const;
  [[nodiscard]] wire::EventSuppression* driver_event() const;
  [[nodiscard]] wire::EventSuppression* device_event() const;
  // Guest addresses of the ring's parts.
  [[nodiscard]] std::uint64_t descriptors_guest() const;
  [[nodiscard]] std::uint64_t driver_area_guest() const;
  [[nodiscard]] std::uint64_t device_area_guest() const;

 private:
  static constexpr std::uint32_t table_entries = 16;  // of an id's own indirect table
  struct Piece {
    std::uint64_t address;
    std::uint32_t size;
    bool writable, indirect;
  };
  [[nodiscard]] std::uint64_t write_table(std::uint16_t id, std::span<const Buffer> out,
                                          std::span<const Buffer> in);
  std::optional<std::uint16_t> add_split(std::size_t count);
  std::optional<std::uint16_t> add_packed(std::size_t count);
  std::optional<Used> poll_split();
  std::optional<Used> poll_packed();
  void make_memory();
  [[nodiscard]] bool event_index() const { return (features() & feature::event_idx) != 0; }

  DriverConfig config_;
  std::shared_ptr<const GuestMemory> memory_;
  std::byte* rings_ = nullptr;
  std::uint64_t driver_area_ = 0, device_area_ = 0, tables_ = 0;  // offsets in the rings' region
  std::uint64_t next_free_ = data_address;
  base::Fd kick_, call_, error_;

  std::vector<Piece> pieces_;        // of the buffer being added
  std::vector<std::uint16_t> free_;  // free descriptors (split) or ids (packed), first in first out
  std::size_t free_first_ = 0, ids_free_ = 0;
  std::uint32_t free_count_ = 0, outstanding_ = 0;
  std::vector<std::uint16_t> next_;   // split: our own copy of the links
  std::vector<std::uint16_t> count_;  // descriptors of a buffer, by id; 0: not outstanding
  std::uint16_t available_next_ = 0, available_published_ = 0, used_next_ = 0;  // split
  std::uint16_t slot_ = 0, used_slot_ = 0;                                      // packed
  bool wrap_ = true, used_wrap_ = true;
  std::uint32_t unpublished_ = 0;                   // packed: slots
  std::uint16_t first_slot_ = 0, first_flags_ = 0;  // packed: the head held back until publish()
};

}  // namespace millrace::virtio::testing
