// PciDriver: a guest driver's way to a virtio-pci function, by configuration space and bus alone:
// it finds the structures by their capabilities and reads and writes registers as a driver does.
// Thread: one.
#pragma once

#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <thread>

#include "base/check.hpp"
#include "virtio/wire/pci.hpp"
#include "vmm/bus.hpp"
#include "vmm/pci.hpp"

namespace millrace::vmm::testing {

class PciDriver {
 public:
  static constexpr std::uint64_t table_address = 0xc000'0000, structures_address = 0x40'0000'0000;

  // Assigns the BARs and enables them.
  explicit PciDriver(PciFunction& function) : function_{function} {
    function.assign_bar(0, table_address);
    function.assign_bar(4, structures_address);
    function.set_memory_bus(&bus_);
    config_write<std::uint16_t>(4, 6);
    find_structures();
  }
  ~PciDriver() { function_.set_memory_bus(nullptr); }
  PciDriver(const PciDriver&) = delete;
  PciDriver& operator=(const PciDriver&) = delete;

  template <std::integral T>
  [[nodiscard]] T config_read(std::uint32_t offset) {
    T value{};
    function_.config_read(offset, std::as_writable_bytes(std::span{&value, 1}));
    return value;
  }
  template <std::integral T>
  void config_write(std::uint32_t offset, T value) {
    function_.config_write(offset, std::as_bytes(std::span{&value, 1}));
  }

  struct Structure {
    std::uint64_t address = 0;  // on the bus
    std::uint32_t size = 0;
    std::uint8_t capability = 0;
  };
  [[nodiscard]] const Structure& at(virtio::wire::PciCapability type) const {
    return structures_.at(type);
  }
  [[nodiscard]] bool has(virtio::wire::PciCapability type) const {
    return structures_.contains(type);
  }
  [[nodiscard]] std::uint8_t msix() const { return msix_; }

  template <std::integral T>
  [[nodiscard]] T read(std::uint64_t address) {
    T value{};
    CHECK(bus_.read(address, std::as_writable_bytes(std::span{&value, 1})));
    return value;
  }
  template <std::integral T>
  void write(std::uint64_t address, T value) {
    CHECK(bus_.write(address, std::as_bytes(std::span{&value, 1})));
  }
  template <std::integral T>
  [[nodiscard]] T common(std::size_t field) {
    return read<T>(at(virtio::wire::PciCapability::common).address + field);
  }
  template <std::integral T>
  void set_common(std::size_t field, T value) {
    write(at(virtio::wire::PciCapability::common).address + field, value);
  }
  template <std::integral T>
  [[nodiscard]] T device(std::size_t field) {
    return read<T>(at(virtio::wire::PciCapability::device).address + field);
  }

  using Common = virtio::wire::PciCommon;
  [[nodiscard]] std::uint8_t status() { return common<std::uint8_t>(offsetof(Common, status)); }
  void set_status(std::uint8_t value) { set_common(offsetof(Common, status), value); }
  [[nodiscard]] std::uint64_t offered() {
    std::uint64_t features = 0;
    for (std::uint32_t word = 0; word < 2; ++word) {
      set_common(offsetof(Common, device_feature_select), word);
      features |= std::uint64_t{common<std::uint32_t>(offsetof(Common, device_feature))}
                  << (32 * word);
    }
    return features;
  }
  // Up to FEATURES_OK; whether the device keeps it.
  bool negotiate(std::uint64_t features) {
    namespace status = virtio::wire::device_status;
    set_status(status::acknowledge);
    set_status(status::acknowledge | status::driver);
    for (std::uint32_t word = 0; word < 2; ++word) {
      set_common(offsetof(Common, driver_feature_select), word);
      set_common(offsetof(Common, driver_feature),
                 static_cast<std::uint32_t>(features >> (32 * word)));
    }
    set_status(status::acknowledge | status::driver | status::features_ok);
    return (this->status() & status::features_ok) != 0;
  }
  void drive() { set_status(static_cast<std::uint8_t>(status() | 4)); }
  // Writes 0 and waits until that is what is read.
  bool reset(std::chrono::milliseconds patience) {
    set_status(0);
    return until(patience, [this] { return status() == 0; });
  }
  void select(std::uint16_t queue) { set_common(offsetof(Common, queue_select), queue); }
  void set_up_queue(std::uint16_t queue, std::uint16_t size, std::uint64_t descriptors,
                    std::uint64_t driver, std::uint64_t device, std::uint16_t vector) {
    select(queue);
    set_common(offsetof(Common, queue_size), size);
    // By halves, as Linux does it.
    const auto halves = [this](std::size_t field, std::uint64_t value) {
      set_common(field, static_cast<std::uint32_t>(value));
      set_common(field + 4, static_cast<std::uint32_t>(value >> 32));
    };
    halves(offsetof(Common, queue_descriptors), descriptors);
    halves(offsetof(Common, queue_driver), driver);
    halves(offsetof(Common, queue_device), device);
    set_common(offsetof(Common, queue_vector), vector);
    set_common(offsetof(Common, queue_enable), std::uint16_t{1});
  }
  // Where a kick of the queue is written to.
  [[nodiscard]] std::uint64_t doorbell(std::uint16_t queue) {
    select(queue);
    const auto offset = common<std::uint16_t>(offsetof(Common, queue_notify_offset));
    return at(virtio::wire::PciCapability::notify).address + std::uint64_t{offset} * notify_step_;
  }
  // Enables MSI-X and sends vector v to `base` + v.
  void enable_vectors(unsigned count, std::uint32_t base) {
    for (unsigned v = 0; v < count; ++v) {
      write<std::uint32_t>(table_address + 16 * v, 0xfee0'0000);
      write<std::uint32_t>(table_address + 16 * v + 4, 0);
      write<std::uint32_t>(table_address + 16 * v + 8, base + v);
      write<std::uint32_t>(table_address + 16 * v + 12, 0);
    }
    config_write<std::uint16_t>(msix_ + 2u, 0x8000);
  }
  [[nodiscard]] Bus& bus() { return bus_; }

  static bool until(std::chrono::milliseconds patience, const std::function<bool()>& done) {
    const auto deadline = std::chrono::steady_clock::now() + patience;
    while (!done()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::sleep_for(std::chrono::microseconds{200});
    }
    return true;
  }

 private:
  void find_structures() {
    namespace wire = virtio::wire;
    for (auto at = config_read<std::uint8_t>(0x34); at != 0;
         at = config_read<std::uint8_t>(at + 1u)) {
      const auto id = config_read<std::uint8_t>(at);
      if (id == 0x11) msix_ = at;
      if (id != wire::pci_capability_id) continue;
      const auto type = wire::PciCapability{config_read<std::uint8_t>(at + 3u)};
      const auto offset = config_read<std::uint32_t>(at + 8u);
      structures_[type] = {structures_address + offset, config_read<std::uint32_t>(at + 12u), at};
      if (type == wire::PciCapability::notify) notify_step_ = config_read<std::uint32_t>(at + 16u);
    }
  }

  PciFunction& function_;
  Bus bus_;
  std::map<virtio::wire::PciCapability, Structure> structures_;
  std::uint8_t msix_ = 0;
  std::uint32_t notify_step_ = 0;
};

}  // namespace millrace::vmm::testing
