// Handover: what else has to happen on two reactors when a poller goes from one to the other, so
// that nothing on its way to or from it is lost or overtaken. Control makes it, both reactors hold
// it until the poller has arrived, control drops it. Nothing here may allocate, lock, block or
// throw.
#pragma once

namespace millrace::base {

class Handover {
 public:
  virtual ~Handover() = default;
  // The old owner asks once a round, before the poller is told to take nothing more.
  [[nodiscard]] virtual bool may_pause() noexcept { return true; }
  // The old owner asks once a round, when nothing of the poller's own is in flight.
  [[nodiscard]] virtual bool may_leave() noexcept { return true; }
  // The poller is the new owner's.
  virtual void arrived() noexcept {}
};

}  // namespace millrace::base
