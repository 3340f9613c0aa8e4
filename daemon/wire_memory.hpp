// WireMemory: the memory of the guests behind one uplink, in the reach of its device, so that what
// they send goes out from where it lies.
//
// Whoever uses it says what memory he has now. Memory that is new is mapped by a thread of its own,
// since that locks it all, and only then published to the uplink's queues; until then payloads are
// copied. Memory that goes is taken from the queues first, and unmapped when the device is done
// with what it was lent of it. It stays alive until then, whatever its owner does. Thread: control,
// but for the mapping.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/event_loop.hpp"
#include "base/fd.hpp"
#include "blk/pin_board.hpp"
#include "daemon/dma_door.hpp"
#include "switch/dma_regions.hpp"
#include "vfio/iova_space.hpp"
#include "virtio/memory.hpp"

namespace millrace::daemon {

class WireMemory {
 public:
  struct Parts {
    base::EventLoop& loop;
    DmaDoor& door;
    blk::PinBoard& board;          // where pages that must stay where they are, are
    std::function<void()> settle;  // see blk::Pinner::before_pinning()
    // See vswitch::Uplink::set_regions().
    std::function<void(std::shared_ptr<const vswitch::DmaRegions>, std::function<void()>)> publish;
  };
  // All of `parts` outlives it.
  static base::Result<std::unique_ptr<WireMemory>> make(Parts parts, vfio::IovaSpace space);
  // The device was stopped: nothing is waited for but the mapping under work.
  ~WireMemory();
  WireMemory(const WireMemory&) = delete;
  WireMemory& operator=(const WireMemory&) = delete;

  // `memory` is what `user` has from now on; null: nothing.
  void use(const std::string& user, std::shared_ptr<const virtio::GuestMemory> memory);

  struct RegionStatus {
    std::string user;  // one of them
    std::uint64_t guest_address, bytes, iova;
    const char* state;  // "mapping", "mapped", "leaving", "failed"
    std::string why;    // it failed
  };
  [[nodiscard]] std::vector<RegionStatus> status() const;

 private:
  enum class State { mapping, mapped, leaving, unmapping, failed };
  struct OnBoard;
  struct Region {
    std::string user;
    std::uint64_t guest_address = 0;
    std::shared_ptr<const base::Mapping> mapping;
    std::shared_ptr<OnBoard> on_board;
    std::byte* begin = nullptr;  // whole pages of it
    std::uint64_t bytes = 0, iova = 0;
    State state = State::mapping;
    bool wanted = true;
    std::string why;
  };
  struct Job {
    std::list<Region>::iterator region;
    bool maps;  // else it unmaps
    base::Result<void> result{};
  };

  WireMemory(Parts parts, vfio::IovaSpace space, base::Fd event)
      : parts_{std::move(parts)}, space_{std::move(space)}, event_{std::move(event)} {}
  void reconcile();
  void add(const std::string& user, const virtio::Region& region, std::shared_ptr<OnBoard> board);
  void publish();
  void ask(Job job);
  void take_done();
  void finish(const Job& job);
  void run();
  base::Result<void> map(const Region& region);
  base::Result<void> unmap(const Region& region, std::uint64_t bytes);

  Parts parts_;
  vfio::IovaSpace space_;
  base::Fd event_;
  base::EventLoop::Watch watch_;
  struct Used {
    std::shared_ptr<const virtio::GuestMemory> memory;
    std::shared_ptr<OnBoard> on_board;
  };
  std::map<std::string, Used> users_;
  std::list<Region> regions_;
  std::shared_ptr<int> alive_ = std::make_shared<int>(0);  // answers come later, or not at all

  std::mutex mutex_;  // of what follows
  std::condition_variable asked_;
  std::deque<Job> jobs_, done_;
  bool stopping_ = false;
  std::thread thread_;  // from the first job on
};

}  // namespace millrace::daemon
