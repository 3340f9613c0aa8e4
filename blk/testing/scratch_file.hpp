// ScratchFile: a file in the temporary directory that goes away with it; a pattern to fill it with.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/fd.hpp"

namespace millrace::blk::testing {

// Bytes that depend on where they are and on `seed`; never zero.
inline std::byte pattern(std::uint64_t at, std::uint32_t seed) {
  const std::uint64_t mixed = (at * 2654435761u + seed * 40503u) >> 3;
  return static_cast<std::byte>(mixed % 255 + 1);
}
inline std::vector<std::byte> patterned(std::uint64_t at, std::size_t bytes, std::uint32_t seed) {
  std::vector<std::byte> out(bytes);
  for (std::size_t i = 0; i < bytes; ++i) out[i] = pattern(at + i, seed);
  return out;
}

class ScratchFile {
 public:
  explicit ScratchFile(std::uint64_t bytes) {
    const char* const dir = std::getenv("TMPDIR");
    path_ = std::string{dir != nullptr ? dir : "/tmp"} + "/millrace-blk-XXXXXX";
    fd_ = base::Fd{::mkostemp(path_.data(), O_CLOEXEC)};
    EXPECT_TRUE(fd_.valid());
    resize(bytes);
  }
  ~ScratchFile() { ::unlink(path_.c_str()); }
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] int fd() const { return fd_.get(); }
  void resize(std::uint64_t bytes) {
    EXPECT_EQ(::ftruncate(fd_.get(), static_cast<off_t>(bytes)), 0);
  }
  [[nodiscard]] std::uint64_t bytes() const {
    struct stat stat {};
    EXPECT_EQ(::fstat(fd_.get(), &stat), 0);
    return static_cast<std::uint64_t>(stat.st_size);
  }
  [[nodiscard]] std::uint64_t allocated() const {
    struct stat stat {};
    EXPECT_EQ(::fstat(fd_.get(), &stat), 0);
    return static_cast<std::uint64_t>(stat.st_blocks) * 512;
  }
  void write(std::uint64_t at, const std::vector<std::byte>& data) {
    EXPECT_EQ(::pwrite(fd_.get(), data.data(), data.size(), static_cast<off_t>(at)),
              static_cast<ssize_t>(data.size()));
  }
  [[nodiscard]] std::vector<std::byte> read(std::uint64_t at, std::size_t bytes) const {
    std::vector<std::byte> out(bytes);
    EXPECT_EQ(::pread(fd_.get(), out.data(), bytes, static_cast<off_t>(at)),
              static_cast<ssize_t>(bytes));
    return out;
  }

 private:
  std::string path_;
  base::Fd fd_;
};

}  // namespace millrace::blk::testing
