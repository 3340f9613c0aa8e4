#include "vfio/device.hpp"

#include <linux/vfio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.hpp"
#include "base/error.hpp"

namespace millrace::vfio {

using base::fail;
using base::fail_errno;
using base::Result;

namespace {

static_assert(VFIO_PCI_CONFIG_REGION_INDEX == region_config);
static_assert(VFIO_PCI_BAR5_REGION_INDEX == bars - 1);
static_assert(static_cast<unsigned>(Irq::msix) == VFIO_PCI_MSIX_IRQ_INDEX);
static_assert(static_cast<unsigned>(Irq::request) == VFIO_PCI_REQ_IRQ_INDEX);

constexpr unsigned irq_kinds = VFIO_PCI_NUM_IRQS;
constexpr std::size_t device_info_bytes_max = 1 << 16;
constexpr std::uint64_t page_bytes = 4096;
const Region no_region{};

template <class T>
bool read_at(std::span<const std::byte> bytes, std::size_t offset, T& value) {
  if (offset > bytes.size() || sizeof(T) > bytes.size() - offset) return false;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return true;
}

// Where a region is mappable in parts only, its record says which.
std::vector<Area> sparse_areas(std::span<const std::byte> info, std::size_t offset) {
  std::vector<Area> areas;
  vfio_region_info_cap_sparse_mmap header{};
  if (!read_at(info, offset, header)) return areas;
  for (std::uint32_t i = 0; i < header.nr_areas; ++i) {
    vfio_region_sparse_mmap_area area{};
    if (!read_at(info, offset + sizeof header + i * sizeof area, area)) break;
    areas.push_back({area.offset, area.size});
  }
  return areas;
}

std::vector<Area> mappable_areas(std::span<const std::byte> info) {
  vfio_region_info header{};
  if (!read_at(info, 0, header) || (header.flags & VFIO_REGION_INFO_FLAG_MMAP) == 0) return {};
  std::vector<Area> areas{{0, header.size}};
  if ((header.flags & VFIO_REGION_INFO_FLAG_CAPS) != 0) {
    auto left = info.size() / sizeof(vfio_info_cap_header);
    for (std::size_t next = header.cap_offset; next != 0 && left != 0; --left) {
      vfio_info_cap_header record{};
      if (!read_at(info, next, record)) break;
      if (record.id == VFIO_REGION_INFO_CAP_SPARSE_MMAP) areas = sparse_areas(info, next);
      next = record.next;
    }
  }
  std::erase_if(areas, [&](const Area& area) {
    return area.size == 0 || area.offset > header.size || area.size > header.size - area.offset ||
           (area.offset | area.size) % page_bytes != 0;
  });
  std::ranges::sort(areas, {}, &Area::offset);
  return areas;
}

}  // namespace

Result<Device> Device::open(const Group& group, const std::string& address, Kernel& kernel) {
  auto fd = group.device(address);
  if (!fd) return base::Unexpected{fd.error()};
  Device device{kernel, *std::move(fd), address};
  if (auto ok = device.look(); !ok) return fail(address + ": " + ok.error().message);
  return device;
}

Result<void> Device::look() {
  vfio_device_info info{};
  info.argsz = sizeof info;
  if (kernel_->call(fd_.get(), VFIO_DEVICE_GET_INFO, info) != 0) {
    return fail_errno("cannot ask what it is");
  }
  if ((info.flags & VFIO_DEVICE_FLAGS_PCI) == 0) return fail("it is no PCI function");
  can_reset_ = (info.flags & VFIO_DEVICE_FLAGS_RESET) != 0;
  for (unsigned i = 0; i <= region_config; ++i) {
    auto region = i < info.num_regions ? look_at(i) : Result<Region>{Region{}};
    if (!region) return base::Unexpected{region.error()};
    regions_.push_back(*std::move(region));
  }
  for (unsigned i = 0; i < irq_kinds; ++i) {
    vfio_irq_info irq{};
    irq.argsz = sizeof irq;
    irq.index = i;
    const bool known = i < info.num_irqs &&
                       kernel_->call(fd_.get(), VFIO_DEVICE_GET_IRQ_INFO, irq) == 0 &&
                       (irq.flags & VFIO_IRQ_INFO_EVENTFD) != 0;
    vectors_.push_back(known ? irq.count : 0);
  }
  return {};
}

Result<Region> Device::look_at(unsigned region) const {
  vfio_region_info header{};
  header.argsz = sizeof header;
  header.index = region;
  // A region that the function has not got.
  if (kernel_->call(fd_.get(), VFIO_DEVICE_GET_REGION_INFO, header) != 0) {
    return errno == EINVAL ? Result<Region>{Region{}} : fail_errno("cannot ask for its regions");
  }
  const auto size = std::clamp<std::size_t>(header.argsz, sizeof header, device_info_bytes_max);
  std::vector<std::byte> bytes(size);
  header.argsz = static_cast<std::uint32_t>(size);
  std::memcpy(bytes.data(), &header, sizeof header);
  if (kernel_->call(fd_.get(), VFIO_DEVICE_GET_REGION_INFO, *bytes.data()) != 0) {
    return fail_errno("cannot ask for its regions");
  }
  std::memcpy(&header, bytes.data(), sizeof header);
  return Region{.size = header.size,
                .readable = (header.flags & VFIO_REGION_INFO_FLAG_READ) != 0,
                .writable = (header.flags & VFIO_REGION_INFO_FLAG_WRITE) != 0,
                .mappable = mappable_areas(bytes),
                .at = header.offset};
}

const Region& Device::region(unsigned index) const {
  return index < regions_.size() ? regions_[index] : no_region;
}

Result<void> Device::read(unsigned index, std::uint64_t offset, std::span<std::byte> data) const {
  const auto& from = region(index);
  if (!from.readable || offset > from.size || data.size() > from.size - offset) {
    return fail(address_ + ": nothing to read there");
  }
  const auto count = kernel_->read_at(fd_.get(), data, from.at + offset);
  if (count == static_cast<std::int64_t>(data.size())) return {};
  return count < 0 ? fail_errno(address_ + ": cannot read") : fail(address_ + ": reads too little");
}

Result<void> Device::write(unsigned index, std::uint64_t offset,
                           std::span<const std::byte> data) const {
  const auto& to = region(index);
  if (!to.writable || offset > to.size || data.size() > to.size - offset) {
    return fail(address_ + ": nothing to write there");
  }
  const auto count = kernel_->write_at(fd_.get(), data, to.at + offset);
  if (count == static_cast<std::int64_t>(data.size())) return {};
  return count < 0 ? fail_errno(address_ + ": cannot write")
                   : fail(address_ + ": takes too little");
}

Result<std::byte*> Device::map(unsigned index, const Area& area) const {
  const auto& of = region(index);
  CHECK(std::ranges::find(of.mappable, area) != of.mappable.end());
  auto* const at = kernel_->map(fd_.get(), area.size, of.at + area.offset, of.writable);
  if (at == nullptr) return fail_errno(address_ + ": cannot map BAR " + std::to_string(index));
  return at;
}

void Device::unmap(std::byte* address, const Area& area) const {
  kernel_->unmap(address, area.size);
}

Result<void> Device::reset() const {
  if (!can_reset_) {
    return fail(address_ +
                " cannot be reset by itself (no FLR): what its last owner left in it would stay");
  }
  if (kernel_->ioctl(fd_.get(), VFIO_DEVICE_RESET, 0) != 0) {
    return fail_errno(address_ + ": cannot reset it");
  }
  return {};
}

unsigned Device::vectors(Irq kind) const {
  return vectors_[static_cast<unsigned>(kind)];
}

Result<void> Device::set(Irq kind, unsigned start, std::span<const int> eventfds) const {
  std::vector<std::byte> bytes(sizeof(vfio_irq_set) + eventfds.size_bytes());
  vfio_irq_set header{};
  header.argsz = static_cast<std::uint32_t>(bytes.size());
  header.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
  header.index = static_cast<std::uint32_t>(kind);
  header.start = start;
  header.count = static_cast<std::uint32_t>(eventfds.size());
  std::memcpy(bytes.data(), &header, sizeof header);
  if (!eventfds.empty()) {
    std::memcpy(bytes.data() + sizeof header, eventfds.data(), eventfds.size_bytes());
  }
  if (kernel_->call(fd_.get(), VFIO_DEVICE_SET_IRQS, *bytes.data()) == 0) return {};
  return fail_errno(address_ + ": cannot set its interrupts");
}

Result<void> Device::set_irqs(Irq kind, std::span<const int> eventfds) const {
  if (eventfds.empty() || eventfds.size() > vectors(kind)) {
    return fail(address_ + " has " + std::to_string(vectors(kind)) + " such interrupts, not " +
                std::to_string(eventfds.size()));
  }
  clear_irqs(kind);
  return set(kind, 0, eventfds);
}

Result<void> Device::set_irq(Irq kind, unsigned vector, int eventfd) const {
  if (vector >= vectors(kind)) {
    return fail(address_ + " has no interrupt " + std::to_string(vector));
  }
  return set(kind, vector, {&eventfd, 1});
}

void Device::clear_irqs(Irq kind) const {
  vfio_irq_set none{};
  none.argsz = sizeof none;
  none.flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
  none.index = static_cast<std::uint32_t>(kind);
  kernel_->call(fd_.get(), VFIO_DEVICE_SET_IRQS, none);  // fails where there is nothing to clear
}

Result<void> Device::unmask_intx() const {
  vfio_irq_set unmask{};
  unmask.argsz = sizeof unmask;
  unmask.flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK;
  unmask.index = VFIO_PCI_INTX_IRQ_INDEX;
  unmask.count = 1;
  if (kernel_->call(fd_.get(), VFIO_DEVICE_SET_IRQS, unmask) == 0) return {};
  return fail_errno(address_ + ": cannot unmask its interrupt");
}

}  // namespace millrace::vfio
