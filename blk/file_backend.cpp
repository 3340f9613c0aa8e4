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
  made->ring_names_ = rings.names();
  if (auto ok = made->choose_polling(config, reactors, rings); !ok) {
    return base::Unexpected{ok.error()};
  }
  if (auto ok = made->choose_pinning(config, rings); !ok) return base::Unexpected{ok.error()};
  return std::unique_ptr<Backend>{std::move(made)};
}

// Where the device has queues that are polled, somebody set them up to be polled.
base::Result<void> FileBackend::choose_polling(const Config& config, unsigned reactors,
                                               UringPool& rings) {
  if (config.iopoll == PollMode::off) return {};
  std::string why;
  if (!image_.direct.valid()) why = "is not read and written directly (direct = \"on\" says why)";
  if (why.empty() && !image_.polled_queues) {
    why = "lies on a device without queues to poll (for NVMe: the module parameter poll_queues)";
  }
  if (!why.empty()) {
    if (config.iopoll == PollMode::automatic) return {};
    return base::fail(path_ + " " + why + ": use iopoll = \"auto\"");
  }
  for (unsigned i = 0; i < reactors; ++i) {
    const auto ring = rings.polled_ring(i);
    if (!ring) return base::Unexpected{ring.error()};
    polled_.push_back(*ring);
  }
  ring_names_.emplace_back("iopoll");
  return {};
}

base::Result<void> FileBackend::choose_pinning(const Config& config, UringPool& rings) {
  if (config.pin == PinMode::off) return {};
  if (rings.can_pin()) {
    pins_ = std::make_unique<DiskPins>(rings.pinner());
    return {};
  }
  pins_off_ = "this kernel does not share registered buffers among rings: Linux 6.13 or newer does";
  if (config.pin == PinMode::automatic) return {};
  return base::fail("pin = \"on\": " + pins_off_ + "; use pin = \"auto\"");
}

void FileBackend::use_memory(const std::shared_ptr<const virtio::GuestMemory>& memory) {
  if (pins_ != nullptr) pins_->use(memory);
}

void FileBackend::leave_memory() {
  if (pins_ != nullptr) pins_->leave();
}

void FileBackend::give_memory_back() {
  if (pins_ != nullptr) pins_->give_back();
}

BackendStatus FileBackend::status() const {
  BackendStatus out;
  out.kind = image_.block_device ? "block device" : "file";
  out.path = path_;
  out.bytes = image_.geometry.bytes;
  out.readonly = readonly_;
  out.direct = image_.direct.valid();
  out.io = io_;
  out.ring = ring_names_;
  if (pins_ != nullptr) out.pin = pins_->status();
  out.pin.why = pins_off_.empty() ? out.pin.why : pins_off_;
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
  const UringWays ways{rings_, polled_, pins_ == nullptr ? nullptr : &pins_->choice()};
  return std::make_unique<UringChannel>(way, ways, std::move(bounce), statistics);
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
