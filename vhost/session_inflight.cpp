// Session: the region that keeps what is in flight over a crash of ours ("Inflight I/O tracking").
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "base/error.hpp"
#include "vhost/session.hpp"
#include "virtio/features.hpp"
#include "virtio/kept_area.hpp"
#include "virtio/limits.hpp"

namespace millrace::vhost {

namespace {

base::Result<void> check_shape(const wire::Inflight& asked, std::size_t queues) {
  if (asked.queues == 0 || asked.queues > queues) {
    return base::fail("a region for " + std::to_string(asked.queues) +
                      " queues, but this device has " + std::to_string(queues));
  }
  if (asked.queue_size < virtio::limits::queue_size_min ||
      asked.queue_size > virtio::limits::queue_size_max) {
    return base::fail("a region for rings of " + std::to_string(asked.queue_size) + " entries");
  }
  return {};
}

// Zeroed, and sealed so that no truncation can take it away under us.
base::Result<base::Fd> make_memory(std::uint64_t size) {
  base::Fd fd{::memfd_create("millrace-inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  if (!fd.valid()) return base::fail_errno("cannot make a memfd");
  if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) {
    return base::fail_errno("cannot size a memfd");
  }
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return base::fail_errno("cannot seal a memfd");
  }
  return fd;
}

// With the tail padding of the C structure or without.
wire::Inflight inflight_of(const Message& message) {
  wire::Inflight asked{};
  std::memcpy(&asked, message.payload.data(), std::min(message.payload.size(), sizeof asked));
  return asked;
}

}  // namespace

Session::Handled Session::get_inflight_fd(Message& message) {
  auto asked = inflight_of(message);
  if (const auto ok = check_shape(asked, rings_.size()); !ok) return base::Unexpected{ok.error()};
  const bool packed = (features_ & virtio::feature::ring_packed) != 0;
  const auto room = virtio::InflightRegion::room_for(asked.queue_size);
  asked.size = virtio::InflightRegion::size_for(asked.queues, room, packed);
  if (asked.size == 0) return base::fail("no region has that shape");
  if (device_.keeps_state()) asked.size += virtio::KeptArea::size;  // behind the queues' parts
  asked.offset = 0;
  const auto made = make_memory(asked.size);
  if (!made) return base::Unexpected{made.error()};
  reply(bytes_of(asked).first(message.payload.size()), made->get());
  return Progress::replied;
}

// For the rings that start from now on.
Session::Handled Session::set_inflight_fd(Message& message) {
  const auto asked = inflight_of(message);
  if (const auto ok = check_shape(asked, rings_.size()); !ok) return base::Unexpected{ok.error()};
  const bool packed = (features_ & virtio::feature::ring_packed) != 0;
  const auto needed = virtio::InflightRegion::size_for(asked.queues, asked.queue_size, packed);
  if (needed == 0 || asked.size < needed) {
    return base::fail("a region of " + std::to_string(asked.size) + " bytes where " +
                      std::to_string(needed) + " are needed");
  }
  // One that we made has the room; another's is laid out for what was asked.
  const auto room = virtio::InflightRegion::room_for(asked.queue_size);
  const auto plain = virtio::InflightRegion::size_for(asked.queues, room, packed);
  const bool keeps = device_.keeps_state() && asked.size == plain + virtio::KeptArea::size;
  const bool ours = asked.size == plain || keeps;
  auto mapping = base::Mapping::map(message.fds[0], asked.offset, asked.size);
  if (!mapping) return base::Unexpected{mapping.error()};
  auto region = virtio::InflightRegion::attach(*mapping, 0, asked.queues,
                                               ours ? room : asked.queue_size, packed);
  if (!region) return base::Unexpected{region.error()};
  inflight_ = std::move(region).value();
  device_.set_kept(keeps ? std::make_shared<virtio::KeptArea>(*std::move(mapping), plain)
                         : nullptr);
  return Progress::done;
}

}  // namespace millrace::vhost
