// HostFunctions: the functions of the host (VFIO) that a guest has, or may be given while it runs.
//
// Their IOMMU groups are opened at the start, before the sandbox closes, and are held until the
// end: nobody else can have them. A function itself is opened when a guest gets it and closed, and
// thereby reset, when it goes: by a restart of the guest, too.
// Thread: open() and watch() the loop's; take() any.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/event_loop.hpp"
#include "base/fd.hpp"
#include "base/result.hpp"
#include "vfio/device.hpp"
#include "vfio/domain.hpp"
#include "vfio/group.hpp"
#include "vmm/guest_dma.hpp"

namespace millrace::vmm {

class HostFunctions {
 public:
  // A function that a guest has, with what it takes to reach the guest's memory.
  struct Taken {
    std::shared_ptr<GuestDma> dma;  // goes last
    std::unique_ptr<vfio::Device> device;
  };

  // `addresses`: without repetition. Fails with one line that names the address: no such function,
  // no IOMMU, another driver, a group that somebody else has.
  static base::Result<std::unique_ptr<HostFunctions>> open(
      const std::vector<std::string>& addresses, vfio::Kernel& kernel = vfio::host_kernel(),
      const std::string& root = "/");

  // Tells the loop's thread what functions say while a guest has them: an error that they do not
  // come back from, or that the host wants them back (again every ten seconds).
  struct Events {
    std::function<void(const std::string&address)> failed, wanted;
  };
  base::Result<void> watch(base::EventLoop& loop, Events events);

  [[nodiscard]] bool has(const std::string& address) const { return entries_.contains(address); }
  // Gives a guest the function, reset; gives the function the guest's memory, which stays there
  // until the last Taken goes. Fails with one line: it is not one of these, is in use, cannot be
  // reset, the memory cannot be locked.
  base::Result<Taken> take(const std::string& address, const GuestRam& ram);

 private:
  struct Entry {
    const vfio::Group* group = nullptr;
    base::Fd failed, wanted;  // eventfds
    base::EventLoop::Watch failed_watch, wanted_watch;
  };

  HostFunctions(vfio::Kernel& kernel, vfio::Domain domain)
      : kernel_{kernel}, domain_{std::move(domain)} {}
  base::Result<void> add(const std::string& address, const std::string& root);

  vfio::Kernel& kernel_;
  std::map<unsigned, vfio::Group> groups_;  // by number
  vfio::Domain domain_;
  std::map<std::string, Entry> entries_;  // by address; fixed after open()
  std::mutex mutex_;                      // of what follows
  std::weak_ptr<GuestDma> dma_;
};

}  // namespace millrace::vmm
