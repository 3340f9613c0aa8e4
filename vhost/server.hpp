// Server: one vhost-user socket of one device, from configuration to sessions. Thread: control.
//
// listen: binds the path (a stale socket file that nobody listens on is replaced), accepts one
// front-end at a time; the next waits in the backlog until the first is gone. connect: connects to
// the front-end's socket and tries again with back-off, for ever.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/event_loop.hpp"
#include "base/result.hpp"
#include "virtio/device.hpp"

namespace millrace::vhost {

enum class SocketMode { listen, connect };

struct ServerConfig {
  std::string socket;  // path, at most 107 bytes; or "fd:N": a passed listening descriptor
  SocketMode mode = SocketMode::listen;
  unsigned permissions = 0660;  // of a socket file that we make
};

struct SessionStatus {
  bool connected = false;
  std::uint64_t sessions = 0;  // since start
  std::uint64_t messages = 0;  // of this session
  std::uint64_t refused = 0;   // messages refused, all sessions
  std::string peer;            // "pid 1234 (qemu-system-x86)"
  std::string phase;           // "negotiating", "running"...
  std::uint64_t virtio_features = 0, protocol_features = 0;
  unsigned memory_regions = 0;
  std::uint64_t memory_bytes = 0;
  std::string last_error;  // why the last session ended, one line; empty: a clean hang-up
};

class Server {
 public:
  static base::Result<std::unique_ptr<Server>> make(base::EventLoop& loop, virtio::Device& device,
                                                    const ServerConfig& config);
  virtual ~Server() = default;
  [[nodiscard]] virtual SessionStatus status() const = 0;
  // Ends the session: all queues stopped and drained, descriptors closed, socket file removed.
  // `done` runs, then the server may be destroyed.
  virtual void close(std::function<void()> done) = 0;
  // Runs on control whenever a session begins or ends.
  virtual void on_change(std::function<void(bool connected)> hook) = 0;
  // Runs on control whenever a queue was poisoned by the front-end's guest.
  virtual void on_fault(std::function<void(unsigned index, virtio::Fault fault)> hook) = 0;
};

}  // namespace millrace::vhost
