#include "daemon/eal_domain.hpp"

#include <fcntl.h>
#include <rte_eal_memconfig.h>
#include <rte_errno.h>
#include <rte_memory.h>
#include <rte_vfio.h>

#include "base/error.hpp"
#include "base/log.hpp"
#include "vfio/group.hpp"

namespace millrace::daemon {

using base::fail;
using base::Result;

namespace {

constexpr std::uint64_t ordinary_page = 4096;

struct Chunk {
  std::uint64_t address, bytes, step;
};

// Memory that is somebody else's and only known to DPDK.
bool is_foreign(const rte_memseg_list& list) {
  return list.external != 0;
}

// Ordinary pages are there from the start and stay; huge ones may go one by one, so they come so.
int collect(const rte_memseg_list* list, const rte_memseg* segment, std::size_t bytes, void* out) {
  if (is_foreign(*list)) return 0;
  static_cast<std::vector<Chunk>*>(out)->push_back(
      {segment->addr_64, bytes, list->page_sz == ordinary_page ? bytes : list->page_sz});
  return 0;
}

void map_event(rte_mem_event type, const void* at, std::size_t bytes, void* domain) {
  auto& door = *static_cast<EalDomain*>(domain);
  const rte_memseg_list* const list = rte_mem_virt2memseg_list(at);
  if (list == nullptr || is_foreign(*list)) return;
  const auto* const address = static_cast<const std::byte*>(at);
  for (std::size_t done = 0; done < bytes; done += list->page_sz) {
    const auto iova = reinterpret_cast<std::uint64_t>(address + done);
    const auto result = type == RTE_MEM_EVENT_ALLOC
                            ? door.map_own(iova, address + done, list->page_sz)
                            : door.unmap(iova, list->page_sz);
    if (!result) spdlog::error("memory of DPDK's: {}", result.error().message);
  }
}

}  // namespace

Result<std::unique_ptr<EalDomain>> EalDomain::make(const std::string& function,
                                                   vfio::Access access) {
  const int container = rte_vfio_container_create();
  if (container < 0) return fail("DPDK makes no IOMMU domain for the PCI function " + function);
  std::unique_ptr<EalDomain> made{new EalDomain{container, function, access}};
  if (auto done = made->attach(function); !done) return base::Unexpected{done.error()};
  if (auto done = made->map_eal_memory(); !done) return base::Unexpected{done.error()};
  return made;
}

Result<void> EalDomain::attach(const std::string& function) {
  int number = -1;
  if (rte_vfio_get_group_num("/sys/bus/pci/devices", function.c_str(), &number) <= 0) {
    return fail("the PCI function " + function + " has no IOMMU group of vfio-pci's");
  }
  const int bound = rte_vfio_container_group_bind(container_, number);
  if (bound < 0) {
    return fail(
        "IOMMU group " + std::to_string(number) + " of the PCI function " + function +
        " cannot have an IOMMU domain of its own: DPDK has it in another, or cannot open it; "
        "zero_copy = false does without");
  }
  // DPDK's descriptor stays DPDK's.
  base::Fd copy{::fcntl(bound, F_DUPFD_CLOEXEC, 0)};
  if (!copy) return base::fail_errno("cannot duplicate the descriptor of an IOMMU group");
  const auto group = vfio::Group::take(std::move(copy), static_cast<unsigned>(number));
  if (!group) return base::Unexpected{group.error()};
  return domain_.attach(*group);
}

Result<void> EalDomain::map_eal_memory() {
  const auto note = [](const rte_memseg_list* list, void* out) {
    if (!is_foreign(*list)) {
      static_cast<std::vector<Range>*>(out)->push_back({list->addr_64, list->len});
    }
    return 0;
  };
  rte_memseg_list_walk(note, &eal_reserve_);
  std::vector<Chunk> chunks;
  // Before the look at what is there: nothing is taken in between, control is here.
  const int listens = rte_mem_event_callback_register(name_.c_str(), map_event, this);
  listening_ = listens == 0;
  if (!listening_ && rte_errno != ENOTSUP) return fail("DPDK does not tell of its memory");
  rte_memseg_contig_walk(collect, &chunks);
  for (const auto& [address, bytes, step] : chunks) {
    for (std::uint64_t done = 0; done < bytes; done += step) {
      const auto* const at = reinterpret_cast<const std::byte*>(address + done);
      if (auto mapped = map_own(address + done, at, step); !mapped) return mapped;
    }
  }
  return {};
}

EalDomain::~EalDomain() {
  if (listening_) rte_mem_event_callback_unregister(name_.c_str(), this);
  rte_vfio_container_destroy(container_);
}

Result<void> EalDomain::map_own(std::uint64_t iova, const std::byte* address, std::uint64_t bytes) {
  const std::lock_guard lock{mutex_};
  return domain_.map(iova, address, bytes);
}

Result<void> EalDomain::map(std::uint64_t iova, const std::byte* address, std::uint64_t bytes) {
  const std::lock_guard lock{mutex_};
  return domain_.map(iova, address, bytes, access_);
}

Result<void> EalDomain::unmap(std::uint64_t iova, std::uint64_t bytes) {
  const std::lock_guard lock{mutex_};
  return domain_.unmap(iova, bytes);
}

vfio::IovaSpace EalDomain::free_space() const {
  vfio::IovaSpace space{domain_.offer().ranges};
  for (const auto& [address, bytes] : eal_reserve_) space.reserve(address, bytes);
  return space;
}

}  // namespace millrace::daemon
