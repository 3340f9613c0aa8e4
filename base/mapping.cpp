#include "base/mapping.hpp"

#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>

#include <array>
#include <cerrno>
#include <limits>
#include <string>

#include "base/error.hpp"

namespace millrace::base {

namespace {

constexpr std::uint64_t small_page = 4096;
constexpr long hugetlbfs_magic = 0x958458f6;

// What the SIGBUS handler knows. It runs on whichever thread touched lost memory and may only use
// these words: no lock, no allocation. A slot is claimed by `used`, published by `end` last and
// withdrawn by `end` first; the owner of a mapping keeps it alive while anybody may touch it, so
// the slot of a live access never changes under the handler.
enum Loss : int { whole, replacing, lost };
struct Guard {
  std::atomic<bool> used{false};
  std::atomic<std::uintptr_t> begin{0}, end{0};
  std::atomic<int> loss{whole};
};
constexpr int guards_max = 32768;
std::array<Guard, guards_max> guards;
std::atomic<int> guards_seen{0};  // slots ever used: the handler looks no further
std::atomic<std::uint64_t> losses{0};
struct sigaction previous_action;

static_assert(std::atomic<std::uintptr_t>::is_always_lock_free);

int claim_guard(void* base, std::size_t bytes) {
  for (int i = 0; i < guards_max; ++i) {
    auto& guard = guards[static_cast<std::size_t>(i)];
    if (guard.used.load(std::memory_order_relaxed) || guard.used.exchange(true)) continue;
    const auto begin = reinterpret_cast<std::uintptr_t>(base);
    guard.loss.store(whole);
    guard.begin.store(begin);
    guard.end.store(begin + bytes);
    int seen = guards_seen.load();
    while (seen < i + 1 && !guards_seen.compare_exchange_weak(seen, i + 1)) {
    }
    return i;
  }
  return -1;
}

void release_guard(int index) {
  auto& guard = guards[static_cast<std::size_t>(index)];
  guard.end.store(0);
  guard.used.store(false);
}

// Returns true if the access may be tried again.
bool replace(Guard& guard, std::uintptr_t begin, std::uintptr_t end) {
  int expected = whole;
  if (!guard.loss.compare_exchange_strong(expected, replacing)) {
    return true;  // another thread is at it or was: the access comes back until it is done
  }
  // Counted first: whoever reads a zero of the new pages finds the count risen at its visit's end.
  losses.fetch_add(1);
  const auto got = ::syscall(SYS_mmap, begin, end - begin, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0L);
  if (got == -1) return false;
  guard.loss.store(lost);
  return true;
}

void say(const char* text, std::size_t length) {
  [[maybe_unused]] const auto ignored = ::write(STDERR_FILENO, text, length);
}

void on_sigbus(int, siginfo_t* info, void*) {
  const int saved_errno = errno;
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  const bool from_kernel = info->si_code > 0;
  const int seen = guards_seen.load();
  for (int i = 0; from_kernel && i < seen; ++i) {
    auto& guard = guards[static_cast<std::size_t>(i)];
    const auto end = guard.end.load();
    const auto begin = guard.begin.load();
    if (end == 0 || address < begin || address >= end || guard.end.load() != end) continue;
    if (!replace(guard, begin, end)) break;
    errno = saved_errno;
    return;
  }
  constexpr char text[] = "millrace: our own fault: SIGBUS outside every peer's memory\n";
  say(text, sizeof(text) - 1);
  ::sigaction(SIGBUS, &previous_action, nullptr);
  // A fault comes back by itself when the access is tried again; a signal that was sent does not.
  if (!from_kernel) ::raise(SIGBUS);
  errno = saved_errno;
}

std::uint64_t round_down(std::uint64_t value, std::uint64_t unit) {
  return value / unit * unit;
}

Result<std::uint64_t> page_size_of(const Fd& fd) {
  struct statfs filesystem {};
  if (::fstatfs(fd.get(), &filesystem) != 0) return fail_errno("cannot examine shared memory");
  if (filesystem.f_type != hugetlbfs_magic) return small_page;
  const auto page = static_cast<std::uint64_t>(filesystem.f_bsize);
  if (page < small_page || (page & (page - 1)) != 0) return fail("odd huge page size");
  return page;
}

}  // namespace

Result<std::shared_ptr<const Mapping>> Mapping::map(const Fd& fd, std::uint64_t offset,
                                                    std::uint64_t size) {
  if (kind_of(fd) != FdKind::memory) {
    return fail("shared memory is refused: the descriptor is no memfd, tmpfs or hugetlbfs file");
  }
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return fail_errno("cannot examine shared memory");
  const auto file_size = static_cast<std::uint64_t>(status.st_size);
  if (size == 0 || offset > file_size || size > file_size - offset) {
    return fail("shared memory is refused: " + std::to_string(size) + " bytes at offset " +
                std::to_string(offset) + " lie outside a file of " + std::to_string(file_size));
  }
  const auto page = page_size_of(fd);
  if (!page) return Unexpected{page.error()};
  // mmap(2) wants whole pages of the file; the last one may reach over the file's end, but not by
  // a page. The file holds offset + size, which is below 2^63, so nothing here overflows.
  const auto start = round_down(offset, *page);
  const auto skipped = offset - start;
  const auto mapped = round_down(skipped + size + *page - 1, *page);
  void* base = ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd.get(),
                      static_cast<off_t>(start));
  if (base == MAP_FAILED) return fail_errno("cannot map shared memory");
  ::madvise(base, mapped, MADV_DONTDUMP);

  auto mapping = std::shared_ptr<Mapping>(new Mapping);
  mapping->base_ = base;
  mapping->mapped_ = mapped;
  mapping->data_ = static_cast<std::byte*>(base) + skipped;
  mapping->size_ = size;
  mapping->page_size_ = *page;
  mapping->place_ = {status.st_dev, status.st_ino, offset};
  mapping->guard_ = claim_guard(base, mapped);
  if (mapping->guard_ < 0) return fail("shared memory is refused: too many mappings");
  return std::shared_ptr<const Mapping>{std::move(mapping)};
}

Result<std::shared_ptr<const Mapping>> Mapping::anonymous(std::uint64_t size) {
  if (size == 0 || size > std::numeric_limits<std::uint64_t>::max() / 2) {
    return fail("cannot map " + std::to_string(size) + " bytes");
  }
  const auto mapped = round_down(size + small_page - 1, small_page);
  void* base = ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return fail_errno("cannot map memory");
  auto mapping = std::shared_ptr<Mapping>(new Mapping);
  mapping->base_ = base;
  mapping->mapped_ = mapped;
  mapping->data_ = static_cast<std::byte*>(base);
  mapping->size_ = size;
  mapping->place_ = {0, reinterpret_cast<std::uintptr_t>(base), 0};
  return std::shared_ptr<const Mapping>{std::move(mapping)};
}

Mapping::~Mapping() {
  if (guard_ >= 0) release_guard(guard_);
  if (base_ != nullptr) ::munmap(base_, mapped_);
}

bool Mapping::faulted() const noexcept {
  return guard_ >= 0 && guards[static_cast<std::size_t>(guard_)].loss.load() != whole;
}

void install_memory_fault_handler() {
  struct sigaction action {};
  action.sa_sigaction = on_sigbus;
  action.sa_flags = SA_SIGINFO;
  ::sigemptyset(&action.sa_mask);
  struct sigaction before {};
  CHECK(::sigaction(SIGBUS, &action, &before) == 0);
  if ((before.sa_flags & SA_SIGINFO) == 0 || before.sa_sigaction != on_sigbus) {
    previous_action = before;
  }
}

std::uint64_t memory_fault_count() noexcept {
  return losses.load(std::memory_order_relaxed);
}

}  // namespace millrace::base
