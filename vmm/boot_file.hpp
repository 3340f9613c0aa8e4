// BootFile: a kernel or an initrd on its way from a file into the guest's memory.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace millrace::vmm {

class GuestRam;

class BootFile {
 public:
  // `what` names it in errors: "kernel", "initrd".
  static base::Result<BootFile> open(const std::string& path, const std::string& what);

  [[nodiscard]] std::uint64_t size() const { return size_; }
  // "kernel /boot/vmlinuz", for errors.
  [[nodiscard]] const std::string& label() const { return label_; }
  // All of `into`, from `offset`. Fails where the file ends before.
  base::Result<void> read(std::uint64_t offset, std::span<std::byte> into) const;
  // [offset, offset + size) to guest address `address`, which lies in one region with all of it.
  // From one file to the other in the kernel: half the time of read(), which meets a page fault a
  // page. Before anybody else has the memory: its file's position is moved.
  base::Result<void> load(std::uint64_t offset, std::uint64_t size, const GuestRam& ram,
                          std::uint64_t address) const;

 private:
  BootFile() = default;
  base::Fd fd_;
  std::uint64_t size_ = 0;
  std::string label_;
};

}  // namespace millrace::vmm
