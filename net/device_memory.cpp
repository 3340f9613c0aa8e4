// NetDevice: its guest's memory, for whoever gives it to hardware, the lending of its frames, and
// the device that fills its buffers.
#include <utility>

#include "net/net_device.hpp"

namespace millrace::net {

void NetDevice::lend(bool lends) {
  if (std::exchange(lends_, lends) == lends) return;
  for (Sender& sender : senders_) {
    if (sender.worker != nullptr) give_settings(sender, [] {});
  }
}

void NetDevice::on_memory(MemoryHook hook) {
  memory_hook_ = std::move(hook);
  if (memory_hook_ && memory_ != nullptr) memory_hook_(memory_);
}

void NetDevice::start_queue(virtio::QueueStart start, Done done) {
  use_memory(start.memory);
  Device::start_queue(std::move(start), std::move(done));
}

void NetDevice::set_memory(std::shared_ptr<const virtio::GuestMemory> memory, Done done) {
  untie(0, [this, memory = std::move(memory), done = std::move(done)]() mutable {
    use_memory(memory);
    Device::set_memory(std::move(memory), [this, done = std::move(done)](base::Result<void> set) {
      tie(0);
      done(std::move(set));
    });
  });
}

void NetDevice::untie(unsigned pair, std::function<void()> next) {
  if (pair != 0 || !direct_.untie) return next();
  direct_.untie(std::move(next));
}

void NetDevice::tie(unsigned pair) {
  const Pair& its = pairs_.at(pair);
  if (pair == 0 && direct_.tie && its.endpoint != nullptr && its.enabled) {
    direct_.tie(*its.endpoint);
  }
}

void NetDevice::tie_again() {
  untie(0, [this] { tie(0); });
}

void NetDevice::set_connected(bool connected) {
  Device::set_connected(connected);
  if (!connected) use_memory(nullptr);
}

void NetDevice::use_memory(const std::shared_ptr<const virtio::GuestMemory>& memory) {
  if (memory_ == memory) return;
  memory_ = memory;
  if (memory_hook_) memory_hook_(memory_);
}

}  // namespace millrace::net
