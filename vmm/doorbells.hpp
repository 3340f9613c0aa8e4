// Doorbells: guest addresses whose writes signal an eventfd inside KVM (KVM_IOEVENTFD), without an
// exit to this program: a driver's kick goes straight to the back-end that has the eventfd.
//
// Thread: any; it locks for itself.
#pragma once

#include <cstdint>

#include "base/result.hpp"

namespace millrace::vmm {

class Doorbells {
 public:
  virtual ~Doorbells() = default;
  // A guest's write of `length` bytes (1, 2, 4, 8; 0: of any length) at `guest_address`, which is
  // no RAM, signals `eventfd` from now on. Fails where another doorbell has that address and
  // length, or KVM's table is full. `eventfd` stays open until remove().
  virtual base::Result<void> assign(std::uint64_t guest_address, unsigned length, int eventfd) = 0;
  // Takes back what assign() was given; nothing happens where there was no such doorbell.
  virtual void remove(std::uint64_t guest_address, unsigned length, int eventfd) = 0;
};

}  // namespace millrace::vmm
