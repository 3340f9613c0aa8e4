// BlkLoad: requests to one vhost-user disk, or to many in turn, as a driver that keeps a number of
// them in flight.
//
// One thread, one queue of each device. Buffers are the guest's own and never touched by the load,
// except where it verifies.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "bench/load.hpp"
#include "bench/socket_guest.hpp"

namespace millrace::bench {

struct BlkLoadConfig {
  std::string socket;
  std::vector<std::string> more;  // other disks' sockets
  unsigned depth = 128;           // requests in flight, of each disk
  // Microseconds from a request's end to the next one: a device that sleeps must wake up.
  double gap_us = 0;
  std::uint32_t block = 4096;  // bytes of a request, a multiple of 512
  unsigned write_percent = 0;  // of the requests, the others read
  bool sequential = false;     // else at random places, multiples of `block`
  bool listen = false;         // the back-end connects to us
  // As a stock Linux driver behind QEMU: event index, each request one descriptor that names a
  // table, and a region for what is in flight, each where the back-end has it.
  bool stock = false;
  bool packed = false;     // ring format to ask for; split is what every back-end has
  std::uint64_t span = 0;  // bytes of the disk to use from its start; 0: all
};

class BlkLoad {
 public:
  // Connects and starts the queue. Fails in one line: nobody there, no such ring format, a disk
  // smaller than a request, a read-only one that shall be written.
  static base::Result<std::unique_ptr<BlkLoad>> make(const BlkLoadConfig& config);
  virtual ~BlkLoad() = default;
  BlkLoad(const BlkLoad&) = delete;
  BlkLoad& operator=(const BlkLoad&) = delete;

  // Runs for a while. Fails where a request failed or the device stood still.
  virtual base::Result<LoadResult> run(const LoadTime& time) = 0;
  // Writes known contents to the span, reads all of it back in another order with the same depth,
  // and compares. Answers how many blocks were read. DESTROYS what is there.
  virtual base::Result<std::uint64_t> verify() = 0;
  // The same where there is nothing to write: every block has to read as zeros.
  virtual base::Result<std::uint64_t> verify_zeros() = 0;
  [[nodiscard]] virtual std::uint64_t capacity() const = 0;  // bytes
  [[nodiscard]] virtual std::uint64_t features() const = 0;  // negotiated

 protected:
  BlkLoad() = default;
};

}  // namespace millrace::bench
