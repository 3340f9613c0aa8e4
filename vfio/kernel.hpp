// Kernel: the system calls that VFIO needs, so that tests can stand in for the kernel.
//
// Calls answer as the system calls do: -1 (or null) and errno. Thread: any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace millrace::vfio {

class Kernel {
 public:
  virtual ~Kernel() = default;
  // For reading and writing, close-on-exec.
  virtual int open(const char* path) = 0;
  // Another descriptor of the same, close-on-exec.
  virtual int copy(int fd) = 0;
  // `argument`: a number, or the address of what the request reads and writes.
  virtual int ioctl(int fd, unsigned long request, std::uintptr_t argument) = 0;
  virtual std::int64_t read_at(int fd, std::span<std::byte> data, std::uint64_t offset) = 0;
  virtual std::int64_t write_at(int fd, std::span<const std::byte> data, std::uint64_t offset) = 0;
  // Shared, for reading and, if `writable`, writing; nullptr where it cannot be.
  virtual std::byte* map(int fd, std::uint64_t size, std::uint64_t offset, bool writable) = 0;
  virtual void unmap(std::byte* address, std::uint64_t size) = 0;
  // The limit of locked memory in bytes; UINT64_MAX: there is none for this process.
  virtual std::uint64_t locked_memory_limit() = 0;

  template <class T>
  int call(int fd, unsigned long request, T& argument) {
    return ioctl(fd, request, reinterpret_cast<std::uintptr_t>(&argument));
  }
};

// The real one.
[[nodiscard]] Kernel& host_kernel();

}  // namespace millrace::vfio
