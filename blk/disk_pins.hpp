// DiskPins: the pinned memory of the guest that a disk has now, and how its channels get at it.
//
// Control says what is to be pinned and when it must go; channels look at `current()` once a visit
// and clone it when it is ready. What is left is given back only when no channel can have it:
// after every queue has passed Channel::memory_changed(), or stopped.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "blk/device.hpp"
#include "blk/pinner.hpp"

namespace millrace::blk {

// What a channel may use now; nullptr: nothing.
using PinChoice = std::atomic<const PinnedMemory*>;

// Thread: control.
class DiskPins {
 public:
  explicit DiskPins(Pinner& pinner) : pinner_{pinner} {}
  ~DiskPins();
  DiskPins(const DiskPins&) = delete;
  DiskPins& operator=(const DiskPins&) = delete;

  // The guest's memory is this one.
  void use(const std::shared_ptr<const virtio::GuestMemory>& memory);
  // It will be another one, or none: channels let go of it.
  void leave();
  // No channel has what was left.
  void give_back();
  [[nodiscard]] PinStatus status() const;
  [[nodiscard]] const PinChoice& choice() const { return choice_; }

 private:
  Pinner& pinner_;
  PinChoice choice_{nullptr};
  std::shared_ptr<PinnedMemory> now_;
  std::vector<std::shared_ptr<PinnedMemory>> left_;
};

}  // namespace millrace::blk
