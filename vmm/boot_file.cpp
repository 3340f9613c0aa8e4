#include "vmm/boot_file.hpp"

#include <fcntl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/check.hpp"
#include "base/error.hpp"
#include "vmm/ram.hpp"

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

Result<void> BootFile::load(std::uint64_t offset, std::uint64_t size, const GuestRam& ram,
                            std::uint64_t address) const {
  const auto into = ram.at(address, size);
  CHECK(into.size() == size);
  if (offset > size_ || size > size_ - offset) return read(offset, into);  // which says so
  const auto region = std::ranges::find_if(ram.regions(), [address](const RamRegion& each) {
    return address >= each.guest_address && address < each.end();
  });
  const auto at = region->file_offset + (address - region->guest_address);
  auto from = static_cast<off_t>(offset);
  const auto end = static_cast<off_t>(offset + size);
  if (::lseek(region->file, static_cast<off_t>(at), SEEK_SET) < 0) return read(offset, into);
  while (from < end) {
    const auto sent =
        ::sendfile(region->file, fd_.get(), &from, static_cast<std::size_t>(end - from));
    // Pages of the hugetlb pool cannot be written so.
    if (sent <= 0) return read(offset, into);
  }
  return {};
}

}  // namespace millrace::vmm
