// Msix: the MSI-X table and pending bits of one function, in a BAR of its own, and one MsiVector
// for each entry (PCI Local Bus 3.0 §6.8.2).
//
// The function puts capability() into its configuration space and hands set_control() what a guest
// wrote there. A vector is connected while MSI-X is enabled and neither the function nor the vector
// is masked; signals in between stay in its eventfd.
// Thread: any; it locks for itself.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/result.hpp"
#include "vmm/bus.hpp"
#include "vmm/interrupts.hpp"

namespace millrace::vmm {

class Msix final : public BusDevice {
 public:
  static constexpr unsigned vectors_max = 2048;
  static constexpr std::uint8_t capability_id = 0x11;
  // Bits of message control that a guest may write.
  static constexpr std::uint16_t control_enable = 1u << 15, control_mask = 1u << 14;
  using Body = std::array<std::byte, 10>;  // what follows a capability's two header bytes

  // Fails where there is no vector left. `vectors`: 1 to vectors_max.
  static base::Result<std::unique_ptr<Msix>> make(Interrupts& interrupts, unsigned vectors);

  // The capability for a table that lies in BAR `bar`, and its writable bits.
  [[nodiscard]] Body capability(unsigned bar) const;
  [[nodiscard]] static Body writable();
  // Of the BAR: a power of two; the table is at its start, the pending bits in its second half.
  [[nodiscard]] std::uint64_t bar_size() const { return 2 * pending_at(); }
  [[nodiscard]] unsigned vectors() const { return static_cast<unsigned>(entries_.size()); }

  // Message control as it is after a guest's write.
  void set_control(std::uint16_t control);
  // What a device signals to raise `vector`; -1 for a vector that is not there.
  [[nodiscard]] int eventfd(unsigned vector) const;
  void raise(unsigned vector) const;

  void read(std::uint64_t offset, std::span<std::byte> data) override;
  // Double words and quad words, aligned; anything else is undefined there and ignored here.
  void write(std::uint64_t offset, std::span<const std::byte> data) override;

 private:
  struct Entry {
    std::array<std::uint32_t, 4> words{0, 0, 0, 1};  // address, its upper half, data, control
    std::unique_ptr<MsiVector> vector;
    bool connected = false;
    MsiMessage message;  // while connected
  };

  explicit Msix(std::vector<Entry> entries) : entries_{std::move(entries)} {}
  [[nodiscard]] std::uint64_t pending_at() const;
  [[nodiscard]] std::byte byte_at(std::uint64_t offset) const;
  void write_word(std::uint64_t index, std::uint32_t value);
  void update(Entry& entry);

  mutable std::mutex mutex_;
  std::vector<Entry> entries_;  // fixed; an entry's vector too
  bool delivers_ = false;       // enabled and not masked as a whole
  bool complained_ = false;     // said once, whatever the guest does
};

}  // namespace millrace::vmm
