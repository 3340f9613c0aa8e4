#include "blk/disk_pins.hpp"

#include <utility>

namespace millrace::blk {

DiskPins::~DiskPins() {
  leave();
  give_back();
}

void DiskPins::use(const std::shared_ptr<const virtio::GuestMemory>& memory) {
  if (now_ != nullptr && now_->memory() == memory) return;
  leave();
  if (memory == nullptr || memory->regions().empty()) return;
  now_ = pinner_.pin(memory);
  choice_.store(now_.get(), std::memory_order_release);
}

void DiskPins::leave() {
  choice_.store(nullptr, std::memory_order_release);
  if (now_ == nullptr) return;
  now_->abandon();
  left_.push_back(std::exchange(now_, nullptr));
}

void DiskPins::give_back() {
  for (auto& memory : left_) pinner_.release(std::move(memory));
  left_.clear();
}

PinStatus DiskPins::status() const {
  PinStatus out;
  if (now_ == nullptr) {
    out.state = "idle";
    return out;
  }
  switch (now_->state()) {
    case PinnedMemory::State::waiting:
      out.state = "waiting";
      break;
    case PinnedMemory::State::ready:
      out.state = "pinned";
      out.bytes = now_->bytes();
      break;
    case PinnedMemory::State::failed:
      out.state = "failed";
      out.why = now_->why();
      break;
  }
  return out;
}

}  // namespace millrace::blk
