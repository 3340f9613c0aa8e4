#include "vmm/boot_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>

#include "base/error.hpp"

namespace millrace::vmm {

using base::fail;
using base::fail_errno;
using base::Result;

Result<BootFile> BootFile::open(const std::string& path, const std::string& what) {
  BootFile file;
  file.label_ = what + " " + path;
  // A pipe without a writer would be waited for.
  file.fd_ = base::Fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (!file.fd_) return fail_errno("cannot open the " + file.label_);
  struct stat status {};
  if (::fstat(file.fd_.get(), &status) != 0) return fail_errno("cannot read the " + file.label_);
  if (!S_ISREG(status.st_mode)) return fail("the " + file.label_ + " is no regular file");
  file.size_ = static_cast<std::uint64_t>(status.st_size);
  return file;
}

Result<void> BootFile::read(std::uint64_t offset, std::span<std::byte> into) const {
  if (offset > size_ || into.size() > size_ - offset) {
    return fail("the " + label_ + " is cut short: it has " + std::to_string(size_) +
                " bytes and should have more");
  }
  while (!into.empty()) {
    const auto got = ::pread(fd_.get(), into.data(), into.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("cannot read the " + label_);
    if (got == 0) return fail("the " + label_ + " became shorter while it was read");
    into = into.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
  return {};
}

}  // namespace millrace::vmm
