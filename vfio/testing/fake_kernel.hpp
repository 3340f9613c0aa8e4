// FakeKernel: VFIO as the kernel does it, without hardware: one container, groups with one function
// each, an IOMMU with the ranges and limits that a test gives it.
//
// It answers with the errors that Linux answers with. Thread: one.
#pragma once

#include <fcntl.h>
#include <linux/vfio.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "vfio/device.hpp"
#include "vfio/domain.hpp"
#include "vfio/kernel.hpp"

namespace millrace::vfio::testing {

class FakeKernel final : public Kernel {
 public:
  struct Function {
    std::string address;
    bool can_reset = true;
    std::array<std::vector<std::byte>, 8> regions{};  // BARs 0 to 5, ROM, configuration space
    std::array<std::vector<Area>, 8> sparse{};        // where not empty: parts that can be mapped
    std::array<unsigned, 5> vectors{1, 1, 3, 1, 1};   // by Irq
    std::map<std::pair<unsigned, unsigned>, int> eventfds{};  // what was set, by kind and vector
    unsigned resets = 0, unmasks = 0;
    bool gone = false, open = false;
    bool has_driver = false;  // of this process: whoever has the group may open it once more
  };
  struct Group {
    int error = 0;  // of opening it
    bool viable = true, attached = false;
    Function function{};
  };

  // What a test sets up.
  int container_error = 0, set_iommu_error = 0;
  bool type1v2 = true, says_entries = true;
  std::uint64_t page_sizes = 0xfff'f000;
  std::vector<IovaRange> ranges{{0, 0xfedf'ffff}, {0xfef0'0000, 0x7f'ffff'ffff}};
  unsigned entries = 65535;
  std::uint64_t locked_limit = std::numeric_limits<std::uint64_t>::max();
  std::map<unsigned, Group> groups;  // by number

  // What came of it.
  std::map<std::uint64_t, vfio_iommu_type1_dma_map> mappings;  // by IOVA
  unsigned maps_made = 0;
  bool has_iommu = false;

  [[nodiscard]] std::uint64_t locked() const {
    std::uint64_t sum = 0;
    for (const auto& [iova, mapping] : mappings) sum += mapping.size;
    return sum;
  }

  int open(const char* path) override {
    const std::string name{path};
    if (name == "/dev/vfio/vfio") return container_error ? refuse(container_error) : make(Kind{});
    const auto number = static_cast<unsigned>(std::stoul(name.substr(name.rfind('/') + 1)));
    const auto found = groups.find(number);
    if (found == groups.end()) return refuse(ENOENT);
    if (found->second.error != 0) return refuse(found->second.error);
    return make({.group = &found->second});
  }

  int copy(int fd) override {
    forget_closed();
    const auto found = files_.find(fd);
    return found == files_.end() ? refuse(EBADF) : make(found->second);
  }

  int ioctl(int fd, unsigned long request, std::uintptr_t argument) override {
    forget_closed();
    const auto found = files_.find(fd);
    if (found == files_.end()) return refuse(EBADF);
    auto& kind = found->second;
    auto* const at = reinterpret_cast<std::byte*>(argument);
    if (kind.function != nullptr) return device_call(*kind.function, request, at);
    if (kind.group != nullptr) return group_call(*kind.group, request, at);
    return container_call(request, argument);
  }

  std::int64_t read_at(int fd, std::span<std::byte> data, std::uint64_t offset) override {
    auto* const bytes = bytes_at(fd, data.size(), offset);
    if (bytes == nullptr) return refuse(EIO);
    std::memcpy(data.data(), bytes, data.size());
    return static_cast<std::int64_t>(data.size());
  }

  std::int64_t write_at(int fd, std::span<const std::byte> data, std::uint64_t offset) override {
    auto* const bytes = bytes_at(fd, data.size(), offset);
    if (bytes == nullptr) return refuse(EIO);
    std::memcpy(bytes, data.data(), data.size());
    return static_cast<std::int64_t>(data.size());
  }

  std::byte* map(int fd, std::uint64_t size, std::uint64_t offset, bool) override {
    ++mapped;
    return bytes_at(fd, size, offset);
  }
  void unmap(std::byte*, std::uint64_t) override { --mapped; }
  std::uint64_t locked_memory_limit() override { return locked_limit; }

  int mapped = 0;  // parts of BARs

 private:
  struct Kind {
    Group* group = nullptr;
    Function* function = nullptr;
  };

  static int refuse(int error) {
    errno = error;
    return -1;
  }

  // A real descriptor, so that who owns it can close it; its number comes again then.
  int make(Kind kind) {
    forget_closed();
    const int fd = ::eventfd(0, EFD_CLOEXEC);
    files_[fd] = kind;
    return fd;
  }

  void forget_closed() {
    for (auto each = files_.begin(); each != files_.end();) {
      if (::fcntl(each->first, F_GETFD) >= 0) {
        ++each;
        continue;
      }
      if (each->second.function != nullptr) each->second.function->open = false;
      each = files_.erase(each);
    }
  }

  template <class T>
  static T take(const std::byte* at) {
    T value{};
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  template <class T>
  static int give(std::byte* at, const T& value) {
    std::memcpy(at, &value, sizeof value);
    return 0;
  }

  int group_call(Group& group, unsigned long request, std::byte* at) {
    switch (request) {
      case VFIO_GROUP_GET_STATUS: {
        auto status = take<vfio_group_status>(at);
        status.flags = group.viable ? VFIO_GROUP_FLAGS_VIABLE : 0;
        return give(at, status);
      }
      case VFIO_GROUP_SET_CONTAINER:
        if (group.attached) return refuse(EINVAL);
        group.attached = true;
        return 0;
      case VFIO_GROUP_UNSET_CONTAINER:
        if (!group.attached) return refuse(EINVAL);
        group.attached = false;
        return 0;
      case VFIO_GROUP_GET_DEVICE_FD: {
        const std::string name{reinterpret_cast<const char*>(at)};
        if (!group.attached || name != group.function.address) return refuse(ENODEV);
        if (group.function.open && !group.function.has_driver) return refuse(EBUSY);
        group.function.open = true;
        return make({.function = &group.function});
      }
      default:
        return refuse(ENOTTY);
    }
  }

  int container_call(unsigned long request, std::uintptr_t argument) {
    auto* const at = reinterpret_cast<std::byte*>(argument);
    switch (request) {
      case VFIO_GET_API_VERSION:
        return VFIO_API_VERSION;
      case VFIO_CHECK_EXTENSION:
        return argument == VFIO_TYPE1v2_IOMMU && type1v2 ? 1 : 0;
      case VFIO_SET_IOMMU:
        if (set_iommu_error != 0) return refuse(set_iommu_error);
        has_iommu = true;
        return 0;
      case VFIO_IOMMU_GET_INFO:
        return has_iommu ? info(at) : refuse(EINVAL);
      case VFIO_IOMMU_MAP_DMA:
        return map_dma(take<vfio_iommu_type1_dma_map>(at));
      case VFIO_IOMMU_UNMAP_DMA:
        return unmap_dma(at);
      default:
        return refuse(ENOTTY);
    }
  }

  int info(std::byte* at) {
    auto header = take<vfio_iommu_type1_info>(at);
    std::vector<std::byte> records;
    const auto append = [&](const auto& value) {
      const auto* const bytes = reinterpret_cast<const std::byte*>(&value);
      records.insert(records.end(), bytes, bytes + sizeof value);
    };
    const auto next_of = [&](std::size_t size) {
      return static_cast<std::uint32_t>(sizeof header + records.size() + size);
    };
    if (says_entries) {
      vfio_iommu_type1_info_dma_avail record{};
      record.header.id = VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL;
      record.header.next = ranges.empty() ? 0 : next_of(sizeof record);
      record.avail = entries;
      append(record);
    }
    if (!ranges.empty()) {
      vfio_iommu_type1_info_cap_iova_range record{};
      record.header.id = VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE;
      record.nr_iovas = static_cast<std::uint32_t>(ranges.size());
      append(record);
      for (const auto& range : ranges) append(vfio_iova_range{range.first, range.last});
    }
    const auto given = header.argsz;
    header.flags = VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS;
    header.iova_pgsizes = page_sizes;
    header.argsz = static_cast<std::uint32_t>(sizeof header + records.size());
    header.cap_offset = given >= header.argsz && !records.empty() ? sizeof header : 0;
    std::memcpy(at, &header, std::min<std::size_t>(sizeof header, given));
    if (header.cap_offset != 0) std::memcpy(at + sizeof header, records.data(), records.size());
    return 0;
  }

  int map_dma(const vfio_iommu_type1_dma_map& request) {
    const auto last = request.iova + (request.size - 1);
    const auto unit = page_sizes & (~page_sizes + 1);
    if (((request.iova | request.size | request.vaddr) & (unit - 1)) != 0) return refuse(EINVAL);
    for (const auto& [iova, mapping] : mappings) {
      if (iova <= last && request.iova <= iova + (mapping.size - 1)) return refuse(EEXIST);
    }
    const auto holds = [&](const IovaRange& range) {
      return range.first <= request.iova && last <= range.last;
    };
    if (!ranges.empty() && std::none_of(ranges.begin(), ranges.end(), holds)) return refuse(EINVAL);
    if (entries == 0) return refuse(ENOSPC);
    if (locked() + request.size > locked_limit) return refuse(ENOMEM);
    --entries;
    ++maps_made;
    mappings[request.iova] = request;
    return 0;
  }

  // Type 1 v2: with the bounds of what was mapped, or not at all.
  int unmap_dma(std::byte* at) {
    auto request = take<vfio_iommu_type1_dma_unmap>(at);
    const auto found = mappings.find(request.iova);
    if (found == mappings.end()) {
      request.size = 0;
      return give(at, request);
    }
    if (found->second.size != request.size) return refuse(EINVAL);
    mappings.erase(found);
    ++entries;
    return give(at, request);
  }

  int device_call(Function& function, unsigned long request, std::byte* at) {
    if (function.gone) return refuse(ENODEV);
    switch (request) {
      case VFIO_DEVICE_GET_INFO: {
        auto info = take<vfio_device_info>(at);
        info.flags = VFIO_DEVICE_FLAGS_PCI | (function.can_reset ? VFIO_DEVICE_FLAGS_RESET : 0u);
        info.num_regions = 9;
        info.num_irqs = 5;
        return give(at, info);
      }
      case VFIO_DEVICE_GET_REGION_INFO:
        return region_info(function, at);
      case VFIO_DEVICE_GET_IRQ_INFO: {
        auto info = take<vfio_irq_info>(at);
        info.flags = VFIO_IRQ_INFO_EVENTFD;
        info.count = function.vectors.at(info.index);
        return give(at, info);
      }
      case VFIO_DEVICE_SET_IRQS:
        return set_irqs(function, at);
      case VFIO_DEVICE_RESET:
        ++function.resets;
        return 0;
      default:
        return refuse(ENOTTY);
    }
  }

  static int region_info(const Function& function, std::byte* at) {
    auto info = take<vfio_region_info>(at);
    const auto& bytes = function.regions.at(info.index);
    const auto& areas = function.sparse.at(info.index);
    const auto given = info.argsz;
    info.size = bytes.size();
    info.offset = std::uint64_t{info.index} << 40;
    info.flags = bytes.empty() ? 0 : VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    if (info.index < bars && !bytes.empty()) info.flags |= VFIO_REGION_INFO_FLAG_MMAP;
    if (areas.empty()) return give(at, info);
    vfio_region_info_cap_sparse_mmap record{};
    record.header.id = VFIO_REGION_INFO_CAP_SPARSE_MMAP;
    record.nr_areas = static_cast<std::uint32_t>(areas.size());
    info.flags |= VFIO_REGION_INFO_FLAG_CAPS;
    info.argsz = static_cast<std::uint32_t>(sizeof info + sizeof record + areas.size() * 16);
    info.cap_offset = given >= info.argsz ? sizeof info : 0;
    give(at, info);
    if (given < info.argsz) return 0;
    give(at + sizeof info, record);
    std::memcpy(at + sizeof info + sizeof record, areas.data(), areas.size() * 16);
    return 0;
  }

  static int set_irqs(Function& function, const std::byte* at) {
    const auto request = take<vfio_irq_set>(at);
    if (request.start + request.count > function.vectors.at(request.index)) return refuse(EINVAL);
    if ((request.flags & VFIO_IRQ_SET_ACTION_UNMASK) != 0) {
      ++function.unmasks;
      return 0;
    }
    if ((request.flags & VFIO_IRQ_SET_DATA_NONE) != 0) {
      std::erase_if(function.eventfds,
                    [&](const auto& each) { return each.first.first == request.index; });
      return 0;
    }
    for (unsigned i = 0; i < request.count; ++i) {
      const auto fd = take<int>(at + sizeof request + i * sizeof(int));
      function.eventfds[{request.index, request.start + i}] = fd;
    }
    return 0;
  }

  std::byte* bytes_at(int fd, std::uint64_t size, std::uint64_t offset) {
    forget_closed();
    const auto found = files_.find(fd);
    if (found == files_.end() || found->second.function == nullptr) return nullptr;
    auto& function = *found->second.function;
    const std::uint64_t index = offset >> 40, at = offset & ((1ull << 40) - 1);
    if (function.gone || index >= function.regions.size()) return nullptr;
    auto& bytes = function.regions[index];
    return at + size <= bytes.size() ? bytes.data() + at : nullptr;
  }

  std::map<int, Kind> files_;
};

}  // namespace millrace::vfio::testing
