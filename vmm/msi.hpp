// Msi: the one message-signalled interrupt of a function that needs no table: address, data, mask
// and pending bit lie in the capability itself (PCI Local Bus 3.0 §6.8.1).
//
// The function puts capability() into its configuration space and hands set() what a guest wrote
// there. A signal that comes while the interrupt is off or masked stays in its eventfd.
// Thread: none of its own; the function serialises the calls, but for raise().
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "base/result.hpp"
#include "vmm/interrupts.hpp"

namespace millrace::vmm {

class Msi {
 public:
  static constexpr std::uint8_t capability_id = 0x05;
  static constexpr std::uint32_t size = 24;        // of the capability, its header included
  static constexpr std::uint32_t pending_at = 20;  // offset of the pending bits in it
  using Body = std::array<std::byte, size - 2>;    // what follows the two header bytes

  // Fails where there is no vector left.
  static base::Result<Msi> make(Interrupts& interrupts);

  // 64-bit address, one vector, a mask bit; and the bits of it that a guest may write.
  [[nodiscard]] static Body capability();
  [[nodiscard]] static Body writable();

  // The capability as it is after a guest's write, `size` bytes with its header.
  void set(std::span<const std::byte> capability);
  // Whether a signal waits for the interrupt to be unmasked.
  [[nodiscard]] bool pending() const { return vector_->pending(); }
  void raise() const;

 private:
  explicit Msi(std::unique_ptr<MsiVector> vector) : vector_{std::move(vector)} {}

  std::unique_ptr<MsiVector> vector_;
  bool complained_ = false;  // said once, whatever the guest does
};

}  // namespace millrace::vmm
