// Domain: one set of addresses (IOVAs) that devices of the groups in it may use, and nothing else:
// an IOMMU domain, which the kernel calls a container (Linux Documentation/driver-api/vfio.rst).
//
// It opens a container of its own, or works in one that somebody else owns (adopt): DPDK's, for a
// device that a poll-mode driver has. Memory that is mapped is locked until it is unmapped, and
// counts against the limit of locked memory.
//
// This is the kernel's group interface (VFIO_TYPE1v2_IOMMU). What is said here holds for iommufd as
// well, but for fd(), so that Domain can get another inside without another outside.
// Thread: one at a time; the kernel serialises what it does. Not for reactors: mapping allocates,
// and may take seconds for each GiB that nobody touched yet.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "vfio/kernel.hpp"

namespace millrace::vfio {

class Group;

// IOVAs that the IOMMU takes, both ends included.
struct IovaRange {
  std::uint64_t first = 0, last = 0;
  friend bool operator==(const IovaRange&, const IovaRange&) = default;
};

// What the IOMMU of the groups in a domain can do.
struct Offer {
  std::uint64_t page_sizes = 4096;  // a bit for each size; the lowest is the unit of all mappings
  std::vector<IovaRange> ranges;    // in order; empty: this kernel does not say, take any
  std::optional<unsigned> entries;  // mappings that may still be made; none: it does not say

  // The unit of all mappings, in bytes.
  [[nodiscard]] std::uint64_t unit() const { return page_sizes & (~page_sizes + 1); }
};

// What devices may do with memory.
enum class Access { read, write, read_write };

class Domain {
 public:
  // A domain of its own, without a group yet. Fails with one line: no /dev/vfio/vfio (and what to
  // load), no permission, a kernel without VFIO_TYPE1v2_IOMMU.
  static base::Result<Domain> open(Kernel& kernel = host_kernel());
  // Works in a container that is lent, stays open as long as this, and is not closed here. Its
  // owner has put a group into it and set its IOMMU already, or it fails with one line.
  static base::Result<Domain> adopt(int container, Kernel& kernel = host_kernel());
  // Works in a container that is lent and has no group yet, and is not closed here: attach() gives
  // it its IOMMU, as in one of its own.
  static Domain borrow(int container, Kernel& kernel = host_kernel());

  // Puts a group in: its devices see what is mapped here from then on. The first one makes the
  // IOMMU known: before, there is nothing to map to. Fails with one line: another domain has it,
  // no interrupt remapping, an IOMMU that does not fit the groups that are in.
  base::Result<void> attach(const Group& group);
  // None of its devices is open any more. Nothing happens where it is not in.
  void detach(const Group& group);

  // Gives devices `bytes` of this process's memory from `address` on, as `iova` and up. All three
  // are multiples of offer().unit(). Fails with one line: a range that is taken in part, that the
  // IOMMU has not got, no entry left, the limit of locked memory (how much is needed, how to raise
  // it).
  base::Result<void> map(std::uint64_t iova, const void* address, std::uint64_t bytes,
                         Access access = Access::read_write);
  // Takes back what one map() gave, with the same bounds: no device reaches it once this returns.
  base::Result<void> unmap(std::uint64_t iova, std::uint64_t bytes);

  // As of the last attach(), adopt() or refresh().
  [[nodiscard]] const Offer& offer() const { return offer_; }
  // Asks the kernel again: how many entries are left, and what another's groups changed.
  base::Result<void> refresh();
  // Bytes that are mapped through this object.
  [[nodiscard]] std::uint64_t mapped_bytes() const { return mapped_; }
  [[nodiscard]] int fd() const { return fd_; }

 private:
  Domain(Kernel& kernel, base::Fd owned, int fd, bool has_iommu)
      : kernel_{&kernel},
        owned_{std::move(owned)},
        fd_{fd},
        has_iommu_{has_iommu},
        locked_limit_{kernel.locked_memory_limit()} {}
  base::Error why_not_mapped(std::uint64_t iova, std::uint64_t bytes, int error) const;

  Kernel* kernel_;
  base::Fd owned_;  // empty: lent
  int fd_;
  bool has_iommu_;              // its owner gave it one
  std::uint64_t locked_limit_;  // as it was at the start: a sandbox may forbid asking later
  Offer offer_;
  std::uint64_t mapped_ = 0;
  unsigned groups_ = 0;
};

}  // namespace millrace::vfio
