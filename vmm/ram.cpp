#include "vmm/ram.hpp"

#include <fcntl.h>
#include <linux/memfd.h>
#include <numaif.h>
#include <sys/mman.h>

#include <bit>
#include <cerrno>
#include <fstream>
#include <string>
#include <utility>

#include "base/check.hpp"
#include "base/error.hpp"
#include "base/units.hpp"

namespace millrace::vmm {

using base::fail;
using base::fail_errno;
using base::Fd;
using base::Result;

namespace {

constexpr std::uint64_t mebibyte = 1 << 20;
constexpr std::uint64_t large_page = 2 * mebibyte, huge_page = 1024 * mebibyte;
constexpr std::uint64_t bytes_min = 64 * mebibyte, bytes_max = 1ull << 44;

Result<void> check(const RamConfig& config) {
  const auto page = config.page_size;
  if (page != 0 && page != large_page && page != huge_page) {
    return fail("guest memory in pages of " + base::format_bytes(page) +
                ": a host's pools have 2 MiB and 1 GiB");
  }
  const auto unit = page == huge_page ? huge_page : large_page;
  if (config.bytes < bytes_min || config.bytes > bytes_max || config.bytes % unit != 0) {
    return fail("guest memory of " + std::to_string(config.bytes) +
                " bytes: give 64 MiB to 16 TiB, a multiple of " + base::format_bytes(unit));
  }
  return {};
}

Result<Fd> make_file(const RamConfig& config) {
  unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  if (config.page_size != 0) {
    flags |= MFD_HUGETLB;
    flags |= static_cast<unsigned>(std::countr_zero(config.page_size)) << MFD_HUGE_SHIFT;
  }
  Fd file{::memfd_create("guest-memory", flags)};
  if (!file) return fail_errno("cannot make guest memory");
  if (::ftruncate(file.get(), static_cast<off_t>(config.bytes)) != 0) {
    return fail_errno("cannot make " + base::format_bytes(config.bytes) + " of guest memory");
  }
  // A back-end maps it: with its size fixed nobody can take memory from under the other.
  if (::fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return fail_errno("cannot seal guest memory");
  }
  return file;
}

Result<void> bind_to_node(const RamRegion& region, int node) {
  constexpr int nodes_max = 1024;
  if (node < 0 || node >= nodes_max)
    return fail("no NUMA node has the number " + std::to_string(node));
  constexpr unsigned bits = 8 * sizeof(unsigned long);
  std::array<unsigned long, nodes_max / bits> mask{};
  mask[static_cast<unsigned>(node) / bits] |= 1ul << (static_cast<unsigned>(node) % bits);
  if (::mbind(region.host, region.size, MPOL_BIND, mask.data(), nodes_max, MPOL_MF_STRICT) != 0) {
    return fail_errno("cannot bind guest memory to NUMA node " + std::to_string(node));
  }
  return {};
}

Result<void> touch(const RamRegion& region) {
#ifndef MADV_POPULATE_WRITE
  constexpr int MADV_POPULATE_WRITE = 23;  // Linux 5.14
#endif
  if (::madvise(region.host, region.size, MADV_POPULATE_WRITE) == 0) return {};
  return fail_errno("cannot populate " + base::format_bytes(region.size) + " of guest memory");
}

}  // namespace

bool GuestRam::transparent_huge_pages() {
  std::ifstream file{"/sys/kernel/mm/transparent_hugepage/shmem_enabled"};
  std::string word;
  while (file >> word) {
    if (word.front() == '[') return word != "[never]" && word != "[deny]";
  }
  return false;
}

Result<GuestRam> GuestRam::make(const RamConfig& config) {
  if (auto ok = check(config); !ok) return base::Unexpected{ok.error()};
  auto file = make_file(config);
  if (!file) return base::Unexpected{file.error()};

  GuestRam ram;
  ram.file_ = std::move(*file);
  ram.bytes_ = config.bytes;
  // Guest and host addresses agree in their low 30 bits, or KVM could not use large pages.
  ram.reserved_size_ = config.bytes + (hole_end - hole_start) + huge_page;
  ram.reserved_ = ::mmap(nullptr, ram.reserved_size_, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (ram.reserved_ == MAP_FAILED) {
    ram.reserved_ = nullptr;
    return fail_errno("cannot find address space for guest memory");
  }
  const auto reserved = reinterpret_cast<std::uintptr_t>(ram.reserved_);
  const auto start = (reserved + huge_page - 1) / huge_page * huge_page;
  auto* const base = static_cast<std::byte*>(ram.reserved_) + (start - reserved);
  const auto low = std::min(config.bytes, hole_start);
  ram.regions_.push_back({0, low, base, 0});
  if (config.bytes > low) {
    ram.regions_.push_back({hole_end, config.bytes - low, base + hole_end, low});
  }
  for (const auto& region : ram.regions_) {
    const void* mapped = ::mmap(region.host, region.size, PROT_READ | PROT_WRITE,
                                MAP_SHARED | MAP_FIXED | MAP_NORESERVE, ram.file_.get(),
                                static_cast<off_t>(region.file_offset));
    if (mapped == MAP_FAILED) return fail_errno("cannot map guest memory");
    ::madvise(region.host, region.size, MADV_DONTDUMP);
    if (config.page_size == 0) ::madvise(region.host, region.size, MADV_HUGEPAGE);
    if (config.numa_node >= 0) {
      if (auto ok = bind_to_node(region, config.numa_node); !ok) {
        return base::Unexpected{ok.error()};
      }
    }
    // A hugetlb pool that is too small would show as SIGBUS in the middle of the guest's life.
    if (config.prefault || config.page_size != 0) {
      if (auto ok = touch(region); !ok) return base::Unexpected{ok.error()};
    }
  }
  return ram;
}

GuestRam::GuestRam(GuestRam&& other) noexcept
    : file_{std::move(other.file_)},
      reserved_{std::exchange(other.reserved_, nullptr)},
      reserved_size_{std::exchange(other.reserved_size_, 0)},
      bytes_{std::exchange(other.bytes_, 0)},
      regions_{std::exchange(other.regions_, {})} {}

GuestRam& GuestRam::operator=(GuestRam&& other) noexcept {
  if (this != &other) {
    unmap();
    file_ = std::move(other.file_);
    reserved_ = std::exchange(other.reserved_, nullptr);
    reserved_size_ = std::exchange(other.reserved_size_, 0);
    bytes_ = std::exchange(other.bytes_, 0);
    regions_ = std::exchange(other.regions_, {});
  }
  return *this;
}

GuestRam::~GuestRam() {
  unmap();
}

void GuestRam::unmap() noexcept {
  if (reserved_ != nullptr) ::munmap(reserved_, reserved_size_);
  reserved_ = nullptr;
}

std::span<std::byte> GuestRam::at(std::uint64_t address, std::uint64_t size) const {
  for (const auto& region : regions_) {
    const auto offset = address - region.guest_address;  // wraps to large for addresses before it
    if (offset < region.size && size <= region.size - offset) {
      return {region.host + offset, static_cast<std::size_t>(size)};
    }
  }
  return {};
}

}  // namespace millrace::vmm
