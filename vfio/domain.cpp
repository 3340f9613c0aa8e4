#include "vfio/domain.hpp"

#include <linux/vfio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <string>

#include "base/check.hpp"
#include "base/error.hpp"
#include "base/hex.hpp"
#include "base/units.hpp"
#include "vfio/group.hpp"

namespace millrace::vfio {

using base::fail;
using base::fail_errno;
using base::Result;

namespace {

constexpr auto container_path = "/dev/vfio/vfio";
constexpr std::size_t iommu_info_bytes_max = 1 << 20;  // far beyond what any kernel says

std::string range_text(std::uint64_t iova, std::uint64_t bytes) {
  return base::format_bytes(bytes) + " at IOVA " + base::format_hex(iova);
}

Result<base::Fd> open_container(Kernel& kernel) {
  base::Fd fd{kernel.open(container_path)};
  if (fd) return fd;
  if (errno == ENOENT || errno == ENODEV) {
    return fail(std::string{container_path} +
                " is not there: load the kernel's VFIO modules (modprobe vfio-pci)");
  }
  if (errno == EACCES || errno == EPERM) {
    return fail(std::string{container_path} +
                ": this user may not open it: its mode is 0666 usually");
  }
  return fail_errno(std::string{"cannot open "} + container_path);
}

// What the kernel said about an IOMMU: a header and a chain of records (struct
// vfio_info_cap_header).
class InfoReader {
 public:
  explicit InfoReader(std::vector<std::byte> bytes) : bytes_{std::move(bytes)} {}

  [[nodiscard]] Offer read() const {
    Offer offer;
    const auto info = at<vfio_iommu_type1_info>(0);
    if ((info.flags & VFIO_IOMMU_INFO_PGSIZES) != 0 && info.iova_pgsizes != 0) {
      offer.page_sizes = info.iova_pgsizes;
    }
    if ((info.flags & VFIO_IOMMU_INFO_CAPS) == 0) return offer;
    // A record costs bytes, so there are no more of them than this, whatever `next` says.
    auto left = bytes_.size() / sizeof(vfio_info_cap_header);
    for (std::size_t next = info.cap_offset; next != 0 && left != 0; --left) {
      if (!holds<vfio_info_cap_header>(next)) break;
      const auto header = at<vfio_info_cap_header>(next);
      if (header.id == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE) read_ranges(next, offer);
      if (header.id == VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL &&
          holds<vfio_iommu_type1_info_dma_avail>(next)) {
        offer.entries = at<vfio_iommu_type1_info_dma_avail>(next).avail;
      }
      next = header.next;
    }
    std::ranges::sort(offer.ranges, {}, &IovaRange::first);
    return offer;
  }

 private:
  template <class T>
  [[nodiscard]] bool holds(std::size_t offset) const {
    return offset <= bytes_.size() && sizeof(T) <= bytes_.size() - offset;
  }
  template <class T>
  [[nodiscard]] T at(std::size_t offset) const {
    CHECK(holds<T>(offset));
    T value;
    std::memcpy(&value, bytes_.data() + offset, sizeof value);
    return value;
  }

  void read_ranges(std::size_t offset, Offer& offer) const {
    using Header = vfio_iommu_type1_info_cap_iova_range;
    if (!holds<Header>(offset)) return;
    const auto count = at<Header>(offset).nr_iovas;
    for (std::uint32_t i = 0; i < count; ++i) {
      const auto place = offset + sizeof(Header) + i * sizeof(vfio_iova_range);
      if (!holds<vfio_iova_range>(place)) return;
      const auto range = at<vfio_iova_range>(place);
      if (range.start <= range.end) offer.ranges.push_back({range.start, range.end});
    }
  }

  std::vector<std::byte> bytes_;
};

}  // namespace

Result<Domain> Domain::open(Kernel& kernel) {
  auto container = open_container(kernel);
  if (!container) return base::Unexpected{container.error()};
  const auto fd = container->get();
  if (kernel.ioctl(fd, VFIO_GET_API_VERSION, 0) != VFIO_API_VERSION) {
    return fail("this kernel's VFIO has another interface than the one that is known here (0)");
  }
  if (kernel.ioctl(fd, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU) <= 0) {
    return fail(
        "this kernel offers no VFIO_TYPE1v2_IOMMU: load vfio_iommu_type1 (modprobe "
        "vfio_iommu_type1)");
  }
  return Domain{kernel, *std::move(container), fd, false};
}

Result<Domain> Domain::adopt(int container, Kernel& kernel) {
  Domain domain{kernel, {}, container, true};
  if (auto ok = domain.refresh(); !ok) {
    return fail("the container that is lent has no IOMMU yet (" + ok.error().message +
                "): its owner attaches a group first");
  }
  return domain;
}

Domain Domain::borrow(int container, Kernel& kernel) {
  return Domain{kernel, {}, container, false};
}

Result<void> Domain::attach(const Group& group) {
  const auto name = "IOMMU group " + std::to_string(group.number());
  int container = fd_;
  if (kernel_->call(group.fd(), VFIO_GROUP_SET_CONTAINER, container) != 0) {
    if (errno == EBUSY || errno == EINVAL) {
      return fail(name + " is in another domain already, or its IOMMU differs from that of the " +
                  "groups that are in this one");
    }
    if (errno == EPERM) {
      return fail(name + ": the platform cannot remap interrupts, so a function could send any " +
                  "interrupt to the host: turn on interrupt remapping (intremap) in the firmware");
    }
    return fail_errno("cannot put " + name + " into a domain");
  }
  if (!has_iommu_ && groups_ == 0 && kernel_->ioctl(fd_, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) != 0) {
    const int error = errno;
    kernel_->ioctl(group.fd(), VFIO_GROUP_UNSET_CONTAINER, 0);
    if (error == EPERM) {
      return fail(name + ": the platform cannot remap interrupts, so a function could send any " +
                  "interrupt to the host: turn on interrupt remapping (intremap) in the firmware");
    }
    errno = error;
    return fail_errno("the IOMMU does not take " + name);
  }
  ++groups_;
  return refresh();
}

void Domain::detach(const Group& group) {
  if (kernel_->ioctl(group.fd(), VFIO_GROUP_UNSET_CONTAINER, 0) == 0 && groups_ > 0) --groups_;
}

Result<void> Domain::refresh() {
  vfio_iommu_type1_info header{};
  header.argsz = sizeof header;
  if (kernel_->call(fd_, VFIO_IOMMU_GET_INFO, header) != 0) {
    return fail_errno("cannot ask what the IOMMU offers");
  }
  const auto size = std::clamp<std::size_t>(header.argsz, sizeof header, iommu_info_bytes_max);
  std::vector<std::byte> bytes(size);
  header.argsz = static_cast<std::uint32_t>(size);
  std::memcpy(bytes.data(), &header, sizeof header);
  if (kernel_->call(fd_, VFIO_IOMMU_GET_INFO, *bytes.data()) != 0) {
    return fail_errno("cannot ask what the IOMMU offers");
  }
  offer_ = InfoReader{std::move(bytes)}.read();
  return {};
}

Result<void> Domain::map(std::uint64_t iova, const void* address, std::uint64_t bytes,
                         Access access) {
  const auto from = reinterpret_cast<std::uintptr_t>(address);
  if (bytes == 0 || iova + (bytes - 1) < iova ||
      ((iova | from | bytes) & (offer_.unit() - 1)) != 0) {
    return fail("cannot map " + range_text(iova, bytes) +
                ": addresses and sizes are multiples of " + base::format_bytes(offer_.unit()));
  }
  vfio_iommu_type1_dma_map request{};
  request.argsz = sizeof request;
  if (access != Access::write) request.flags |= VFIO_DMA_MAP_FLAG_READ;
  if (access != Access::read) request.flags |= VFIO_DMA_MAP_FLAG_WRITE;
  request.vaddr = from;
  request.iova = iova;
  request.size = bytes;
  if (kernel_->call(fd_, VFIO_IOMMU_MAP_DMA, request) != 0) {
    return base::Unexpected{why_not_mapped(iova, bytes, errno)};
  }
  mapped_ += bytes;
  if (offer_.entries && *offer_.entries > 0) --*offer_.entries;
  return {};
}

base::Error Domain::why_not_mapped(std::uint64_t iova, std::uint64_t bytes, int error) const {
  const auto what = "cannot map " + range_text(iova, bytes) + " for devices: ";
  switch (error) {
    case ENOMEM: {
      const auto limit = locked_limit_;
      if (limit == std::numeric_limits<std::uint64_t>::max()) {
        return {what + "the host has too little memory that can be locked"};
      }
      return {what + "what devices use is locked, " + base::format_bytes(mapped_ + bytes) +
              " by now, and this process may lock " + base::format_bytes(limit) +
              ": raise the limit (ulimit -l, LimitMEMLOCK= of a systemd unit, memlock in "
              "/etc/security/limits.conf)"};
    }
    case ENOSPC:
      return {what +
              "the kernel has no entry left: vfio_iommu_type1's dma_entry_limit says how "
              "many a domain has (65535 usually)"};
    case EEXIST:
      return {what + "part of that is mapped already"};
    case EINVAL:
      return {what + "the IOMMU has no such addresses, or they are reserved"};
    case EFAULT:
      return {what + "it is no memory of this process that can be locked"};
    default:
      errno = error;
      return fail_errno("cannot map " + range_text(iova, bytes) + " for devices").error;
  }
}

Result<void> Domain::unmap(std::uint64_t iova, std::uint64_t bytes) {
  vfio_iommu_type1_dma_unmap request{};
  request.argsz = sizeof request;
  request.iova = iova;
  request.size = bytes;
  if (kernel_->call(fd_, VFIO_IOMMU_UNMAP_DMA, request) != 0) {
    return fail_errno("cannot unmap " + range_text(iova, bytes));
  }
  // The kernel says how much it found: nothing, where nothing was mapped with these bounds.
  if (request.size != bytes) {
    return fail("cannot unmap " + range_text(iova, bytes) + ": " +
                base::format_bytes(request.size) + " of it were mapped");
  }
  mapped_ -= std::min(mapped_, bytes);
  if (offer_.entries) ++*offer_.entries;
  return {};
}

}  // namespace millrace::vfio
