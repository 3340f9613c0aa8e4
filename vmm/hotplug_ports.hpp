// HotplugPorts: what was added to a guest while it runs, for its ACPI tables to read: how many
// vCPUs there are, and where each piece of added memory lies. Read only for the guest.
//
// Thread: any.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "vmm/bus.hpp"
#include "vmm/platform.hpp"

namespace millrace::vmm {

class HotplugPorts final : public BusDevice {
 public:
  static constexpr std::uint16_t port = 0xa00;
  static constexpr std::uint16_t cpus = 0, memory = 0x100;  // offsets
  static constexpr std::uint16_t slot_size = 8;             // a slot of memory: start, size
  static constexpr std::uint64_t size = memory + std::uint64_t{slot_size} * memory_slots_max;
  static constexpr unsigned unit_shift = 27;  // both in units of 128 MiB

  void set_cpus(unsigned count) { cpus_.store(count); }
  // Both multiples of 128 MiB; the size is not 0.
  void set_memory(unsigned slot, std::uint64_t start, std::uint64_t bytes);

  void read(std::uint64_t offset, std::span<std::byte> data) override;
  void write(std::uint64_t, std::span<const std::byte>) override {}

 private:
  [[nodiscard]] std::byte at(std::uint64_t offset) const;

  std::atomic<unsigned> cpus_{0};
  std::array<std::atomic<std::uint64_t>, memory_slots_max> slots_{};  // size above start
};

}  // namespace millrace::vmm
