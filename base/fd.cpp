#include "base/fd.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <cstdio>
#include <string_view>

namespace millrace::base {

namespace {

bool is_eventfd(int fd) noexcept {
  std::array<char, 32> path{};
  std::snprintf(path.data(), path.size(), "/proc/self/fd/%d", fd);
  std::array<char, 64> target{};
  const auto length = ::readlink(path.data(), target.data(), target.size());
  // A file's link starts with a slash, so no file can be named like this.
  return length > 0 && std::string_view{target.data(), static_cast<std::size_t>(length)} ==
                           "anon_inode:[eventfd]";
}

}  // namespace

// The sender chooses the descriptor, and fstat(2) or fstatfs(2) on a file of its own FUSE server
// would wait for that server. So the type is taken from what the kernel has cached, and memory is
// recognised by its seals, which only tmpfs (memfd) and hugetlbfs files have.
FdKind kind_of(const Fd& fd) noexcept {
  if (!fd.valid()) return FdKind::other;
  if (is_eventfd(fd.get())) return FdKind::eventfd;
  struct statx status {};
  if (::statx(fd.get(), "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &status) != 0) {
    return FdKind::other;
  }
  if (S_ISSOCK(status.stx_mode)) return FdKind::socket;
  if (S_ISBLK(status.stx_mode)) return FdKind::block_device;
  if (!S_ISREG(status.stx_mode)) return FdKind::other;
  if (::fcntl(fd.get(), F_GET_SEALS) >= 0) return FdKind::memory;
  return FdKind::regular_file;
}

}  // namespace millrace::base
