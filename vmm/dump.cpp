#include "vmm/dump.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>

#include "base/error.hpp"
#include "vmm/vmcoreinfo.hpp"

namespace millrace::vmm {

using base::fail;
using base::fail_errno;
using base::Result;

namespace {

constexpr std::size_t piece_max = 64 * 1024;  // written or left out as a whole
constexpr std::size_t page_size = 4096;

bool all_zeros(const std::byte* bytes, std::size_t size) {
  return std::all_of(bytes, bytes + size, [](std::byte byte) { return byte == std::byte{0}; });
}

// The next stretch of the file that has data, within [from, end). Where the file system cannot
// tell, all of it. `begin` == `end`: there is none.
struct Stretch {
  std::uint64_t begin, end;
};
Stretch next_data(int fd, std::uint64_t from, std::uint64_t end) {
  const auto data = ::lseek(fd, static_cast<off_t>(from), SEEK_DATA);
  if (data < 0) return errno == ENXIO ? Stretch{end, end} : Stretch{from, end};
  const auto hole = ::lseek(fd, data, SEEK_HOLE);
  const auto begin = static_cast<std::uint64_t>(data);
  if (begin >= end) return {end, end};
  return {begin, hole < 0 ? end : std::min(end, static_cast<std::uint64_t>(hole))};
}

}  // namespace

Result<void> check_dump_file(const base::Fd& file) {
  struct stat status {};
  const int flags = ::fcntl(file.get(), F_GETFL);
  if (flags < 0 || ::fstat(file.get(), &status) != 0) return fail_errno("the dump's file");
  if (!S_ISREG(status.st_mode)) {
    return fail("a dump goes to a regular file (it has holes), and this is none");
  }
  if ((flags & O_ACCMODE) == O_RDONLY) return fail("the dump's file is not open for writing");
  if ((flags & O_APPEND) != 0) {
    return fail("the dump's file is open for appending, and a dump is not written in one go");
  }
  return {};
}

Result<std::unique_ptr<Dump>> Dump::begin(const GuestRam& ram, const std::vector<CpuState>& cpus,
                                          base::Fd file, std::function<void()> done) {
  if (auto ok = check_dump_file(file); !ok) return base::Unexpected{ok.error()};
  std::unique_ptr<Dump> dump{new Dump{ram, cpus, std::move(file)}};
  for (const auto& region : dump->regions_) dump->total_ += region.size;
  dump->buffer_.resize(piece_max);
  dump->thread_ = std::thread{[seen = dump.get(), done = std::move(done)] {
    seen->run();
    done();
  }};
  return dump;
}

void Dump::stop() {
  cancelled_.store(true);
  if (thread_.joinable()) thread_.join();
}

std::string Dump::error() const {
  const std::lock_guard lock{mutex_};
  return error_;
}

void Dump::run() {
  // Signals are for the thread that handles them.
  ::sigset_t all;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
  ::pthread_setname_np(::pthread_self(), "dump");
  const auto ok = write_all(lay_out_dump(regions_, cpus_));
  if (ok) return;
  // Half a dump is no dump, and what fills a disk shall not stay.
  std::ignore = ::ftruncate(file_.get(), 0);
  const std::lock_guard lock{mutex_};
  error_ = ok.error().message;
}

Result<void> Dump::write_all(DumpLayout layout) {
  if (::ftruncate(file_.get(), 0) != 0 ||
      ::ftruncate(file_.get(), static_cast<off_t>(layout.file_size)) != 0) {
    return fail_errno("cannot make the dump's file " + std::to_string(layout.file_size) +
                      " bytes long");
  }
  for (std::size_t i = 0; i < layout.file_offsets.size(); ++i) {
    if (auto ok = write_region(regions_[i], layout.file_offsets[i]); !ok) return ok;
  }
  const auto read = [this](std::uint64_t address) { return word_at(address); };
  add_note(layout, choose_vmcoreinfo(notes_, cpus_, read));
  // Last, so that a file with a head is a whole dump.
  return write(layout.head.data(), layout.head.size(), 0);
}

Result<void> Dump::write_region(const RamRegion& region, std::uint64_t to) {
  const auto end = region.file_offset + region.size;
  for (auto at = region.file_offset; at < end;) {
    const auto data = next_data(region.file, at, end);
    completed_ += data.begin - at;
    const auto size = data.end - data.begin;
    if (auto ok = copy(region.file, data.begin, size, to + data.begin - region.file_offset); !ok)
      return ok;
    at = data.end;
  }
  return {};
}

// Through read(2) and not through the mapping, where looking at a page would make it.
Result<void> Dump::copy(int memory, std::uint64_t from, std::uint64_t size, std::uint64_t to) {
  while (size != 0) {
    if (cancelled_.load()) return fail("the dump was given up");
    const auto piece = std::min<std::uint64_t>(size, buffer_.size() - from % buffer_.size());
    const auto got = ::pread(memory, buffer_.data(), piece, static_cast<off_t>(from));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return fail_errno("cannot read the guest's memory");
    const auto count = static_cast<std::size_t>(got);
    if (!all_zeros(buffer_.data(), count)) {
      find_notes(memory, from, count);
      if (auto ok = write(buffer_.data(), count, to); !ok) return ok;
    }
    from += count, to += count, size -= count;
    completed_ += count;
  }
  return {};
}

// In what was read of a memory file from `from` on. A note is at the beginning of a page and may
// reach into the next one.
void Dump::find_notes(int memory, std::uint64_t from, std::size_t size) {
  const std::span<const std::byte> bytes{buffer_.data(), size};
  for (auto at = (page_size - from % page_size) % page_size; at < size; at += page_size) {
    if (notes_.size() == notes_max || !begins_vmcoreinfo(bytes.subspan(at))) continue;
    std::vector<std::byte> found(vmcoreinfo_size_max);
    const auto got = ::pread(memory, found.data(), found.size(), static_cast<off_t>(from + at));
    if (got <= 0) continue;
    found.resize(static_cast<std::size_t>(got));
    if (auto note = vmcoreinfo_of(found); !note.empty()) notes_.push_back(std::move(note));
  }
}

// Eight bytes of the guest's memory.
std::optional<std::uint64_t> Dump::word_at(std::uint64_t address) const {
  std::uint64_t word = 0;
  for (const auto& region : regions_) {
    const auto offset = address - region.guest_address;  // wraps to large for addresses before it
    if (offset >= region.size || sizeof word > region.size - offset) continue;
    const auto at = static_cast<off_t>(region.file_offset + offset);
    if (::pread(region.file, &word, sizeof word, at) == sizeof word) return word;
  }
  return std::nullopt;
}

Result<void> Dump::write(const std::byte* bytes, std::size_t size, std::uint64_t to) {
  while (size != 0) {
    const auto wrote = ::pwrite(file_.get(), bytes, size, static_cast<off_t>(to));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) {
      return fail_errno("cannot write the dump, after " + std::to_string(completed()) + " of " +
                        std::to_string(total_) + " bytes of memory");
    }
    const auto count = static_cast<std::size_t>(wrote);
    bytes += count, size -= count, to += count;
  }
  return {};
}

}  // namespace millrace::vmm
