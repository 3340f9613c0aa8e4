#include "vfio/kernel.hpp"

#include <fcntl.h>
#include <linux/capability.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <limits>

namespace millrace::vfio {

namespace {

// Whether the limits of locked memory do not hold for this process.
bool may_lock_anything() {
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  std::array<__user_cap_data_struct, 2> data{};
  if (::syscall(SYS_capget, &header, data.data()) != 0) return false;
  return (data[0].effective & 1u << CAP_IPC_LOCK) != 0;
}

class HostKernel final : public Kernel {
 public:
  int open(const char* path) override { return ::open(path, O_RDWR | O_CLOEXEC); }

  int copy(int fd) override { return ::fcntl(fd, F_DUPFD_CLOEXEC, 0); }

  int ioctl(int fd, unsigned long request, std::uintptr_t argument) override {
    int answer = 0;
    do {
      answer = ::ioctl(fd, request, argument);
    } while (answer < 0 && errno == EINTR);
    return answer;
  }

  std::int64_t read_at(int fd, std::span<std::byte> data, std::uint64_t offset) override {
    return ::pread(fd, data.data(), data.size(), static_cast<off_t>(offset));
  }

  std::int64_t write_at(int fd, std::span<const std::byte> data, std::uint64_t offset) override {
    return ::pwrite(fd, data.data(), data.size(), static_cast<off_t>(offset));
  }

  std::byte* map(int fd, std::uint64_t size, std::uint64_t offset, bool writable) override {
    void* const at = ::mmap(nullptr, size, writable ? PROT_READ | PROT_WRITE : PROT_READ,
                            MAP_SHARED, fd, static_cast<off_t>(offset));
    return at == MAP_FAILED ? nullptr : static_cast<std::byte*>(at);
  }

  void unmap(std::byte* address, std::uint64_t size) override { ::munmap(address, size); }

  std::uint64_t locked_memory_limit() override {
    rlimit limit{};
    constexpr auto none = std::numeric_limits<std::uint64_t>::max();
    if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return none;
    return may_lock_anything() ? none : limit.rlim_cur;
  }
};

}  // namespace

Kernel& host_kernel() {
  static HostKernel kernel;  // has no state
  return kernel;
}

}  // namespace millrace::vfio
