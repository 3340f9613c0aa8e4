// DirectPool: the mbufs of a device's receive ring whose bytes may lie in a guest's memory: each
// has its place when the driver asks for it, and memory of its own where nobody says another.
//
// A DPDK mempool with operations of our own and no caches, so that the driver's ring has the mbufs
// in the order in which they were asked for. Drivers that ask for one at a time when a frame came
// are those that it is for. Threads: made and destroyed by control; between, one at a time: the
// queue's reactor, or whoever stops and starts the device meanwhile.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.hpp"

struct rte_mbuf;
struct rte_mempool;

namespace millrace::vswitch {

class DirectPool {
 public:
  // Says where the frame of an mbuf goes.
  class Source {
   public:
    // False: there is no mbuf for the driver now.
    [[nodiscard]] virtual bool place(rte_mbuf& mbuf) noexcept = 0;
    // The one placed last is not used.
    virtual void unplace() noexcept = 0;

   protected:
    ~Source() = default;
  };

  // Control, the EAL running. Fails with one line.
  static base::Result<std::unique_ptr<DirectPool>> make(const std::string& name, unsigned mbufs);
  ~DirectPool();  // nobody uses those that are out any more
  DirectPool(const DirectPool&) = delete;
  DirectPool& operator=(const DirectPool&) = delete;

  [[nodiscard]] rte_mempool* pool() const noexcept { return pool_; }
  // Null: all mbufs have memory of their own.
  void use(Source* source) noexcept { source_ = source; }
  // How many somebody has.
  [[nodiscard]] std::size_t out() const noexcept { return size_ - free_.size(); }

  // A frame's first byte goes to `place`, which the device reaches as `iova`.
  static void put_at(rte_mbuf& mbuf, std::byte* place, std::uint64_t iova) noexcept;
  static void put_at_home(rte_mbuf& mbuf) noexcept;
  [[nodiscard]] static bool is_at_home(const rte_mbuf& mbuf) noexcept;

 private:
  struct Operations;
  DirectPool() = default;
  [[nodiscard]] int get(void** out, unsigned count) noexcept;

  rte_mempool* pool_ = nullptr;
  Source* source_ = nullptr;
  std::vector<rte_mbuf*> free_;  // its memory is reserved
  std::size_t size_ = 0;
};

}  // namespace millrace::vswitch
