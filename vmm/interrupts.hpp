// Interrupts: message-signalled interrupts of a guest, from the eventfd that a back-end signals to
// the vCPU, without a thread of ours between (KVM irqfd).
//
// Thread: any; it locks for itself.
#pragma once

#include <cstdint>
#include <memory>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace millrace::vmm {

struct MsiMessage {
  std::uint64_t address = 0;
  std::uint32_t data = 0;
  friend bool operator==(const MsiMessage&, const MsiMessage&) = default;
};

// The source of one vector. An eventfd that is signalled while the vector is not connected keeps
// its count; connecting delivers it then (that is the latch of a masked vector).
class MsiVector {
 public:
  virtual ~MsiVector() = default;  // disconnected first
  // Signalled by whoever raises the vector; the same descriptor for the vector's life.
  [[nodiscard]] virtual int eventfd() const = 0;
  // Unmasked with this message: signals go to the guest from now on.
  virtual base::Result<void> connect(const MsiMessage& message) = 0;
  // Masked: signals stay in the eventfd.
  virtual void disconnect() = 0;
  // Whether a signal waits in the eventfd of a vector that is not connected (the pending bit).
  [[nodiscard]] virtual bool pending() const = 0;
};

class Interrupts {
 public:
  virtual ~Interrupts() = default;
  // Fails where KVM's routes (4096) or descriptors are used up.
  virtual base::Result<std::unique_ptr<MsiVector>> make_vector() = 0;
};

}  // namespace millrace::vmm
