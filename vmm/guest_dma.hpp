// GuestDma: a guest's memory, given to the functions of the host that the guest has: each of its
// regions at the address that the guest knows it by. All of it is locked in the host's memory
// meanwhile, also what the guest never touched.
//
// Memory that is added to the guest comes here before the guest hears of it; that is done by a
// thread of its own, since locking it takes long.
// Thread: the one that makes functions; memory_added() the loop's.
#pragma once

#include <memory>
#include <mutex>
#include <thread>

#include "base/result.hpp"
#include "vfio/dma_map.hpp"
#include "vmm/ram.hpp"

namespace millrace::vmm {

class GuestDma final : private RamUser {
 public:
  // `domain` has a group; it and `ram` outlive this. Fails with one line: what Domain::map() says.
  static base::Result<std::unique_ptr<GuestDma>> make(vfio::Domain& domain, const GuestRam& ram);
  // No function reaches the guest's memory any more.
  ~GuestDma();
  GuestDma(const GuestDma&) = delete;
  GuestDma& operator=(const GuestDma&) = delete;

 private:
  GuestDma(vfio::Domain& domain, const GuestRam& ram) : map_{domain}, ram_{ram} {}
  void memory_added() override;
  base::Result<void> map_new();

  vfio::DmaMap map_;
  const GuestRam& ram_;
  std::mutex mutex_;        // of the map and the count
  std::size_t mapped_ = 0;  // regions
  std::thread adding_;
};

}  // namespace millrace::vmm
