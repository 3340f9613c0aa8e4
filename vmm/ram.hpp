// GuestRam: the guest's memory, shared with back-ends: a sealed memfd, mapped once, and one more
// for each piece that is added while the guest runs.
//
// Below the 32-bit hole from address 0, the rest from 4 GiB upwards; what is added lies above all
// of it, piece after piece; then come managed regions, of which the guest has what a device tells
// it (virtio-mem). Regions never change or go. Thread: any may read; one adds.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace millrace::vmm {

struct RamConfig {
  std::uint64_t bytes = 0;       // multiple of 2 MiB (of 1 GiB for such pages), at least 64 MiB
  std::uint64_t page_size = 0;   // 0: ordinary pages (transparent huge ones where the host allows);
                                 // 2 MiB or 1 GiB: from the host's hugetlb pool
  int numa_node = -1;            // bind to that node; -1: wherever
  bool prefault = false;         // touch all of it at the start
  std::uint64_t bytes_most = 0;  // with what may be added later; 0: nothing may
  unsigned slots = 0;            // in so many pieces
  // Bytes of each managed region, multiples of unit(): ordinary pages, made when they are touched.
  std::vector<std::uint64_t> managed{};
};

struct RamRegion {
  std::uint64_t guest_address = 0, size = 0;
  std::byte* host = nullptr;
  std::uint64_t file_offset = 0;
  int file = -1;         // the memory's own
  bool managed = false;  // a device says what of it the guest has
  [[nodiscard]] std::uint64_t end() const { return guest_address + size; }
};

// Who has to do something before a guest may use memory that was added: tell a back-end.
class RamUser {
 public:
  // regions() has grown. GuestRam::taken() shall follow, from any thread, but not from in here.
  virtual void memory_added() = 0;

 protected:
  ~RamUser() = default;
};

class GuestRam {
 public:
  static constexpr std::uint64_t hole_start = 0xc000'0000, hole_end = 0x1'0000'0000;
  static constexpr unsigned slots_max = 32;   // pieces that may be added
  static constexpr unsigned managed_max = 8;  // regions

  static base::Result<GuestRam> make(const RamConfig& config);
  // Whether the host gives shared memory transparent huge pages when it is asked.
  [[nodiscard]] static bool transparent_huge_pages();
  GuestRam(GuestRam&&) noexcept;
  GuestRam& operator=(GuestRam&&) noexcept;
  ~GuestRam();

  [[nodiscard]] std::span<const RamRegion> regions() const;
  // Of the memory of the start.
  [[nodiscard]] const base::Fd& file() const { return file_; }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  // The end of all memory, that which may still be added too.
  [[nodiscard]] std::uint64_t end_of_all() const;
  // The managed region of that place in RamConfig::managed.
  [[nodiscard]] const RamRegion& managed(unsigned index) const;

  // Memory to be added, which nobody has yet.
  class Piece;
  // Fails where so much may not be added, where it is no multiple of unit(), where the memory
  // that was added before is not with everybody yet, and where the host has none.
  base::Result<Piece> make_piece(std::uint64_t bytes) const;
  // A kernel takes memory in blocks of 128 MiB, of up to 2 GiB where it began with much.
  [[nodiscard]] std::uint64_t unit() const { return hot_unit_; }
  // Makes the piece the last of the regions and tells every user of it. `everywhere` is called
  // once all have taken it: now, or later from the last one's thread. It must not call back.
  void add(Piece piece, std::function<void()> everywhere);
  // Users are told; one that goes keeps nobody waiting.
  void attach(RamUser& user) const;
  void detach(RamUser& user) const;
  void taken(RamUser& user) const;
  // [address, address + size) where it lies in one region; empty where it does not.
  [[nodiscard]] std::span<std::byte> at(std::uint64_t address, std::uint64_t size) const;

 private:
  GuestRam() = default;
  void unmap() noexcept;
  void plan_growth();
  base::Result<void> add_managed();
  static base::Result<Piece> make_at(const RamConfig& config, std::uint64_t address,
                                     std::uint64_t bytes, const char* name);

  struct Growth;
  base::Fd file_;
  void* reserved_ = nullptr;  // address space that the regions lie in
  std::uint64_t reserved_size_ = 0;
  std::uint64_t bytes_ = 0;
  std::vector<RamRegion> regions_;  // never moves: there is room for every slot
  RamConfig config_;
  std::uint64_t hot_unit_ = 0, hot_end_ = 0;
  std::unique_ptr<Growth> growth_;
};

class GuestRam::Piece {
 public:
  Piece(Piece&& other) noexcept;
  Piece& operator=(Piece&&) = delete;
  ~Piece();
  [[nodiscard]] const RamRegion& region() const { return region_; }

 private:
  friend class GuestRam;
  Piece() = default;
  base::Fd file_;
  void* reserved_ = nullptr;
  std::uint64_t reserved_size_ = 0;
  RamRegion region_;
};

struct GuestRam::Growth {
  struct User {
    RamUser* user;
    bool waited_for;
  };
  void settle();

  std::atomic<std::size_t> regions{0};  // that may be seen
  std::vector<Piece> pieces, managed;
  std::uint64_t end = 0;  // of all memory
  std::mutex mutex;       // for what follows
  std::vector<User> users;
  std::function<void()> everywhere;  // empty: nothing is on its way
};

}  // namespace millrace::vmm
