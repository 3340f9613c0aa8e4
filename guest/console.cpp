#include "guest/console.hpp"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/error.hpp"
#include "guest/pipe_in_worker.hpp"
#include "guest/pipe_out_worker.hpp"

namespace millrace::guest {

namespace wire = virtio::wire;
namespace console_bit = virtio::wire::console_feature;
using wire::ConsoleEvent;

base::Result<std::unique_ptr<Device>> Console::make(const std::string& name,
                                                    const ConsoleSettings& settings,
                                                    const Means& means) {
  if (settings.ports_max < 1 || settings.ports_max > wire::console_ports_max) {
    return base::fail("ports_max must be 1 to " + std::to_string(wire::console_ports_max));
  }
  base::Fd event{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  if (!event) return base::fail_errno("cannot make an eventfd");
  auto console = std::make_unique<Console>(name, settings, means,
                                           std::make_unique<Notifier>(std::move(event)));
  if (auto ok = console->watch(); !ok) return base::Unexpected{ok.error()};
  for (const auto& port : settings.ports_now()) {
    if (auto ok = console->add_port(port); !ok) return base::Unexpected{ok.error()};
  }
  return std::unique_ptr<Device>{std::move(console)};
}

Console::Console(const std::string& name, const ConsoleSettings& settings, const Means& means,
                 std::unique_ptr<Notifier> notifier)
    : Device{name, 2 * settings.ports_max + 2, means.pool},
      loop_{means.loop},
      notifier_{std::move(notifier)},
      control_out_{control_pipe_size, Flow::hold, *notifier_},
      control_in_{control_pipe_size, Flow::hold, *notifier_} {
  space_.max_nr_ports = base::le32{settings.ports_max};
  for (unsigned i = 0; i < settings.ports_max; ++i) {
    slots_.push_back(std::make_unique<Slot>(i, *notifier_));
  }
}

base::Result<void> Console::watch() {
  auto watch = loop_.watch(notifier_->fd(), EPOLLIN, [this](std::uint32_t) {
    notifier_->lower();
    turn();
  });
  if (!watch) return base::Unexpected{watch.error()};
  notifier_watch_ = *std::move(watch);
  return {};
}

std::uint64_t Console::features() const {
  return ring_features | console_bit::multiport;
}

std::span<const std::byte> Console::config() const {
  return std::as_bytes(std::span{&space_, 1});
}

base::Result<void> Console::write_config(std::uint32_t, std::span<const std::byte>) {
  return base::fail("a console's configuration cannot be written");
}

bool Console::multiport() const {
  return (negotiated() & console_bit::multiport) != 0;
}

// --- Queues ---

std::unique_ptr<virtio::QueueWorker> Console::make_worker(std::unique_ptr<virtio::Queue> queue) {
  const unsigned index = queue->index();
  if (multiport() && index == wire::console_control_in) {
    return std::make_unique<PipeInWorker>(std::move(queue), control_in_, true);
  }
  if (multiport() && index == wire::console_control_out) {
    // A ring that does not begin at its beginning was another device's before, or this daemon's
    // before it was killed. Its driver thinks that all is said; we say it again.
    const std::uint32_t fresh = queue->packed() ? 0x8000'8000u : 0;
    driver_ready_ = resumed_ = queue->position() != fresh;
    turn_later();
    return std::make_unique<PipeOutWorker>(std::move(queue), control_out_,
                                           sizeof(wire::ConsoleControl));
  }
  const unsigned number = index < 2 ? 0 : (index - 2) / 2;
  CHECK(number < slots_.size());
  Slot& slot = *slots_[number];
  turn_later();
  if (index % 2 == 0) return std::make_unique<PipeInWorker>(std::move(queue), slot.in);
  return std::make_unique<PipeOutWorker>(std::move(queue), slot.out);
}

// A driver that takes its control queue back begins anew.
void Console::worker_stopped(virtio::QueueWorker& worker) {
  if (worker.queue().index() == wire::console_control_out) forget_driver();
}

void Console::set_connected(bool connected) {
  Device::set_connected(connected);
  if (!connected) forget_driver();
}

void Console::forget_driver() {
  driver_ready_ = resumed_ = false;
  for (auto& slot : slots_) {
    slot->told_of = slot->told_open = slot->is_ready = slot->is_open = false;
  }
  turn_later();
}

// --- What goes on ---

void Console::turn_later() {
  if (turn_timer_.active()) return;
  turn_timer_ = loop_.after(std::chrono::nanoseconds{0}, [this] { turn(); });
}

bool Console::reads(const Slot& slot) const {
  return multiport() ? slot.is_open : worker(queue_of(slot.id)) != nullptr;
}

void Console::turn() {
  // Nobody else is there to do it.
  if (worker(wire::console_control_in) == nullptr) control_in_.ring.popped(control_in_.ring.size());
  take_messages();
  bool moved = control_in_.ring.size() != 0;
  for (auto& slot : slots_) {
    const bool open = reads(*slot);
    if (!open) slot->in.flow = Flow::drop;
    if (worker(queue_of(slot->id)) == nullptr && slot->in.flow.load() == Flow::drop) {
      slot->in.ring.popped(slot->in.ring.size());
    }
    if (slot->port != nullptr) moved = slot->port->turn(open) || moved;
    tell(*slot);
    moved = moved || slot->in.ring.size() != 0;
  }
  if (!moved && control_in_.ring.size() == 0) return;
  for (unsigned i = 0; i < pool().size(); ++i) pool().at(i).wake();
}

void Console::take_messages() {
  bool taken = false;
  while (control_in_.ring.room() >= answers_max) {
    wire::ConsoleControl message;
    if (!control_out_.ring.peek(std::as_writable_bytes(std::span{&message, 1}))) break;
    control_out_.ring.popped(sizeof message);
    handle(message);
    taken = true;
  }
  if (!taken) return;
  const auto* const out = worker(wire::console_control_out);
  if (out != nullptr) pool().at(queue_status(wire::console_control_out).reactor).wake();
}

// What a driver says about a port that is not there, or that makes no sense, says nothing.
void Console::handle(const wire::ConsoleControl& message) {
  const auto event = static_cast<ConsoleEvent>(message.event.host());
  const bool yes = message.value.host() == 1;
  if (event == ConsoleEvent::device_ready) {
    forget_driver();
    driver_ready_ = yes;
    return;
  }
  const auto id = message.id.host();
  if (id >= slots_.size() || slots_[id]->port == nullptr || !slots_[id]->told_of) return;
  Slot& slot = *slots_[id];
  if (event == ConsoleEvent::port_ready) {
    slot.is_ready = yes;
    if (yes) answer_ready(slot);
  } else if (event == ConsoleEvent::port_open) {
    slot.is_open = yes;
  }
}

void Console::answer_ready(Slot& slot) {
  const auto& settings = slot.port->settings();
  if (settings.terminal) send(slot.id, ConsoleEvent::console_port, 1);
  send(slot.id, ConsoleEvent::port_name, 1, settings.name);
  slot.told_open = false;
  if (!resumed_) return;
  // A program of the guest's may have it open, and may think that one of the host's has.
  slot.is_open = true;
  slot.told_open = slot.port->connected();
  send(slot.id, ConsoleEvent::port_open, slot.told_open ? 1 : 0);
}

// The difference between what the driver knows of a port and what is true.
void Console::tell(Slot& slot) {
  if (!driver_ready_) return;
  if (slot.port == nullptr) {
    if (slot.told_of && send(slot.id, ConsoleEvent::port_remove, 1)) {
      slot.told_of = slot.told_open = slot.is_ready = slot.is_open = false;
    }
    return;
  }
  if (!slot.told_of) slot.told_of = send(slot.id, ConsoleEvent::port_add, 1);
  if (!slot.is_ready || slot.told_open == slot.port->connected()) return;
  const bool open = slot.port->connected();
  if (send(slot.id, ConsoleEvent::port_open, open ? 1 : 0)) slot.told_open = open;
}

// False: there is no room now.
bool Console::send(unsigned port, ConsoleEvent event, std::uint16_t value,
                   const std::string& name) {
  std::array<std::byte, sizeof(FrameHeader) + sizeof(wire::ConsoleControl) + 64> frame;
  const wire::ConsoleControl message{
      base::le32{port}, base::le16{static_cast<std::uint16_t>(event)}, base::le16{value}};
  const auto text = std::min<std::size_t>(name.size(), 64);
  const auto bytes = sizeof message + text;
  const FrameHeader header{static_cast<std::uint16_t>(bytes)};
  std::memcpy(frame.data(), &header, sizeof header);
  std::memcpy(frame.data() + sizeof header, &message, sizeof message);
  std::memcpy(frame.data() + sizeof header + sizeof message, name.data(), text);
  return control_in_.ring.push(std::span{frame}.first(sizeof header + bytes));
}

// --- Ports ---

base::Result<void> Console::add_port(const PortSettings& settings) {
  const auto bad = [&settings](const std::string& why) {
    return base::fail("port " + settings.name + ": " + why);
  };
  for (const auto& slot : slots_) {
    if (slot->port != nullptr && slot->port->settings().name == settings.name) {
      return bad("the name is used by another port; give another");
    }
  }
  // Port 0 is a terminal to every driver that knows but one port.
  const auto from = slots_.begin() + (settings.terminal ? 0 : 1);
  const auto free = std::find_if(from, slots_.end(), [&settings](const auto& slot) {
    return slot->port == nullptr && !slot->told_of && settings.id.value_or(slot->id) == slot->id;
  });
  if (free == slots_.end() && settings.id) {
    return bad("there is no free place of the number " + std::to_string(*settings.id));
  }
  if (free == slots_.end()) {
    return bad(
        "all ports are taken; give the console a larger ports_max (port 0 can only be a terminal)");
  }
  Slot& slot = **free;
  auto port = ConsolePort::make(loop_, settings, slot.out, slot.in, [this] { turn_later(); });
  if (!port) return bad(port.error().message);
  slot.port = *std::move(port);
  turn_later();
  return {};
}

base::Result<void> Console::remove_port(const std::string& port) {
  for (auto& slot : slots_) {
    if (slot->port == nullptr || slot->port->settings().name != port) continue;
    slot->port.reset();
    slot->is_open = false;
    turn_later();
    return {};
  }
  return base::fail("there is no port " + port + " of console " + name());
}

std::vector<PortStatus> Console::ports() const {
  std::vector<PortStatus> out;
  for (const auto& slot : slots_) {
    if (slot->port == nullptr) continue;
    const auto& settings = slot->port->settings();
    out.push_back({.settings = settings,
                   .id = slot->id,
                   .host_open = slot->port->connected(),
                   .guest_open = reads(*slot),
                   .bytes_in = slot->in.bytes.get(),
                   .bytes_out = slot->out.bytes.get(),
                   .dropped = slot->in.dropped.get() + slot->out.dropped.get()});
  }
  return out;
}

std::vector<Figure> Console::figures() const {
  std::uint64_t in = 0, out = 0, dropped = 0, open = 0;
  const auto now = ports();
  for (const auto& port : now) open += port.host_open && port.guest_open ? 1 : 0;
  for (const auto& slot : slots_) {
    in += slot->in.bytes.get();
    out += slot->out.bytes.get();
    dropped += slot->in.dropped.get() + slot->out.dropped.get();
  }
  return {{"ports", now.size()},
          {"ports_open", open},
          {"bytes_in", in},
          {"bytes_out", out},
          {"dropped_bytes", dropped}};
}

}  // namespace millrace::guest
