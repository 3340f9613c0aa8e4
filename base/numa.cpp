#include "base/numa.hpp"

#include <numa.h>
#include <sys/mman.h>

#include <limits>

#include "base/error.hpp"

namespace millrace::base {

namespace {

bool numa_usable() noexcept {
  static const bool usable = ::numa_available() >= 0;
  return usable;
}

}  // namespace

int node_of_core(int core) noexcept {
  if (core < 0 || !numa_usable()) return any_node;
  const int node = ::numa_node_of_cpu(core);
  return node >= 0 ? node : any_node;
}

Result<NumaBuffer> NumaBuffer::make(std::size_t size, int node) {
  constexpr std::size_t page = 4096;
  if (size == 0 || size > std::numeric_limits<std::size_t>::max() - page) {
    return fail("cannot allocate a buffer of " + std::to_string(size) + " bytes");
  }
  const auto bytes = (size + page - 1) / page * page;
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return fail_errno("cannot allocate a buffer");
  if (node >= 0 && numa_usable() && node <= ::numa_max_node()) {
    ::numa_tonode_memory(memory, bytes, node);
  }
  NumaBuffer buffer;
  buffer.data_ = static_cast<std::byte*>(memory);
  buffer.size_ = bytes;
  return buffer;
}

NumaBuffer::~NumaBuffer() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

}  // namespace millrace::base
