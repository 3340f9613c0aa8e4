// Dump: writes a guest's memory and registers to a file, on a thread of its own, while the guest
// stands still.
//
// Memory that the guest never touched is not read, nor are zeros written: the file has holes there.
// The kernel's own note for its readers (vmcoreinfo.hpp) is found on the way and put to the others.
// Thread: made and destroyed by one, progress from any.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "vmm/dump_layout.hpp"

namespace millrace::vmm {

class Dump {
 public:
  // Begins, with the regions that there are now. `ram` outlives it. `done` comes from its thread,
  // once, whatever becomes of it; it may not destroy the dump. Fails where `file` is no regular
  // file that can be written anywhere.
  static base::Result<std::unique_ptr<Dump>> begin(const GuestRam& ram,
                                                   const std::vector<CpuState>& cpus, base::Fd file,
                                                   std::function<void()> done);
  ~Dump() { stop(); }
  Dump(const Dump&) = delete;
  Dump& operator=(const Dump&) = delete;

  // Gives up where it is, if it is not done, and waits for the thread.
  void stop();
  [[nodiscard]] std::uint64_t total() const { return total_; }
  [[nodiscard]] std::uint64_t completed() const { return completed_.load(); }
  // What went wrong; empty: nothing, so far. Whole after stop().
  [[nodiscard]] std::string error() const;

 private:
  // Of a guest that writes such pages on purpose no more are looked at.
  static constexpr std::size_t notes_max = 16;

  Dump(const GuestRam& ram, const std::vector<CpuState>& cpus, base::Fd file)
      : regions_{ram.regions().begin(), ram.regions().end()}, cpus_{cpus}, file_{std::move(file)} {}
  void run();
  base::Result<void> write_all(DumpLayout layout);
  base::Result<void> write_region(const RamRegion& region, std::uint64_t to);
  base::Result<void> copy(int memory, std::uint64_t from, std::uint64_t size, std::uint64_t to);
  base::Result<void> write(const std::byte* bytes, std::size_t size, std::uint64_t to);
  void find_notes(int memory, std::uint64_t from, std::size_t size);
  [[nodiscard]] std::optional<std::uint64_t> word_at(std::uint64_t address) const;

  const std::vector<RamRegion> regions_;
  const std::vector<CpuState> cpus_;
  const base::Fd file_;
  std::uint64_t total_ = 0;
  std::vector<std::byte> buffer_;
  std::vector<std::vector<std::byte>> notes_;  // of kernels, that were found
  std::atomic<std::uint64_t> completed_{0};
  std::atomic<bool> cancelled_{false};
  mutable std::mutex mutex_;  // for the error
  std::string error_;
  std::thread thread_;
};

// Whether a dump can go there: a regular file, open for writing, not at its end only.
[[nodiscard]] base::Result<void> check_dump_file(const base::Fd& file);

}  // namespace millrace::vmm
