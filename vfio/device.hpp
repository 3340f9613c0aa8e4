// Device: a PCI function that this process has: its regions (BARs, configuration space), its reset,
// its interrupts. Its descriptor is open as long as this; the kernel disables and resets the
// function when it is closed.
//
// Accesses through read() and write() are made by the kernel, which answers with an error where the
// function is gone. What map() answers is the device itself: touching it while the function is gone
// or its memory is off raises SIGBUS, so it is for guests and for drivers that know.
// Thread: any; the interrupts' calls one at a time.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "vfio/group.hpp"
#include "vfio/kernel.hpp"

namespace millrace::vfio {

// Numbers of regions, as VFIO has them.
inline constexpr unsigned bars = 6, region_config = 7;

struct Area {
  std::uint64_t offset = 0, size = 0;
  [[nodiscard]] std::uint64_t end() const { return offset + size; }
  friend bool operator==(const Area&, const Area&) = default;
};

struct Region {
  std::uint64_t size = 0;  // 0: there is none
  bool readable = false, writable = false;
  std::vector<Area> mappable;  // parts that map() takes, in order; whole pages
  std::uint64_t at = 0;        // where it lies in the device's descriptor
};

// Interrupts of a PCI function, as VFIO has them. `error`: an uncorrectable error; `request`: the
// host wants the function back, and says so again every ten seconds.
enum class Irq : unsigned { intx = 0, msi = 1, msix = 2, error = 3, request = 4 };

class Device {
 public:
  // `group` is in a domain. `address`: 0000:01:10.0. Fails with one line.
  static base::Result<Device> open(const Group& group, const std::string& address,
                                   Kernel& kernel = host_kernel());

  [[nodiscard]] const std::string& address() const { return address_; }
  // 0 to 5: BARs; region_config; others have no bytes.
  [[nodiscard]] const Region& region(unsigned index) const;

  // All of `data` or nothing. Fails where that is outside of the region, or the function is gone.
  base::Result<void> read(unsigned region, std::uint64_t offset, std::span<std::byte> data) const;
  base::Result<void> write(unsigned region, std::uint64_t offset,
                           std::span<const std::byte> data) const;
  // A whole area of Region::mappable, until unmap(). Fails with one line.
  [[nodiscard]] base::Result<std::byte*> map(unsigned region, const Area& area) const;
  void unmap(std::byte* address, const Area& area) const;

  // Whether the function can be brought back to how it was when it was powered on.
  [[nodiscard]] bool can_reset() const { return can_reset_; }
  // Does so; its interrupts and its configuration space are as they were set before. Takes 100 ms
  // and more. Fails with one line: it cannot, or another call has it.
  base::Result<void> reset() const;

  // Vectors that the function has of that kind; 0: none.
  [[nodiscard]] unsigned vectors(Irq kind) const;
  // From now on, vector n of that kind signals eventfds[n] (-1: nobody), and none beyond; what was
  // set before is off. There is no mask for MSI and MSI-X: who masks sends the eventfd elsewhere.
  // The function has one of INTx, MSI and MSI-X at a time. INTx is masked when it comes, until
  // unmask_intx(). Fails with one line.
  base::Result<void> set_irqs(Irq kind, std::span<const int> eventfds) const;
  // Changes one vector of those that set_irqs() set.
  base::Result<void> set_irq(Irq kind, unsigned vector, int eventfd) const;
  void clear_irqs(Irq kind) const;
  base::Result<void> unmask_intx() const;

 private:
  Device(Kernel& kernel, base::Fd fd, std::string address)
      : kernel_{&kernel}, fd_{std::move(fd)}, address_{std::move(address)} {}
  base::Result<void> look();
  base::Result<Region> look_at(unsigned region) const;
  base::Result<void> set(Irq kind, unsigned start, std::span<const int> eventfds) const;

  Kernel* kernel_;
  base::Fd fd_;
  std::string address_;
  bool can_reset_ = false;
  std::vector<Region> regions_;
  std::vector<unsigned> vectors_;  // by Irq
};

}  // namespace millrace::vfio
