#include "blk/file_backend.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace millrace::blk {

base::Result<std::unique_ptr<Backend>> FileBackend::make(const Config& config, unsigned reactors,
                                                         UringPool& rings, bool refuse_direct) {
  auto image = open_image(config, refuse_direct);
  if (!image) return base::Unexpected{image.error()};
  std::unique_ptr<FileBackend> made{new FileBackend};
  made->image_ = std::move(*image);
  made->path_ = config.path;
  made->readonly_ = config.readonly;
  for (unsigned i = 0; i < reactors; ++i) {
    const auto ring = rings.ring(i);
    if (!ring) return base::Unexpected{ring.error()};
    made->rings_.push_back(*ring);
  }
  made->io_ = "io_uring: " + rings.describe();
  return std::unique_ptr<Backend>{std::move(made)};
}

BackendStatus FileBackend::status() const {
  BackendStatus out;
  out.kind = image_.block_device ? "block device" : "file";
  out.path = path_;
  out.bytes = image_.geometry.bytes;
  out.readonly = readonly_;
  out.direct = image_.direct.valid();
  out.io = io_;
  return out;
}

UringTarget FileBackend::target() const {
  return UringTarget{image_.buffered.get(), image_.direct.get(), image_.memory_alignment,
                     image_.offset_alignment};
}

std::unique_ptr<Channel> FileBackend::make_channel(unsigned, QueueStatistics& statistics) {
  UringTarget way = target();
  std::unique_ptr<BouncePool> bounce;
  if (way.direct >= 0) {
    auto made = BouncePool::make();
    if (made) {
      bounce = std::move(*made);
    } else {
      way.direct = -1;  // no memory for bouncing: all transfers of this queue are buffered
    }
  }
  return std::make_unique<UringChannel>(way, rings_, std::move(bounce), statistics);
}

base::Result<std::uint64_t> FileBackend::resize(std::uint64_t bytes) {
  const auto now = size_of(image_.buffered, image_.block_device, path_);
  if (!now) return now;
  if (bytes == 0) bytes = *now;
  if (bytes % 512 != 0) return base::fail("a disk's size is a multiple of 512 bytes");
  if (bytes < image_.geometry.bytes) {
    return base::fail("a disk cannot shrink: it has " + std::to_string(image_.geometry.bytes) +
                      " bytes");
  }
  if (bytes > *now) {
    if (image_.block_device || readonly_) {
      return base::fail(path_ + " has " + std::to_string(*now) + " bytes and is not ours to grow");
    }
    if (::ftruncate(image_.buffered.get(), static_cast<off_t>(bytes)) != 0) {
      return base::fail("cannot grow " + path_ + ": " + std::strerror(errno));
    }
  }
  image_.geometry.bytes = bytes;
  return bytes;
}

}  // namespace millrace::blk
