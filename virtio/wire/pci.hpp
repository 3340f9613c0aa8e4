// virtio over PCI: virtio 1.2 §4.1. Layout and numbers only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/endian.hpp"

namespace millrace::virtio::wire {

inline constexpr std::uint16_t pci_vendor = 0x1af4;       // §4.1.2: of device and subsystem
inline constexpr std::uint16_t pci_device_base = 0x1040;  // plus the device type, §5
inline constexpr std::uint16_t pci_no_vector = 0xffff;    // §4.1.4.3: VIRTIO_MSI_NO_VECTOR

// §2.1: device status.
namespace device_status {
inline constexpr std::uint8_t acknowledge = 1, driver = 2, driver_ok = 4, features_ok = 8,
                              needs_reset = 64, failed = 128;
}

// §4.1.4: struct virtio_pci_cap.
enum class PciCapability : std::uint8_t { common = 1, notify = 2, isr = 3, device = 4, window = 5 };
inline constexpr std::uint8_t pci_capability_id = 0x09;  // vendor specific
// Offsets are from the capability's first byte.
inline constexpr std::size_t pci_capability_length = 2, pci_capability_type = 3,
                             pci_capability_bar = 4, pci_capability_offset = 8,
                             pci_capability_size = 12, pci_capability_end = 16;
// What follows in the notify capability (the multiplier) and in the window (its data).
inline constexpr std::size_t pci_capability_extra = 16, pci_capability_extra_end = 20;

// §4.1.4.3: struct virtio_pci_common_cfg.
struct PciCommon {
  base::le32 device_feature_select;
  base::le32 device_feature;
  base::le32 driver_feature_select;
  base::le32 driver_feature;
  base::le16 config_vector;
  base::le16 num_queues;
  std::uint8_t status;
  std::uint8_t generation;
  base::le16 queue_select;
  base::le16 queue_size;
  base::le16 queue_vector;
  base::le16 queue_enable;
  base::le16 queue_notify_offset;
  base::le64 queue_descriptors;
  base::le64 queue_driver;
  base::le64 queue_device;
  base::le16 queue_notify_data;
  base::le16 queue_reset;
  std::uint8_t reserved[4];
};
static_assert(sizeof(PciCommon) == 64 && std::is_trivially_copyable_v<PciCommon>);
static_assert(offsetof(PciCommon, status) == 0x14 &&
              offsetof(PciCommon, queue_descriptors) == 0x20);
static_assert(offsetof(PciCommon, queue_reset) == 0x3a);

// §4.1.4.5: bits of the ISR status byte, which a read clears.
inline constexpr std::uint8_t isr_queue = 1, isr_config = 2;

}  // namespace millrace::virtio::wire
