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
// As the host shows them, in /proc/PID/fd.
constexpr const char *usual_name = "guest-memory", *managed_name = "guest-managed";
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
  if (config.bytes_most > bytes_max || config.slots > GuestRam::slots_max) {
    return fail("guest memory may grow to 16 TiB, in " + std::to_string(GuestRam::slots_max) +
                " pieces");
  }
  return {};
}

Result<Fd> make_file(const RamConfig& config, std::uint64_t bytes, const char* name) {
  unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  if (config.page_size != 0) {
    flags |= MFD_HUGETLB;
    flags |= static_cast<unsigned>(std::countr_zero(config.page_size)) << MFD_HUGE_SHIFT;
  }
  Fd file{::memfd_create(name, flags)};
  if (!file) return fail_errno("cannot make guest memory");
  if (::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) {
    return fail_errno("cannot make " + base::format_bytes(bytes) + " of guest memory");
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

// `page_size`: RamConfig's.
Result<void> touch(const RamRegion& region, std::uint64_t page_size) {
#ifndef MADV_POPULATE_WRITE
  constexpr int MADV_POPULATE_WRITE = 23;  // Linux 5.14
#endif
  if (::madvise(region.host, region.size, MADV_POPULATE_WRITE) == 0) return {};
  const auto size = base::format_bytes(region.size);
  if (page_size == 0) return fail_errno("cannot populate " + size + " of guest memory");
  return fail("cannot take " + size + " of guest memory from the host's pool of huge pages of " +
              base::format_bytes(page_size) +
              ": too few are free; enlarge the pool (vm.nr_hugepages), or leave --pages out");
}

// Address space from a multiple of 1 GiB on: guest and host addresses agree in their low 30 bits,
// or KVM could not use large pages. `size` has 1 GiB more than is used.
Result<std::byte*> reserve(std::uint64_t size, void*& reserved) {
  void* const at =
      ::mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return fail_errno("cannot find address space for guest memory");
  reserved = at;
  const auto address = reinterpret_cast<std::uintptr_t>(at);
  const auto start = (address + huge_page - 1) / huge_page * huge_page;
  return static_cast<std::byte*>(at) + (start - address);
}

Result<void> map_region(const RamConfig& config, const RamRegion& region) {
  const void* mapped = ::mmap(region.host, region.size, PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_FIXED | MAP_NORESERVE, region.file,
                              static_cast<off_t>(region.file_offset));
  if (mapped == MAP_FAILED) return fail_errno("cannot map guest memory");
  ::madvise(region.host, region.size, MADV_DONTDUMP);
  if (config.page_size == 0) ::madvise(region.host, region.size, MADV_HUGEPAGE);
  if (config.numa_node >= 0) {
    if (auto ok = bind_to_node(region, config.numa_node); !ok) return ok;
  }
  // A hugetlb pool that is too small would show as SIGBUS in the middle of the guest's life.
  return config.prefault || config.page_size != 0 ? touch(region, config.page_size)
                                                  : Result<void>{};
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
  auto file = make_file(config, config.bytes, usual_name);
  if (!file) return base::Unexpected{file.error()};

  GuestRam ram;
  ram.config_ = config;
  ram.growth_ = std::make_unique<Growth>();
  ram.file_ = std::move(*file);
  ram.bytes_ = config.bytes;
  ram.reserved_size_ = config.bytes + (hole_end - hole_start) + huge_page;
  const auto base = reserve(ram.reserved_size_, ram.reserved_);
  if (!base) return base::Unexpected{base.error()};
  const auto low = std::min(config.bytes, hole_start);
  const int fd = ram.file_.get();
  ram.regions_.reserve(2 + slots_max + managed_max);
  ram.regions_.push_back({0, low, *base, 0, fd});
  if (config.bytes > low) {
    ram.regions_.push_back({hole_end, config.bytes - low, *base + hole_end, low, fd});
  }
  for (const auto& region : ram.regions_) {
    if (auto ok = map_region(config, region); !ok) return base::Unexpected{ok.error()};
  }
  ram.plan_growth();
  if (config.bytes_most > config.bytes && (config.bytes_most - config.bytes) % ram.hot_unit_ != 0) {
    return fail("memory is added in multiples of " + base::format_bytes(ram.hot_unit_) +
                ": max= is to be the memory of the start and so many of them");
  }
  if (auto ok = ram.add_managed(); !ok) return base::Unexpected{ok.error()};
  ram.growth_->regions.store(ram.regions_.size());
  return ram;
}

// Where the kernel begins to use blocks of memory that are larger than the least, see
// probe_memory_block_size() of Linux, any piece may have to be a multiple of the largest.
void GuestRam::plan_growth() {
  constexpr std::uint64_t block = 128 * mebibyte, large_block = 2048 * mebibyte;
  constexpr std::uint64_t large_memory = 64 * huge_page;
  const auto end = std::max(regions_.back().end(), hole_end);
  hot_unit_ = std::max(end >= large_memory ? large_block : block, config_.page_size);
  hot_end_ = regions_.back().end();
  if (config_.bytes_most <= config_.bytes) return;
  hot_end_ = (end + large_block - 1) / large_block * large_block + config_.bytes_most - bytes_;
}

Result<GuestRam::Piece> GuestRam::make_piece(std::uint64_t bytes) const {
  const auto size = base::format_bytes(bytes);
  std::uint64_t added = 0;
  for (const auto& piece : growth_->pieces) added += piece.region().size;
  const auto left = std::max(config_.bytes_most, bytes_) - bytes_ - added;
  if (growth_->pieces.size() >= config_.slots || bytes > left) {
    return fail("the guest has room for " + base::format_bytes(left) + " more memory in " +
                std::to_string(config_.slots - growth_->pieces.size()) +
                " pieces: start it with --memory SIZE,max=SIZE,slots=N");
  }
  if (bytes == 0 || bytes % hot_unit_ != 0) {
    return fail("memory is added in multiples of " + base::format_bytes(hot_unit_) + ", not " +
                size);
  }
  {
    const std::lock_guard lock{growth_->mutex};
    if (growth_->everywhere) {
      return fail("the memory that was added before is not with every back-end yet: try again");
    }
  }
  return make_at(config_, hot_end_ - left, bytes, usual_name);
}

// Behind all that may be added, so that a guest's addresses do not depend on what was.
Result<void> GuestRam::add_managed() {
  constexpr std::uint64_t alignment = 2048 * mebibyte;  // of the largest blocks of any kernel
  growth_->end = hot_end_;
  if (config_.managed.size() > managed_max) {
    return fail("a guest has at most " + std::to_string(managed_max) + " memory devices");
  }
  auto config = config_;
  config.page_size = 0;
  config.prefault = false;
  for (const auto bytes : config_.managed) {
    if (bytes == 0 || bytes % hot_unit_ != 0 || bytes > bytes_max) {
      return fail("a memory device of " + base::format_bytes(bytes) + ": give a multiple of " +
                  base::format_bytes(hot_unit_) + ", at most 16 TiB");
    }
    const auto from = std::max(growth_->end, hole_end);
    const auto address = (from + alignment - 1) / alignment * alignment;
    auto piece = make_at(config, address, bytes, managed_name);
    if (!piece) return base::Unexpected{piece.error()};
    piece->region_.managed = true;
    growth_->end = piece->region().end();
    regions_.push_back(piece->region());
    growth_->managed.push_back(*std::move(piece));
  }
  return {};
}

Result<GuestRam::Piece> GuestRam::make_at(const RamConfig& config, std::uint64_t address,
                                          std::uint64_t bytes, const char* name) {
  auto file = make_file(config, bytes, name);
  if (!file) return base::Unexpected{file.error()};
  Piece piece;
  piece.file_ = *std::move(file);
  piece.reserved_size_ = bytes + huge_page;
  const auto base = reserve(piece.reserved_size_, piece.reserved_);
  if (!base) return base::Unexpected{base.error()};
  piece.region_ = {address, bytes, *base, 0, piece.file_.get()};
  // A large page of the host's is one of the guest's where both agree in their low bits.
  piece.region_.host += piece.region_.guest_address % huge_page;
  if (auto ok = map_region(config, piece.region_); !ok) return base::Unexpected{ok.error()};
  return piece;
}

GuestRam::GuestRam(GuestRam&& other) noexcept
    : file_{std::move(other.file_)},
      reserved_{std::exchange(other.reserved_, nullptr)},
      reserved_size_{std::exchange(other.reserved_size_, 0)},
      bytes_{std::exchange(other.bytes_, 0)},
      regions_{std::exchange(other.regions_, {})},
      config_{other.config_},
      hot_unit_{other.hot_unit_},
      hot_end_{other.hot_end_},
      growth_{std::move(other.growth_)} {}

GuestRam& GuestRam::operator=(GuestRam&& other) noexcept {
  if (this != &other) {
    unmap();
    file_ = std::move(other.file_);
    reserved_ = std::exchange(other.reserved_, nullptr);
    reserved_size_ = std::exchange(other.reserved_size_, 0);
    bytes_ = std::exchange(other.bytes_, 0);
    regions_ = std::exchange(other.regions_, {});
    config_ = other.config_;
    hot_unit_ = other.hot_unit_;
    hot_end_ = other.hot_end_;
    growth_ = std::move(other.growth_);
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
  for (const auto& region : regions()) {
    const auto offset = address - region.guest_address;  // wraps to large for addresses before it
    if (offset < region.size && size <= region.size - offset) {
      return {region.host + offset, static_cast<std::size_t>(size)};
    }
  }
  return {};
}

}  // namespace millrace::vmm
