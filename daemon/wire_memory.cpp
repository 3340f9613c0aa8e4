#include "daemon/wire_memory.hpp"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/error.hpp"
#include "base/log.hpp"
#include "base/quiet_thread.hpp"

namespace millrace::daemon {

namespace {

constexpr std::uint64_t page = 4096;
// Of one call, so that others who map in the same domain have their turn.
constexpr std::uint64_t step = 1ull << 30;

}  // namespace

// Keeps others from taking pages away from a file behind memory that is mapped.
struct WireMemory::OnBoard {
  OnBoard(blk::PinBoard& b, std::shared_ptr<const virtio::GuestMemory> m)
      : board{b}, memory{std::move(m)} {
    board.add(*memory);
  }
  ~OnBoard() { board.remove(*memory); }
  OnBoard(const OnBoard&) = delete;
  OnBoard& operator=(const OnBoard&) = delete;

  blk::PinBoard& board;
  const std::shared_ptr<const virtio::GuestMemory> memory;
};

base::Result<std::unique_ptr<WireMemory>> WireMemory::make(Parts parts, vfio::IovaSpace space) {
  base::Fd event{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
  if (!event) return base::fail_errno("cannot make an event descriptor");
  std::unique_ptr<WireMemory> made{
      new WireMemory{std::move(parts), std::move(space), std::move(event)}};
  auto watch = made->parts_.loop.watch(made->event_.get(), EPOLLIN,
                                       [raw = made.get()](std::uint32_t) { raw->take_done(); });
  if (!watch) return base::Unexpected{watch.error()};
  made->watch_ = *std::move(watch);
  return made;
}

WireMemory::~WireMemory() {
  if (thread_.joinable()) {
    {
      const std::lock_guard lock{mutex_};
      stopping_ = true;
    }
    asked_.notify_one();
    thread_.join();
  }
  for (const Region& region : regions_) {
    // Much of it may be done: where the device's group has left the domain, all of it.
    if (region.state != State::failed) static_cast<void>(unmap(region, region.bytes));
  }
}

void WireMemory::use(const std::string& user, std::shared_ptr<const virtio::GuestMemory> memory) {
  const auto found = users_.find(user);
  if (memory == nullptr || memory->regions().empty()) {
    if (found == users_.end()) return;
    users_.erase(found);
  } else {
    auto on_board = std::make_shared<OnBoard>(parts_.board, memory);
    users_[user] = {std::move(memory), std::move(on_board)};
  }
  reconcile();
}

void WireMemory::reconcile() {
  for (Region& region : regions_) region.wanted = false;
  for (const auto& [user, used] : users_) {
    for (const auto& wanted : used.memory->regions()) {
      const auto found = std::ranges::find(regions_, wanted.mapping, &Region::mapping);
      if (found == regions_.end()) {
        add(user, wanted, used.on_board);
      } else {
        found->wanted = true;  // one that leaves comes again when it is gone
      }
    }
  }
  bool changed = false;
  for (auto each = regions_.begin(); each != regions_.end();) {
    const auto region = each++;
    if (region->wanted) continue;
    if (region->state == State::mapped) {
      region->state = State::leaving;
      changed = true;
    } else if (region->state == State::failed) {
      regions_.erase(region);
    }
  }
  if (changed) publish();
}

void WireMemory::add(const std::string& user, const virtio::Region& memory,
                     std::shared_ptr<OnBoard> on_board) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory.mapping->data());
  const auto begin = (address + page - 1) & ~(page - 1);
  const auto end = (address + memory.size) & ~(page - 1);
  if (begin >= end) return;
  const auto region = regions_.insert(regions_.end(), Region{});
  region->user = user;
  region->guest_address = memory.guest_address + (begin - address);
  region->mapping = memory.mapping;
  region->on_board = std::move(on_board);
  region->begin = memory.mapping->data() + (begin - address);
  region->bytes = end - begin;
  const auto iova = space_.take(begin, region->bytes);
  if (!iova) {
    region->state = State::failed;
    region->why = "the IOMMU has no addresses left";
    spdlog::warn("{}: what it sends is copied: {}", user, region->why);
    return;
  }
  region->iova = *iova;
  ask({region, true});
}

void WireMemory::publish() {
  std::vector<vswitch::DmaRegion> out;
  std::vector<std::list<Region>::iterator> leaving;
  for (auto each = regions_.begin(); each != regions_.end(); ++each) {
    if (each->state == State::mapped) {
      const auto begin = reinterpret_cast<std::uintptr_t>(each->begin);
      out.push_back({begin, begin + each->bytes, each->iova, each->mapping});
    } else if (each->state == State::leaving) {
      each->state = State::unmapping;
      leaving.push_back(each);
    }
  }
  parts_.publish(std::make_shared<const vswitch::DmaRegions>(std::move(out)),
                 [this, leaving = std::move(leaving), alive = std::weak_ptr{alive_}] {
                   if (alive.expired()) return;
                   for (const auto& region : leaving) ask({region, false});
                 });
}

void WireMemory::ask(Job job) {
  {
    const std::lock_guard lock{mutex_};
    jobs_.push_back(std::move(job));
  }
  asked_.notify_one();
  if (thread_.joinable()) return;
  thread_ = base::start_quiet_thread("wire memory", [this] { run(); });
}

void WireMemory::run() {
  for (;;) {
    Job job{};
    {
      std::unique_lock lock{mutex_};
      asked_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
      if (stopping_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    if (job.maps && parts_.settle) parts_.settle();
    job.result = job.maps ? map(*job.region) : unmap(*job.region, job.region->bytes);
    {
      const std::lock_guard lock{mutex_};
      done_.push_back(std::move(job));
    }
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(event_.get(), &one, sizeof(one));
  }
}

// What names a region stays as it is while the thread has it: control changes its state alone.
base::Result<void> WireMemory::map(const Region& region) {
  for (std::uint64_t done = 0; done < region.bytes; done += step) {
    const auto bytes = std::min(step, region.bytes - done);
    auto mapped = parts_.door.map(region.iova + done, region.begin + done, bytes);
    bool stopping = false;
    {
      const std::lock_guard lock{mutex_};
      stopping = stopping_;
    }
    if (mapped && !stopping) continue;
    const auto so_far = mapped ? done + bytes : done;
    static_cast<void>(unmap(region, so_far));
    return mapped ? base::Result<void>{base::fail("the uplink goes")} : mapped;
  }
  return {};
}

base::Result<void> WireMemory::unmap(const Region& region, std::uint64_t bytes) {
  base::Result<void> out;
  for (std::uint64_t done = 0; done < bytes; done += step) {
    auto each = parts_.door.unmap(region.iova + done, std::min(step, bytes - done));
    if (!each) out = std::move(each);
  }
  return out;
}

void WireMemory::take_done() {
  std::uint64_t count = 0;
  [[maybe_unused]] const auto read = ::read(event_.get(), &count, sizeof(count));
  std::deque<Job> done;
  {
    const std::lock_guard lock{mutex_};
    done.swap(done_);
  }
  for (const Job& job : done) finish(job);
  publish();
  reconcile();
}

void WireMemory::finish(const Job& job) {
  Region& region = *job.region;
  if (!job.maps) {
    if (!job.result) spdlog::error("{}: {}", region.user, job.result.error().message);
    space_.give(region.iova);
    regions_.erase(job.region);
    return;
  }
  if (job.result) {
    region.state = State::mapped;
    return;
  }
  space_.give(region.iova);
  region.state = State::failed;
  region.why = job.result.error().message;
  region.on_board.reset();
  spdlog::warn("{}: what it sends is copied: {}", region.user, region.why);
}

std::vector<WireMemory::RegionStatus> WireMemory::status() const {
  std::vector<RegionStatus> out;
  for (const Region& region : regions_) {
    const char* state = "leaving";
    if (region.state == State::mapping) state = "mapping";
    if (region.state == State::mapped) state = "mapped";
    if (region.state == State::failed) state = "failed";
    out.push_back(
        {region.user, region.guest_address, region.bytes, region.iova, state, region.why});
  }
  return out;
}

}  // namespace millrace::daemon
