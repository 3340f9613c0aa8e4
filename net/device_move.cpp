// NetDevice: a queue goes from one reactor to another.
#include <utility>

#include "net/net_device.hpp"

namespace millrace::net {

void NetDevice::worker_moving(virtio::QueueWorker& worker, unsigned from, unsigned to,
                              std::function<void(std::shared_ptr<base::Handover>)> go) {
  const unsigned index = worker.queue().index();
  switch (roles_.at(index)) {
    case Role::receive:
      // When the switch has done what it is at with this pair.
      return update_pair(index / 2,
                         [this, index, to, go = std::move(go)] { move_pair(index / 2, to, go); });
    case Role::transmit:
      senders_.at(index / 2).moving = true;
      return go(fabric_.move_sender(from));
    case Role::control:  // its doorbell comes back as it does when the queue stops
    case Role::none:
      return go(nullptr);
  }
}

void NetDevice::move_pair(unsigned index, unsigned to,
                          const std::function<void(std::shared_ptr<base::Handover>)>& go) {
  Pair& pair = pairs_.at(index);
  CHECK(!pair.changing);
  pair.changing = pair.moving = true;
  if (!pair.registered) return go(nullptr);
  fabric_.move_endpoint(port_, index, to, go);
}

void NetDevice::worker_moved(virtio::QueueWorker& worker, unsigned reactor,
                             std::function<void()> next) {
  const unsigned index = worker.queue().index();
  if (roles_.at(index) == Role::receive) return pair_moved(index / 2, reactor, std::move(next));
  if (roles_[index] == Role::control) {
    ring_doorbell(static_cast<ControlQueue&>(worker), reactor, false);
    return next();
  }
  Sender& sender = senders_.at(index / 2);
  sender.reactor = reactor;
  sender.moving = false;
  for (auto& unset : std::exchange(sender.unset, {})) give_settings(sender, std::move(unset));
  next();
}

void NetDevice::pair_moved(unsigned index, unsigned reactor, std::function<void()> next) {
  Pair& pair = pairs_.at(index);
  pair.reactor = reactor;
  auto settled = [this, index, next = std::move(next)] {
    Pair& mine = pairs_[index];
    mine.changing = mine.moving = false;
    for (auto& unset : std::exchange(mine.unset, {})) give_settings(mine, std::move(unset));
    settle_pair(index);
    next();
  };
  if (!pair.registered) return settled();
  fabric_.end_move(port_, index, std::move(settled));
}

}  // namespace millrace::net
