// Image: a raw file or block device, opened, locked and measured. Thread: control.
#pragma once

#include <cstdint>
#include <string>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "blk/backend.hpp"
#include "blk/config.hpp"

namespace millrace::blk {

struct Image {
  base::Fd buffered;  // holds the lock
  base::Fd direct;    // invalid: O_DIRECT is off, or refused here
  bool block_device = false;
  bool polled_queues = false;  // the device has queues whose completions are polled for
  std::uint32_t memory_alignment = 512, offset_alignment = 512;  // what `direct` asks for
  Geometry geometry;
};

// Opens config.path. A writable image gets a write lock (F_OFD_SETLK on the whole file), a
// read-only one a read lock: a second writer, in this process or another, is refused, and so is
// QEMU. refuse_direct: as a file system without O_DIRECT does it. For tests.
base::Result<Image> open_image(const Config& config, bool refuse_direct = false);

// Whether an open file (not a process) holds a lock that keeps config.path from being opened. The
// lock of a daemon that was killed is one: it stays until the kernel has ended the transfers that
// were in flight, which must not overtake those of a successor. Never true for other backends.
[[nodiscard]] bool image_held(const Config& config);

// The size of the file or device now; a multiple of 512, above 0.
base::Result<std::uint64_t> size_of(const base::Fd& fd, bool block_device, const std::string& path);

}  // namespace millrace::blk
