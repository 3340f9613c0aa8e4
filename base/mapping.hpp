// Mapping: a peer's memory mapped into this process, whose loss is the peer's fault and not ours.
//
// A front-end can truncate the file behind a mapping at any time; a touch is then SIGBUS. The
// handler replaces the whole mapping by anonymous zero pages, marks it `faulted` and lets the
// access go on: no unwinding, no lost lock, and the device that owns it is poisoned at the end of
// its visit. A SIGBUS outside every Mapping is our own fault and ends the process.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace millrace::base {

// Which bytes a mapping shows, the same for every mapping of them: a file and the place in it of
// the mapping's first byte. Anonymous memory has file system 0 and an inode that nothing else has.
struct FilePlace {
  std::uint64_t file_system = 0, inode = 0, offset = 0;
};

class Mapping {
 public:
  // Maps `size` bytes of `fd` at `offset`, shared, readable and writable. Checks with fstat(2) that
  // the file holds offset + size bytes and that it is memory (memfd, tmpfs or hugetlbfs): see
  // FdKind::memory. `offset` and `size` need not be page aligned. Control thread.
  static Result<std::shared_ptr<const Mapping>> map(const Fd& fd, std::uint64_t offset,
                                                    std::uint64_t size);
  // Maps memory of our own (a test, a queue of our own). Not guarded.
  static Result<std::shared_ptr<const Mapping>> anonymous(std::uint64_t size);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  // True once a touch found that the memory is gone. Thread: any.
  [[nodiscard]] bool faulted() const noexcept;
  // Bytes of one page of the file behind it (4096, or the size of a huge page).
  [[nodiscard]] std::uint64_t page_size() const noexcept { return page_size_; }
  [[nodiscard]] const FilePlace& place() const noexcept { return place_; }

 private:
  Mapping() = default;
  std::byte* data_ = nullptr;  // first byte asked for
  std::uint64_t size_ = 0;     // bytes asked for
  void* base_ = nullptr;       // what mmap returned
  std::size_t mapped_ = 0;     // bytes mapped
  std::uint64_t page_size_ = 4096;
  FilePlace place_;
  int guard_ = -1;  // slot in the handler's table; -1: not guarded
};

// Installs the SIGBUS handler. Call once, before the first reactor starts.
void install_memory_fault_handler();

// How many mappings were lost since the process started: one relaxed load, so that a visit can ask
// whether anything happened before it looks at each mapping. Thread: any.
[[nodiscard]] std::uint64_t memory_fault_count() noexcept;

}  // namespace millrace::base
