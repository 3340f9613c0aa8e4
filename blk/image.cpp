#include "blk/image.hpp"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>

namespace millrace::blk {

namespace {

base::Unexpected<base::Error> cannot(const std::string& what, const std::string& path, int why) {
  return base::fail("cannot " + what + " " + path + ": " + std::strerror(why));
}

struct flock lock_for(const Config& config) {
  struct flock out {};
  out.l_type = config.readonly ? F_RDLCK : F_WRLCK;
  out.l_whence = SEEK_SET;
  return out;
}

// O_NONBLOCK: a pipe must not hold the daemon up.
base::Fd open_buffered(const Config& config) {
  const int access = config.readonly ? O_RDONLY : O_RDWR;
  return base::Fd{::open(config.path.c_str(), access | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)};
}

base::Result<void> lock(const base::Fd& fd, const Config& config) {
  const struct flock wanted = lock_for(config);
  if (::fcntl(fd.get(), F_OFD_SETLK, &wanted) == 0) return {};
  const int why = errno;
  if (why != EAGAIN && why != EACCES) return cannot("lock", config.path, why);
  struct flock holder = wanted;
  std::string who = "another process or disk";
  if (::fcntl(fd.get(), F_OFD_GETLK, &holder) == 0 && holder.l_type != F_UNLCK &&
      holder.l_pid > 0) {
    who = "process " + std::to_string(holder.l_pid);
  }
  return base::fail(config.path + " is in use by " + who + ": a writable image has one user" +
                    (config.readonly ? "; it is being written" : ""));
}

// A number from the block layer's directory of a device or of the disk that a partition lies on; 0
// if there is none.
std::uint64_t queue_limit(dev_t device, const char* name) {
  const std::string at =
      "/sys/dev/block/" + std::to_string(major(device)) + ":" + std::to_string(minor(device));
  for (const char* const up : {"/queue/", "/../queue/"}) {
    std::ifstream file{at + up + name};
    std::uint64_t value = 0;
    if (file >> value) return value;
  }
  return 0;
}

void measure_device(const Image& image, dev_t device, Geometry& out) {
  const int fd = image.buffered.get();
  int logical = 512, offset = 0;
  unsigned physical = 512, io_min = 0, io_opt = 0;
  if (::ioctl(fd, BLKSSZGET, &logical) != 0 || logical < 512) logical = 512;
  if (::ioctl(fd, BLKPBSZGET, &physical) != 0) physical = 512;
  if (::ioctl(fd, BLKIOMIN, &io_min) != 0) io_min = 0;
  if (::ioctl(fd, BLKIOOPT, &io_opt) != 0) io_opt = 0;
  if (::ioctl(fd, BLKALIGNOFF, &offset) != 0 || offset < 0) offset = 0;
  out.logical_block = static_cast<std::uint32_t>(logical);
  out.physical_block = std::max(physical, out.logical_block);
  out.io_min = io_min;
  out.io_opt = io_opt;
  out.alignment_offset = static_cast<std::uint32_t>(offset);
  out.discard_max = queue_limit(device, "discard_max_bytes");
  out.discard_granularity =
      std::max<std::uint64_t>(queue_limit(device, "discard_granularity"), 512);
  out.zero_max = queue_limit(device, "write_zeroes_max_bytes");
  out.can_discard = out.discard_max > 0;
  out.can_unmap = out.can_discard && out.zero_max > 0;
  if (out.zero_max == 0) out.zero_max = 1ull << 30;  // by plain writes
}

void measure_file(const Image& image, const struct stat& stat, bool readonly, Geometry& out) {
  const auto block =
      static_cast<std::uint32_t>(std::clamp<long>(static_cast<long>(stat.st_blksize), 512, 65536));
  out.logical_block = 512;
  out.physical_block = std::max<std::uint32_t>(image.direct.valid() ? image.offset_alignment : 512,
                                               std::min<std::uint32_t>(block, 4096));
  out.io_min = out.physical_block;
  out.discard_granularity = block;
  out.discard_max = out.zero_max = 1ull << 31;
  // Past the end of the file there is nothing to punch, but the file system says whether it can.
  const auto end = static_cast<off_t>(out.bytes);
  out.can_discard = out.can_unmap =
      !readonly && ::fallocate(image.buffered.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                               end, static_cast<off_t>(block)) == 0;
}

// Reads a little with O_DIRECT: the kernels and file systems that do not say what they need.
std::uint32_t probe_alignment(int fd) {
  const std::unique_ptr<void, decltype(&std::free)> memory{std::aligned_alloc(65536, 65536),
                                                           &std::free};
  if (memory == nullptr) return 0;
  for (std::uint32_t size = 512; size <= 65536; size *= 2) {
    if (::pread(fd, memory.get(), size, size) >= 0) return size;
  }
  return 0;
}

// Fills in the alignments of image.direct, or closes it where nothing works.
void measure_direct(Image& image) {
#ifdef STATX_DIOALIGN
  struct statx out {};
  if (::statx(image.direct.get(), "", AT_EMPTY_PATH, STATX_DIOALIGN, &out) == 0 &&
      (out.stx_mask & STATX_DIOALIGN) != 0) {
    if (out.stx_dio_mem_align == 0 || out.stx_dio_offset_align == 0) return image.direct.reset();
    image.memory_alignment = out.stx_dio_mem_align;
    image.offset_alignment = out.stx_dio_offset_align;
    return;
  }
#endif
  int logical = 0;
  if (image.block_device && ::ioctl(image.direct.get(), BLKSSZGET, &logical) == 0 && logical > 0) {
    image.memory_alignment = image.offset_alignment = static_cast<std::uint32_t>(logical);
    return;
  }
  const std::uint32_t works = probe_alignment(image.direct.get());
  if (works == 0) return image.direct.reset();
  image.memory_alignment = image.offset_alignment = works;
}

void open_direct(Image& image, int access, bool refuse) {
  if (refuse) return;
  // The very file that is locked, whatever the path names by now.
  const std::string same = "/proc/self/fd/" + std::to_string(image.buffered.get());
  image.direct = base::Fd{::open(same.c_str(), access | O_DIRECT | O_CLOEXEC)};
  if (image.direct.valid()) measure_direct(image);
}

}  // namespace

base::Result<std::uint64_t> size_of(const base::Fd& fd, bool block_device,
                                    const std::string& path) {
  std::uint64_t bytes = 0;
  if (block_device) {
    if (::ioctl(fd.get(), BLKGETSIZE64, &bytes) != 0) return cannot("measure", path, errno);
  } else {
    struct stat stat {};
    if (::fstat(fd.get(), &stat) != 0) return cannot("measure", path, errno);
    bytes = static_cast<std::uint64_t>(stat.st_size);
  }
  if (bytes == 0) return base::fail(path + " is empty");
  if (bytes % 512 != 0) {
    return base::fail(path + " has " + std::to_string(bytes) +
                      " bytes, which is not a multiple of 512");
  }
  return bytes;
}

bool image_held(const Config& config) {
  if (config.backend != BackendKind::file) return false;
  const base::Fd fd = open_buffered(config);
  struct flock holder = lock_for(config);
  return fd.valid() && ::fcntl(fd.get(), F_OFD_GETLK, &holder) == 0 && holder.l_type != F_UNLCK &&
         holder.l_pid <= 0;
}

base::Result<Image> open_image(const Config& config, bool refuse_direct) {
  Image image;
  const int access = config.readonly ? O_RDONLY : O_RDWR;
  image.buffered = open_buffered(config);
  if (!image.buffered.valid()) return cannot("open disk image", config.path, errno);
  struct stat stat {};
  if (::fstat(image.buffered.get(), &stat) != 0) return cannot("measure", config.path, errno);
  image.block_device = S_ISBLK(stat.st_mode);
  if (!image.block_device && !S_ISREG(stat.st_mode)) {
    return base::fail(config.path + " is neither a file nor a block device");
  }
  if (const auto locked = lock(image.buffered, config); !locked) {
    return base::Unexpected{locked.error()};
  }
  const auto bytes = size_of(image.buffered, image.block_device, config.path);
  if (!bytes) return base::Unexpected{bytes.error()};
  image.geometry.bytes = *bytes;
  if (config.direct != DirectMode::off) open_direct(image, access, refuse_direct);
  if (config.direct == DirectMode::on && !image.direct.valid()) {
    return base::fail(config.path + " cannot be opened with O_DIRECT: use direct = \"auto\"");
  }
  // A file's own file system may be on several devices, or none; then there is no such number.
  image.polled_queues =
      queue_limit(image.block_device ? stat.st_rdev : stat.st_dev, "io_poll") == 1;
  if (image.block_device) {
    measure_device(image, stat.st_rdev, image.geometry);
  } else {
    measure_file(image, stat, config.readonly, image.geometry);
  }
  return image;
}

}  // namespace millrace::blk
