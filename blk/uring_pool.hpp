// UringPool: one io_uring for each reactor, made on first need, with the set-up flags this kernel
// has. Thread: control.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/reactor_pool.hpp"
#include "base/result.hpp"

namespace millrace::blk {

class Pinner;
class Uring;
struct UringOptions;

class UringPool {
 public:
  // Probes the kernel once. Fails in one line where io_uring is forbidden or too old.
  static base::Result<std::unique_ptr<UringPool>> make(base::ReactorPool& pool);
  // With less than the kernel has: how the fallbacks are tested. See uring.hpp.
  static base::Result<std::unique_ptr<UringPool>> make(base::ReactorPool& pool,
                                                       const UringOptions& wanted);
  virtual ~UringPool() = default;
  // The reactor's ring; its poller is added to the reactor on first use.
  virtual base::Result<Uring*> ring(unsigned reactor) = 0;
  // The same with iopoll.
  virtual base::Result<Uring*> polled_ring(unsigned reactor) = 0;
  // Whether rings can have the buffers that the pinner registered.
  [[nodiscard]] virtual bool can_pin() const = 0;
  [[nodiscard]] virtual Pinner& pinner() = 0;
  // What the probe found, in words for status.
  [[nodiscard]] virtual std::vector<std::string> names() const = 0;
  // What the probe found, for status: "DEFER_TASKRUN, SINGLE_ISSUER, registered files".
  [[nodiscard]] virtual std::string describe() const = 0;
  // Takes all rings off their reactors. Nothing may be in flight.
  virtual void close(std::function<void()> done) = 0;
};

}  // namespace millrace::blk
