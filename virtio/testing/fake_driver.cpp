#include "virtio/testing/fake_driver.hpp"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/check.hpp"
#include "base/mapping.hpp"
#include "virtio/limits.hpp"
#include "virtio/shared.hpp"

namespace millrace::virtio::testing {

using base::le16;
using base::le32;
using base::le64;

namespace {

constexpr std::uint64_t rings_address = 0x10'0000;        // guest
constexpr std::uint64_t user_address = 0x7f00'0000'0000;  // of the rings' region
constexpr std::uint64_t user_step = 0x2'0000'0000;        // downwards, one region to the next
constexpr std::uint16_t wrap_bit = wire::event_wrap;

constexpr std::uint64_t align_up(std::uint64_t value, std::uint64_t to) {
  return (value + to - 1) / to * to;
}

Region make_region(std::uint64_t guest, std::uint64_t user, std::uint64_t size) {
  const base::Fd file{::memfd_create("fake-driver", MFD_CLOEXEC)};
  CHECK(file.valid() && ::ftruncate(file.get(), static_cast<off_t>(size)) == 0);
  auto mapping = base::Mapping::map(file, 0, size);
  CHECK(mapping.has_value());
  return {guest, size, user, *std::move(mapping)};
}

base::Fd make_event() {
  base::Fd event{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
  CHECK(event.valid());
  return event;
}

base::Fd duplicate(const base::Fd& fd) {
  return base::Fd{::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0)};
}

bool drain(const base::Fd& event) {
  std::uint64_t count = 0;
  return ::read(event.get(), &count, sizeof count) == sizeof count;
}

constexpr std::uint16_t packed_flags(bool wrap) {
  return wrap ? wire::descriptor_available : wire::descriptor_used;
}

// The device used the descriptor in the lap with this wrap counter: both flags say so.
constexpr bool is_used(std::uint16_t flags, bool wrap) {
  constexpr std::uint16_t both = wire::descriptor_available | wire::descriptor_used;
  return (flags & both) == (wrap ? both : 0);
}

// What the device writes into a used descriptor, as the one word that it writes: a thread checker
// knows the order of two accesses only where they are to the same word.
struct alignas(8) UsedTail {
  le32 length;
  le16 id, flags;
};
UsedTail load_used(const wire::PackedDescriptor& shared) {
  const auto* bytes = reinterpret_cast<const std::byte*>(&shared);
  return load_acquire(
      reinterpret_cast<const UsedTail*>(bytes + offsetof(wire::PackedDescriptor, length)));
}

}  // namespace

FakeDriver::FakeDriver(const DriverConfig& config)
    : config_{config}, kick_{make_event()}, call_{make_event()}, error_{make_event()} {
  CHECK(config_.size >= 1 && config_.size <= limits::queue_size_max);
  if (config_.packed) config_.features |= feature::ring_packed;
  make_memory();
  free_.resize(config_.size);
  next_.resize(config_.size);
  count_.resize(config_.size);
  for (std::uint32_t i = 0; i < config_.size; ++i) free_[i] = static_cast<std::uint16_t>(i);
  free_count_ = config_.size;
  ids_free_ = config_.size;
  available_next_ = available_published_ = used_next_ = config_.start;
  slot_ = used_slot_ = static_cast<std::uint16_t>(config_.start % config_.size);
  wrap_ = used_wrap_ = config_.start_wrap;
  if (!config_.packed) {
    available()->index = le16{config_.start};
    used()->index = le16{config_.start};
    available_ring()[config_.size] = le16{config_.start};  // used_event
    available_event()[0] = le16{config_.start};
    return;
  }
  // Slots of earlier laps look used; in the very first lap zero looks right.
  for (std::uint32_t i = 0; i < config_.size; ++i) {
    const bool lap = i < slot_ ? wrap_ : !wrap_;
    constexpr std::uint16_t both = wire::descriptor_available | wire::descriptor_used;
    packed_ring()[i].flags = le16{lap ? both : std::uint16_t{0}};
  }
}

void FakeDriver::make_memory() {
  const std::uint64_t size = config_.size;
  driver_area_ = align_up(size * sizeof(wire::Descriptor), 4096);
  device_area_ = align_up(driver_area_ + sizeof(wire::Available) + (size + 1) * 2, 4096);
  tables_ = align_up(device_area_ + sizeof(wire::Used) + size * 8 + 2, 4096);
  const std::uint64_t bytes = tables_ + size * table_entries * sizeof(wire::Descriptor);
  std::vector<Region> regions;
  regions.push_back(make_region(rings_address, user_address, align_up(bytes, 4096)));
  rings_ = regions[0].mapping->data();
  std::uint64_t guest = data_address;
  for (const auto region_size : config_.regions) {
    regions.push_back(make_region(guest, user_address - regions.size() * user_step, region_size));
    guest += region_size;
  }
  auto memory = GuestMemory::build(std::move(regions));
  CHECK(memory.has_value());
  memory_ = *std::move(memory);
}

RingSetup FakeDriver::setup() const {
  RingSetup out;
  out.size = config_.size;
  out.features = config_.features;
  out.descriptors = user_address;
  out.driver_area = user_address + driver_area_;
  out.device_area = user_address + device_area_;
  out.base = config_.start;
  if (config_.packed) {
    const std::uint32_t place = config_.start % config_.size | (config_.start_wrap ? wrap_bit : 0u);
    out.base = place | place << 16;
  }
  return out;
}

QueueStart FakeDriver::start(unsigned index, bool enabled) const {
  QueueStart out;
  out.index = index;
  out.ring = setup();
  out.memory = memory_;
  out.kick = duplicate(kick_);
  out.call = duplicate(call_);
  out.error = duplicate(error_);
  out.enabled = enabled;
  return out;
}

std::uint64_t FakeDriver::allocate(std::uint64_t size, std::uint64_t align) {
  std::uint64_t start = data_address;
  for (const auto region : config_.regions) {
    const auto at = align_up(std::max(next_free_, start), align);
    if (at + size <= start + region) {
      next_free_ = at + size;
      return at;
    }
    start += region;
  }
  CHECK(false && "the fake driver's memory is used up");
  return 0;
}

std::byte* FakeDriver::at(std::uint64_t address, std::uint64_t size) const {
  GuestMemory::Hint hint;
  const auto bytes = memory_->translate(address, size, hint);
  CHECK(bytes.size() == size);
  return bytes.data();
}

void FakeDriver::write(std::uint64_t address, std::span<const std::byte> bytes) {
  GuestMemory::Hint hint;
  while (!bytes.empty()) {
    const auto piece = memory_->translate(address, bytes.size(), hint);
    CHECK(!piece.empty());
    std::memcpy(piece.data(), bytes.data(), piece.size());
    bytes = bytes.subspan(piece.size());
    address += piece.size();
  }
}

void FakeDriver::read(std::uint64_t address, std::span<std::byte> bytes) const {
  GuestMemory::Hint hint;
  while (!bytes.empty()) {
    const auto piece = memory_->translate(address, bytes.size(), hint);
    CHECK(!piece.empty());
    std::memcpy(bytes.data(), piece.data(), piece.size());
    bytes = bytes.subspan(piece.size());
    address += piece.size();
  }
}

void FakeDriver::fill(std::uint64_t address, std::uint64_t size, std::uint8_t value) {
  const std::vector<std::byte> bytes(size, std::byte{value});
  write(address, bytes);
}

std::optional<std::uint16_t> FakeDriver::add(std::span<const Buffer> out,
                                             std::span<const Buffer> in, Layout layout) {
  pieces_.clear();
  if (layout == Layout::indirect) {
    if (free_count_ == 0) return {};
    const auto id = free_[free_first_ % config_.size];
    const auto bytes = (out.size() + in.size()) * sizeof(wire::Descriptor);
    pieces_.push_back({write_table(id, out, in), static_cast<std::uint32_t>(bytes), false, true});
  } else {
    for (const auto& buffer : out) {
      pieces_.push_back({buffer.address, buffer.size, false, false});
    }
    for (const auto& buffer : in) pieces_.push_back({buffer.address, buffer.size, true, false});
  }
  return config_.packed ? add_packed(pieces_.size()) : add_split(pieces_.size());
}

std::optional<std::uint16_t> FakeDriver::add_table(std::uint64_t address, std::uint32_t bytes) {
  pieces_.assign(1, {address, bytes, false, true});
  return config_.packed ? add_packed(1) : add_split(1);
}

std::uint64_t FakeDriver::write_table(std::uint16_t id, std::span<const Buffer> out,
                                      std::span<const Buffer> in) {
  const std::size_t count = out.size() + in.size();
  const std::uint64_t table =
      count <= table_entries
          ? rings_address + tables_ + id * table_entries * sizeof(wire::Descriptor)
          : allocate(count * sizeof(wire::Descriptor));
  for (std::size_t i = 0; i < count; ++i) {
    const bool writable = i >= out.size();
    const Buffer& buffer = writable ? in[i - out.size()] : out[i];
    std::uint16_t flags = writable ? wire::descriptor_write : 0;
    const auto at = table + i * sizeof(wire::Descriptor);
    if (config_.packed) {
      store(at,
            wire::PackedDescriptor{le64{buffer.address}, le32{buffer.size}, le16{0}, le16{flags}});
      continue;
    }
    if (i + 1 < count) flags |= wire::descriptor_next;
    store(at, wire::Descriptor{le64{buffer.address}, le32{buffer.size}, le16{flags},
                               le16{static_cast<std::uint16_t>(i + 1)}});
  }
  return table;
}

std::optional<std::uint16_t> FakeDriver::add_split(std::size_t count) {
  if (count == 0 || count > free_count_) return {};
  const auto free_at = [this](std::size_t i) { return free_[(free_first_ + i) % config_.size]; };
  const std::uint16_t head = free_at(0);
  for (std::size_t i = 0; i < count; ++i) {
    const Piece& piece = pieces_[i];
    unsigned flags = piece.writable ? wire::descriptor_write : 0;
    if (piece.indirect) flags |= wire::descriptor_indirect;
    std::uint16_t next = 0;
    if (i + 1 < count) {
      flags |= wire::descriptor_next;
      next = free_at(i + 1);
    }
    next_[free_at(i)] = next;
    auto& shared = descriptors()[free_at(i)];
    store_once(&shared.address, le64{piece.address});
    store_once(&shared.length, le32{piece.size});
    store_once(&shared.flags, le16{static_cast<std::uint16_t>(flags)});
    store_once(&shared.next, le16{next});
  }
  free_first_ = (free_first_ + count) % config_.size;
  free_count_ -= static_cast<std::uint32_t>(count);
  ++outstanding_;
  count_[head] = static_cast<std::uint16_t>(count);
  store_once(&available_ring()[available_next_ % config_.size], le16{head});
  ++available_next_;
  return head;
}

// The head of the first buffer since publish() is held back: the device stops there.
std::optional<std::uint16_t> FakeDriver::add_packed(std::size_t count) {
  if (count == 0 || count > free_count_) return {};
  const std::uint16_t id = free_[free_first_];
  free_first_ = (free_first_ + 1) % config_.size;
  --ids_free_;
  const std::uint16_t head = slot_;
  unsigned head_flags = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const Piece& piece = pieces_[i];
    unsigned flags = packed_flags(wrap_) | (piece.writable ? wire::descriptor_write : 0u);
    if (piece.indirect) flags |= wire::descriptor_indirect;
    if (i + 1 < count) flags |= wire::descriptor_next;
    auto& shared = packed_ring()[slot_];
    store_once(&shared.address, le64{piece.address});
    store_once(&shared.length, le32{piece.size});
    store_once(&shared.id, le16{id});
    if (i == 0) {
      head_flags = flags;
    } else {
      store_once(&shared.flags, le16{static_cast<std::uint16_t>(flags)});
    }
    if (++slot_ == config_.size) {
      slot_ = 0;
      wrap_ = !wrap_;
    }
  }
  if (unpublished_ == 0) {
    first_slot_ = head;
    first_flags_ = static_cast<std::uint16_t>(head_flags);
  } else {
    store_release(&packed_ring()[head].flags, le16{static_cast<std::uint16_t>(head_flags)});
  }
  unpublished_ += static_cast<std::uint32_t>(count);
  free_count_ -= static_cast<std::uint32_t>(count);
  ++outstanding_;
  count_[id] = static_cast<std::uint16_t>(count);
  return id;
}

bool FakeDriver::publish() {
  if (!config_.packed) {
    const auto old = std::exchange(available_published_, available_next_);
    if (old == available_next_) return false;
    store_release(&available()->index, le16{available_next_});
    full_fence();
    if (!event_index()) {
      return (load_once(&used()->flags).host() & wire::used_no_notify) == 0;
    }
    const auto event = load_once(available_event()).host();
    return static_cast<std::uint16_t>(available_next_ - event - 1) <
           static_cast<std::uint16_t>(available_next_ - old);
  }
  const auto count = std::exchange(unpublished_, 0);
  if (count == 0) return false;
  store_release(&packed_ring()[first_slot_].flags, le16{first_flags_});
  full_fence();
  const auto event = load_once(device_event());
  const auto flags = event.flags.host() & wire::event_flags_mask;
  if (flags != wire::event_descriptor) return flags == wire::event_enable;
  // §2.8.15: crossed, when the wished slot lies in the `count` slots before ours.
  auto wished = static_cast<std::int32_t>(event.offset_wrap.host() & ~wrap_bit);
  const bool lap = (event.offset_wrap.host() & wrap_bit) != 0;
  if (lap != wrap_) wished -= static_cast<std::int32_t>(config_.size);
  const std::int32_t back = std::int32_t{slot_} - wished;
  return back > 0 && back <= static_cast<std::int32_t>(count);
}

void FakeDriver::kick() {
  const std::uint64_t one = 1;
  CHECK(::write(kick_.get(), &one, sizeof one) == sizeof one);
}

std::optional<Used> FakeDriver::poll() {
  return config_.packed ? poll_packed() : poll_split();
}

std::optional<Used> FakeDriver::poll_split() {
  if (load_acquire(&used()->index).host() == used_next_) return {};
  const auto& element = used_ring()[used_next_ % config_.size];
  const auto id = load_once(&element.id).host();
  CHECK(id < config_.size && count_[id] != 0);
  const Used out{static_cast<std::uint16_t>(id), load_once(&element.length).host()};
  ++used_next_;
  for (std::uint16_t at = out.id; count_[out.id] != 0; --count_[out.id], at = next_[at]) {
    free_[(free_first_ + free_count_) % config_.size] = at;
    ++free_count_;
  }
  --outstanding_;
  return out;
}

std::optional<Used> FakeDriver::poll_packed() {
  const auto tail = load_used(packed_ring()[used_slot_]);
  if (!is_used(tail.flags.host(), used_wrap_)) return {};
  // Held back by ourselves: not visible, and not used.
  if (outstanding_ == 0) return {};
  const Used out{tail.id.host(), tail.length.host()};
  CHECK(out.id < config_.size && count_[out.id] != 0);
  const auto count = std::exchange(count_[out.id], std::uint16_t{0});
  free_[(free_first_ + ids_free_) % config_.size] = out.id;
  ++ids_free_;
  free_count_ += count;
  const std::uint32_t next = used_slot_ + count;
  if (next >= config_.size) used_wrap_ = !used_wrap_;
  used_slot_ = static_cast<std::uint16_t>(next % config_.size);
  --outstanding_;
  return out;
}

bool FakeDriver::arm() {
  if (config_.packed) {
    const auto place = static_cast<std::uint16_t>(used_slot_ | (used_wrap_ ? wrap_bit : 0u));
    store_once(driver_event(),
               event_index() ? wire::EventSuppression{le16{place}, le16{wire::event_descriptor}}
                             : wire::EventSuppression{le16{0}, le16{wire::event_enable}});
    full_fence();
    const auto flags = load_once(&packed_ring()[used_slot_].flags).host();
    return outstanding_ != 0 && is_used(flags, used_wrap_);
  }
  if (event_index()) {
    store_once(&available_ring()[config_.size], le16{used_next_});
  } else {
    store_once(&available()->flags, le16{0});
  }
  full_fence();
  return load_once(&used()->index).host() != used_next_;
}

void FakeDriver::disarm() {
  if (config_.packed) {
    store_once(driver_event(), {le16{0}, le16{wire::event_disable}});
  } else if (event_index()) {
    // As far away as it goes: half the index range behind.
    store_once(&available_ring()[config_.size],
               le16{static_cast<std::uint16_t>(used_next_ - 0x8000)});
  } else {
    store_once(&available()->flags, le16{wire::available_no_interrupt});
  }
}

bool FakeDriver::called() {
  return drain(call_);
}
bool FakeDriver::error_signalled() {
  return drain(error_);
}

namespace {
template <class T>
T* part(std::byte* rings, std::uint64_t offset) {
  return reinterpret_cast<T*>(rings + offset);
}
}  // namespace

wire::Descriptor* FakeDriver::descriptors() const {
  return part<wire::Descriptor>(rings_, 0);
}
wire::Available* FakeDriver::available() const {
  return part<wire::Available>(rings_, driver_area_);
}
le16* FakeDriver::available_ring() const {
  return part<le16>(rings_, driver_area_ + sizeof(wire::Available));
}
wire::Used* FakeDriver::used() const {
  return part<wire::Used>(rings_, device_area_);
}
wire::UsedElement* FakeDriver::used_ring() const {
  return part<wire::UsedElement>(rings_, device_area_ + sizeof(wire::Used));
}
le16* FakeDriver::available_event() const {
  return reinterpret_cast<le16*>(used_ring() + config_.size);
}
wire::PackedDescriptor* FakeDriver::packed_ring() const {
  return part<wire::PackedDescriptor>(rings_, 0);
}
wire::EventSuppression* FakeDriver::driver_event() const {
  return part<wire::EventSuppression>(rings_, driver_area_);
}
wire::EventSuppression* FakeDriver::device_event() const {
  return part<wire::EventSuppression>(rings_, device_area_);
}
std::uint64_t FakeDriver::descriptors_guest() const {
  return rings_address;
}
std::uint64_t FakeDriver::driver_area_guest() const {
  return rings_address + driver_area_;
}
std::uint64_t FakeDriver::device_area_guest() const {
  return rings_address + device_area_;
}

}  // namespace millrace::virtio::testing
