// Session: the memory table and the dirty log.
#include <span>
#include <vector>

#include "vhost/session.hpp"
#include "virtio/features.hpp"
#include "virtio/limits.hpp"

namespace millrace::vhost {

Session::Handled Session::set_mem_table(Message& message) {
  const auto header = message.as<wire::MemoryHeader>();
  if (header.count > wire::message_fds_max ||
      message.payload.size() !=
          sizeof header + std::size_t{header.count} * sizeof(wire::MemoryRegion)) {
    return base::fail("its size does not fit its " + std::to_string(header.count) + " regions");
  }
  if (message.fds.size() != header.count) {
    return base::fail(std::to_string(message.fds.size()) + " descriptors for " +
                      std::to_string(header.count) + " regions");
  }
  std::vector<wire::MemoryRegion> regions(header.count);
  if (!regions.empty()) {
    std::memcpy(regions.data(), message.payload.data() + sizeof header,
                regions.size() * sizeof regions[0]);
  }
  auto before = memory_;
  if (const auto ok = memory_.replace(regions, message.fds); !ok) {
    return base::Unexpected{ok.error()};
  }
  return memory_changed(std::move(before));
}

Session::Handled Session::get_max_mem_slots(Message&) {
  reply_u64(virtio::limits::memory_slots_max);
  return Progress::replied;
}

Session::Handled Session::add_mem_reg(Message& message) {
  const auto region = message.as<wire::SingleRegion>().region;
  auto before = memory_;
  if (const auto ok = memory_.add(region, message.fds[0]); !ok) return base::Unexpected{ok.error()};
  return memory_changed(std::move(before));
}

Session::Handled Session::rem_mem_reg(Message& message) {
  const auto region = message.as<wire::SingleRegion>().region;
  auto before = memory_;
  if (const auto ok = memory_.remove(region); !ok) return base::Unexpected{ok.error()};
  return memory_changed(std::move(before));
}

// The acknowledgement tells the front-end that nobody uses what it took away, so it waits for that.
Session::Handled Session::memory_changed(MemoryTable before) {
  if (active_log() != nullptr && !log_->covers(memory_.snapshot()->guest_end())) {
    memory_ = std::move(before);
    return base::fail("the dirty log is too small for it");
  }
  if (!any_started()) {
    start_ready_rings();
    return Progress::pending;
  }
  waiting_ = true;
  const auto old = std::make_shared<MemoryTable>(std::move(before));
  device_.set_memory(memory_.snapshot(), guarded([this, old](base::Result<void> result) {
                       old->clear();  // before the acknowledgement leaves
                       proceed([&] {
                         if (!result) return finish(result);
                         start_ready_rings();
                       });
                     }));
  return Progress::pending;
}

std::shared_ptr<virtio::DirtyLog> Session::active_log() const {
  return (features_ & virtio::feature::log_all) != 0 ? log_ : nullptr;
}

Session::Handled Session::set_log_base(Message& message) {
  const auto log = message.as<wire::Log>();
  auto mapping = base::Mapping::map(message.fds[0], log.offset, log.size);
  if (!mapping) return base::Unexpected{mapping.error()};
  auto made = std::make_shared<virtio::DirtyLog>(std::move(mapping).value());
  if (memory_.snapshot() != nullptr && !made->covers(memory_.snapshot()->guest_end())) {
    return base::fail("a log of " + std::to_string(log.size) +
                      " bytes is too small for the memory");
  }
  log_ = std::move(made);
  if (active_log() == nullptr || !any_started()) return Progress::done;
  device_.set_log(active_log(), finish_when_done());
  return Progress::pending;
}

// An eventfd that we may signal when the log changed. Front-ends look at the log when they need it,
// so it is taken and not used.
Session::Handled Session::set_log_fd(Message& message) {
  if (base::kind_of(message.fds[0]) != base::FdKind::eventfd) {
    return base::fail("its descriptor is not an eventfd");
  }
  return Progress::done;
}

}  // namespace millrace::vhost
