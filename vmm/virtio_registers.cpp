#include "vmm/virtio_registers.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>

#include "virtio/features.hpp"

namespace millrace::vmm {

namespace {

namespace status = virtio::wire::device_status;
using base::le16, base::le32, base::le64;
using virtio::wire::PciCommon, virtio::wire::pci_no_vector;

std::uint64_t value_of(std::span<const std::byte> data) {
  std::uint64_t value = 0;
  std::memcpy(&value, data.data(), std::min(data.size(), sizeof value));
  return value;
}

// §2.2: features come in words of 32 bits, and there are two of them.
std::uint32_t word_of(std::uint64_t features, std::uint32_t select) {
  return select < 2 ? static_cast<std::uint32_t>(features >> (32 * select)) : 0;
}

// A field of 64 bits may be written as a whole or by halves (§4.1.3.1).
void set_address(std::uint64_t& field, std::uint64_t at, std::uint64_t value, std::size_t size) {
  if (size == 8 && at == 0) field = value;
  if (size != 4 || at % 4 != 0) return;
  const auto shift = 8 * at;
  field = (field & ~(0xffff'ffffull << shift)) | value << shift;
}

}  // namespace

VirtioRegisters::VirtioRegisters(VirtioBackend& backend, Owner& owner)
    : backend_{backend}, owner_{owner} {
  queues_.resize(backend_.queues());
  for (auto& queue : queues_) queue.size = backend_.queue_size_max();
}

bool VirtioRegisters::enabled(unsigned queue) const {
  return queue < queues_.size() && queues_[queue].enabled && !queues_[queue].resetting;
}

bool VirtioRegisters::running() const {
  return (status_ & status::driver_ok) != 0 && !resetting_;
}

unsigned VirtioRegisters::index_of(const Queue& queue) const {
  return static_cast<unsigned>(&queue - queues_.data());
}

std::uint16_t VirtioRegisters::vector_of(std::uint64_t value) const {
  return value < owner_.vectors() ? static_cast<std::uint16_t>(value) : pci_no_vector;
}

PciCommon VirtioRegisters::image() const {
  PciCommon out{};
  out.device_feature_select = le32{device_select_};
  out.device_feature = le32{word_of(backend_.features(), device_select_)};
  out.driver_feature_select = le32{driver_select_};
  out.driver_feature = le32{word_of(driver_features_, driver_select_)};
  out.config_vector = le16{config_vector_};
  out.num_queues = le16{static_cast<std::uint16_t>(queues_.size())};
  out.status = status_;
  out.generation = generation_;
  out.queue_select = le16{queue_select_};
  out.queue_vector = le16{pci_no_vector};
  if (queue_select_ >= queues_.size()) return out;  // a size of 0 says that there is no such queue
  const Queue& queue = queues_[queue_select_];
  out.queue_size = le16{queue.size};
  out.queue_vector = le16{queue.vector};
  out.queue_enable = le16{queue.enabled && !queue.resetting};
  out.queue_notify_offset = out.queue_notify_data = le16{queue_select_};
  out.queue_descriptors = le64{queue.descriptors};
  out.queue_driver = le64{queue.driver};
  out.queue_device = le64{queue.device};
  out.queue_reset = le16{queue.resetting};
  return out;
}

void VirtioRegisters::read(std::uint64_t offset, std::span<std::byte> data) const {
  const auto common = image();
  const auto bytes = std::as_bytes(std::span{&common, 1});
  for (std::size_t i = 0; i < data.size(); ++i) {
    data[i] = offset + i < bytes.size() ? bytes[offset + i] : std::byte{0};
  }
}

void VirtioRegisters::write(std::uint64_t offset, std::span<const std::byte> data) {
  if (offset >= sizeof(PciCommon)) return;
  const auto value = value_of(data);
  if (offset == offsetof(PciCommon, status)) {
    if (data.size() == 1) write_status(static_cast<std::uint8_t>(value));
    return;
  }
  if (resetting_) return;
  if (offset < offsetof(PciCommon, queue_size)) return write_device(offset, value, data.size());
  if (queue_select_ >= queues_.size()) return;
  write_queue(queues_[queue_select_], offset, value, data.size());
}

void VirtioRegisters::write_device(std::uint64_t offset, std::uint64_t value, std::size_t size) {
  const auto is = [&](std::size_t field, std::size_t width) {
    return offset == field && size == width;
  };
  const auto word = static_cast<std::uint32_t>(value);
  if (is(offsetof(PciCommon, device_feature_select), 4)) device_select_ = word;
  if (is(offsetof(PciCommon, driver_feature_select), 4)) driver_select_ = word;
  if (is(offsetof(PciCommon, queue_select), 2)) queue_select_ = static_cast<std::uint16_t>(value);
  if (is(offsetof(PciCommon, config_vector), 2)) config_vector_ = vector_of(value);
  // Once they are agreed upon they stay (§3.1.1).
  if (is(offsetof(PciCommon, driver_feature), 4) && (status_ & status::features_ok) == 0) {
    if (driver_select_ >= 2) return;
    const auto shift = 32 * driver_select_;
    driver_features_ = (driver_features_ & ~(0xffff'ffffull << shift)) | value << shift;
  }
}

void VirtioRegisters::write_queue(Queue& queue, std::uint64_t offset, std::uint64_t value,
                                  std::size_t size) {
  if (queue.resetting) return;
  if (size == 2 && offset == offsetof(PciCommon, queue_vector)) {
    queue.vector = vector_of(value);
    if (running() && queue.enabled) {
      backend_.set_call(index_of(queue), owner_.vector_fd(queue.vector));
    }
  } else if (size == 2 && offset == offsetof(PciCommon, queue_enable)) {
    if (value == 1) enable(queue);
  } else if (size == 2 && offset == offsetof(PciCommon, queue_reset)) {
    if (value == 1) start_reset_of(queue);
  }
  if (queue.enabled) return;  // its place is fixed now (§4.1.4.3.2)
  if (size == 2 && offset == offsetof(PciCommon, queue_size)) {
    const bool packed = (driver_features_ & virtio::feature::ring_packed) != 0;
    const bool fits = value >= 1 && value <= backend_.queue_size_max();
    if (fits && (packed || std::has_single_bit(value))) {
      queue.size = static_cast<std::uint16_t>(value);
    }
  } else if (offset >= offsetof(PciCommon, queue_descriptors) &&
             offset < offsetof(PciCommon, queue_notify_data)) {
    const auto at = offset - offsetof(PciCommon, queue_descriptors);
    auto& field = at < 8 ? queue.descriptors : at < 16 ? queue.driver : queue.device;
    set_address(field, at % 8, value, size);
  }
}

bool VirtioRegisters::features_acceptable() const {
  return (driver_features_ & ~backend_.features()) == 0 &&
         (driver_features_ & virtio::feature::version_1) != 0;
}

// §2.1.1: a driver only adds bits, until it resets.
void VirtioRegisters::write_status(std::uint8_t value) {
  if (value == 0) return reset();
  if (resetting_) return;
  auto added = static_cast<std::uint8_t>(value & ~status_ & ~status::needs_reset);
  if ((added & status::features_ok) != 0 && !features_acceptable()) {
    added = static_cast<std::uint8_t>(added & ~status::features_ok);
  }
  if (((status_ | added) & status::features_ok) == 0) {
    added = static_cast<std::uint8_t>(added & ~status::driver_ok);
  }
  status_ = static_cast<std::uint8_t>(status_ | added);
  if ((added & status::driver_ok) != 0) activate();
}

VirtQueue VirtioRegisters::set_up(unsigned index) const {
  const Queue& queue = queues_[index];
  return {.index = index,
          .size = queue.size,
          .descriptors = queue.descriptors,
          .driver = queue.driver,
          .device = queue.device,
          .kick = owner_.kick_fd(index),
          .call = owner_.vector_fd(queue.vector)};
}

void VirtioRegisters::activate() {
  std::vector<VirtQueue> ready;
  for (unsigned i = 0; i < queues_.size(); ++i) {
    if (queues_[i].enabled) ready.push_back(set_up(i));
  }
  active_ = true;
  backend_.activate(driver_features_, ready);
}

void VirtioRegisters::enable(Queue& queue) {
  if (queue.enabled || (status_ & status::features_ok) == 0) return;
  queue.enabled = true;
  owner_.queue_enabled(index_of(queue), true);
  if (active_) backend_.start_queue(set_up(index_of(queue)));
}

// §2.6.1.
void VirtioRegisters::start_reset_of(Queue& queue) {
  if (!queue.enabled || (driver_features_ & virtio::feature::ring_reset) == 0) return;
  if (!active_) return forget(index_of(queue));
  queue.resetting = true;
  owner_.queue_enabled(index_of(queue), false);
  backend_.stop_queue(index_of(queue));
}

void VirtioRegisters::forget(unsigned index) {
  if (queues_[index].enabled) owner_.queue_enabled(index, false);
  queues_[index] = Queue{};
  queues_[index].size = backend_.queue_size_max();
}

void VirtioRegisters::reset() {
  if (resetting_) return;
  if (active_) {
    resetting_ = true;
    return backend_.stop();
  }
  backend_stopped();
}

void VirtioRegisters::backend_stopped() {
  for (unsigned i = 0; i < queues_.size(); ++i) forget(i);
  device_select_ = driver_select_ = 0;
  driver_features_ = 0;
  config_vector_ = pci_no_vector;
  queue_select_ = 0;
  status_ = 0;
  resetting_ = active_ = false;
  owner_.reset_done();
}

void VirtioRegisters::backend_queue_stopped(unsigned index) {
  if (resetting_ || index >= queues_.size() || !queues_[index].resetting) return;
  forget(index);
}

bool VirtioRegisters::backend_needs_reset() {
  if (!active_ || resetting_) return false;
  status_ |= status::needs_reset;
  return running();
}

bool VirtioRegisters::config_changed() {
  ++generation_;
  return running();
}

}  // namespace millrace::vmm
