// EalDomain: an IOMMU domain of its own for a PCI function that a poll-mode driver of DPDK's has,
// so that memory can be given to this function alone.
//
// DPDK owns container and group; this makes them before the driver is probed, and maps DPDK's own
// memory there, which DPDK does only in its default container: all of it now, and what it takes
// later as it takes it. What else is mapped goes by our own calls, because DPDK keeps a list of at
// most 256. Threads: made and destroyed by control, the EAL running; map() and unmap() any.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "daemon/dma_door.hpp"
#include "vfio/domain.hpp"
#include "vfio/iova_space.hpp"

namespace millrace::daemon {

class EalDomain final : public DmaDoor {
 public:
  // `function`: 0000:01:00.0, driven by vfio-pci and not plugged in yet. Fails with one line.
  // `access`: what it does with memory that is given to it.
  static base::Result<std::unique_ptr<EalDomain>> make(const std::string& function,
                                                       vfio::Access access);
  // The function was unplugged. What is mapped goes.
  ~EalDomain() override;
  EalDomain(const EalDomain&) = delete;
  EalDomain& operator=(const EalDomain&) = delete;

  base::Result<void> map(std::uint64_t iova, const std::byte* address,
                         std::uint64_t bytes) override;
  base::Result<void> unmap(std::uint64_t iova, std::uint64_t bytes) override;
  // The same for memory of DPDK's, which the device also writes.
  base::Result<void> map_own(std::uint64_t iova, const std::byte* address, std::uint64_t bytes);
  // The addresses of this domain without those that DPDK's memory has or may get.
  [[nodiscard]] vfio::IovaSpace free_space() const;

 private:
  EalDomain(int container, std::string function, vfio::Access access)
      : container_{container},
        access_{access},
        domain_{vfio::Domain::borrow(container)},
        name_{"millrace " + std::move(function)} {}
  base::Result<void> attach(const std::string& function);
  base::Result<void> map_eal_memory();

  struct Range {
    std::uint64_t address, bytes;
  };
  const int container_;
  const vfio::Access access_;
  vfio::Domain domain_;
  const std::string name_;
  std::mutex mutex_;                // of the domain
  std::vector<Range> eal_reserve_;  // where DPDK's memory is or may be
  bool listening_ = false;
};

}  // namespace millrace::daemon
