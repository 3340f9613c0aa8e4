// GuestRam: the guest's memory, shared with back-ends: a sealed memfd, mapped once.
//
// Below the 32-bit hole from address 0, the rest from 4 GiB upwards. Thread: made once, then
// read only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace millrace::vmm {

struct RamConfig {
  std::uint64_t bytes = 0;      // multiple of 2 MiB (of 1 GiB for such pages), at least 64 MiB
  std::uint64_t page_size = 0;  // 0: ordinary pages (transparent huge ones where the host allows);
                                // 2 MiB or 1 GiB: from the host's hugetlb pool
  int numa_node = -1;           // bind to that node; -1: wherever
  bool prefault = false;        // touch all of it at the start
};

struct RamRegion {
  std::uint64_t guest_address = 0, size = 0;
  std::byte* host = nullptr;
  std::uint64_t file_offset = 0;
};

class GuestRam {
 public:
  static constexpr std::uint64_t hole_start = 0xc000'0000, hole_end = 0x1'0000'0000;

  static base::Result<GuestRam> make(const RamConfig& config);
  // Whether the host gives shared memory transparent huge pages when it is asked.
  [[nodiscard]] static bool transparent_huge_pages();
  GuestRam(GuestRam&&) noexcept;
  GuestRam& operator=(GuestRam&&) noexcept;
  ~GuestRam();

  [[nodiscard]] std::span<const RamRegion> regions() const { return regions_; }
  [[nodiscard]] const base::Fd& file() const { return file_; }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  // [address, address + size) where it lies in one region; empty where it does not.
  [[nodiscard]] std::span<std::byte> at(std::uint64_t address, std::uint64_t size) const;

 private:
  GuestRam() = default;
  void unmap() noexcept;

  base::Fd file_;
  void* reserved_ = nullptr;  // address space that the regions lie in
  std::uint64_t reserved_size_ = 0;
  std::uint64_t bytes_ = 0;
  std::vector<RamRegion> regions_;
};

}  // namespace millrace::vmm
