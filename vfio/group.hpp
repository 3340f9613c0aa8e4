// Group: an IOMMU group: the functions that the IOMMU cannot tell apart, and which therefore go to
// one owner together. Holding its descriptor keeps it from everybody else.
//
// Thread: any, after open().
#pragma once

#include <string>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "vfio/kernel.hpp"

namespace millrace::vfio {

class Group {
 public:
  // Fails with one line: nothing of the group is bound to vfio-pci, another process holds it, no
  // permission, a function of it has a driver of the host.
  static base::Result<Group> open(unsigned number, Kernel& kernel = host_kernel());
  // One that was opened elsewhere and is given away: a privileged helper's.
  static base::Result<Group> take(base::Fd fd, unsigned number, Kernel& kernel = host_kernel());

  // A device's descriptor. The group is in a domain before. `address`: 0000:01:10.0. `token`: the
  // UUID that the owner of its physical function chose; empty: none is needed. Fails with one line.
  [[nodiscard]] base::Result<base::Fd> device(const std::string& address,
                                              const std::string& token = {}) const;
  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] unsigned number() const { return number_; }

 private:
  Group(Kernel& kernel, base::Fd fd, unsigned number)
      : kernel_{&kernel}, fd_{std::move(fd)}, number_{number} {}
  [[nodiscard]] base::Result<void> check_viable() const;

  Kernel* kernel_;
  base::Fd fd_;
  unsigned number_;
};

}  // namespace millrace::vfio
