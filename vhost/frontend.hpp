// Frontend: the other end of the protocol, blocking and scripted: each message is one call. For
// tests, benches and fuzzers, and for a VMM's start-up thread.
//
// A call that sends a request without a reply of its own asks for an acknowledgement once REPLY_ACK
// is negotiated, and fails when it is not zero. Every wait ends at the deadline. One thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "vhost/channel.hpp"
#include "vhost/wire.hpp"

namespace millrace::vhost {

class Frontend {
 public:
  struct Region {
    std::uint64_t guest_address = 0, size = 0, user_address = 0, file_offset = 0;
    int fd = -1;
  };
  struct Inflight {
    wire::Inflight shape{};
    base::Fd fd;
  };

  // Connects to a listening back-end, and tries again until it is there or `timeout` is over.
  static base::Result<std::unique_ptr<Frontend>> connect(const std::string& path,
                                                         std::chrono::milliseconds timeout);
  // Listens, and takes the first back-end that connects (one in client mode); nobody else then.
  static base::Result<std::unique_ptr<Frontend>> accept(const std::string& path,
                                                        std::chrono::milliseconds timeout);
  explicit Frontend(base::Fd socket) : socket_{std::move(socket)} {}

  // How long a reply may take. Default: 10 s.
  void set_timeout(std::chrono::milliseconds timeout) { timeout_ = timeout; }
  // Runs while a reply is awaited, instead of sleeping: a test that has the back-end's loop in its
  // own thread turns it here.
  void set_pump(std::function<void()> pump) { pump_ = std::move(pump); }
  // Every wait ends, with an error, once `fd` is readable: a thread that shall stop is not held up
  // by a back-end. -1: nothing does.
  void set_cancel(int fd) { cancel_ = fd; }
  // Whether requests ask for acknowledgements. Default: as negotiated.
  void set_acknowledged(bool on) { ask_ack_ = on; }
  [[nodiscard]] int fd() const { return socket_.get(); }
  void hang_up() { socket_.reset(); }
  // Whether the last request failed because the back-end answered "no": the connection is as good
  // as before. After any other failure nothing more can be said on it.
  [[nodiscard]] bool refused() const { return refused_; }

  // Negotiation.
  base::Result<std::uint64_t> get_features();
  base::Result<void> set_features(std::uint64_t features);
  base::Result<std::uint64_t> get_protocol_features();
  base::Result<void> set_protocol_features(std::uint64_t features);
  base::Result<void> set_owner();
  base::Result<void> reset_owner();
  base::Result<void> reset_device();
  base::Result<std::uint64_t> get_queue_num();
  base::Result<void> set_status(std::uint8_t status);
  base::Result<std::uint64_t> get_status();

  // Memory and log.
  base::Result<void> set_mem_table(std::span<const Region> regions);
  base::Result<std::uint64_t> get_max_mem_slots();
  base::Result<void> add_mem_reg(const Region& region);
  base::Result<void> rem_mem_reg(const Region& region);
  base::Result<void> set_log_base(std::uint64_t size, std::uint64_t offset, int fd);
  base::Result<void> set_log_fd(int fd);

  // Rings. A descriptor of -1 says that none comes.
  base::Result<void> set_vring_num(std::uint32_t index, std::uint32_t num);
  base::Result<void> set_vring_addr(const wire::VringAddr& address);
  base::Result<void> set_vring_base(std::uint32_t index, std::uint32_t base);
  base::Result<std::uint32_t> get_vring_base(std::uint32_t index);
  base::Result<void> set_vring_kick(std::uint32_t index, int fd);
  base::Result<void> set_vring_call(std::uint32_t index, int fd);
  base::Result<void> set_vring_err(std::uint32_t index, int fd);
  base::Result<void> set_vring_enable(std::uint32_t index, bool enable);

  // Device.
  base::Result<std::vector<std::byte>> get_config(std::uint32_t offset, std::uint32_t size);
  base::Result<void> set_config(std::uint32_t offset, std::span<const std::byte> bytes);
  base::Result<void> set_backend_req_fd(int fd);
  base::Result<void> send_rarp(std::span<const std::uint8_t, 6> mac);
  base::Result<void> net_set_mtu(std::uint64_t mtu);
  base::Result<Inflight> get_inflight_fd(std::uint16_t queues, std::uint16_t queue_size);
  base::Result<void> set_inflight_fd(const wire::Inflight& shape, int fd);

  // The steps that the calls above are made of, for scripts that break the rules.
  base::Result<void> send(wire::Request request, std::span<const std::byte> payload,
                          std::span<const int> fds = {}, std::uint32_t flags = wire::version);
  base::Result<void> send_bytes(std::span<const std::byte> bytes, std::span<const int> fds = {});
  // The next message from the back-end, whatever it is.
  base::Result<Message> receive();
  // Sends, and takes the acknowledgement if one is due.
  base::Result<void> request(wire::Request request, std::span<const std::byte> payload,
                             std::span<const int> fds = {});
  // Sends, and takes the reply, which must be to this request and `size` bytes long.
  base::Result<Message> ask(wire::Request request, std::span<const std::byte> payload,
                            std::size_t size);

 private:
  base::Result<std::uint64_t> ask_u64(wire::Request request);
  base::Result<void> request_ring_fd(wire::Request request, std::uint32_t index, int fd);
  base::Result<void> wait(short events, std::chrono::steady_clock::time_point deadline);
  base::Result<void> receive_bytes(std::span<std::byte> into, std::vector<base::Fd>& fds,
                                   std::chrono::steady_clock::time_point deadline);

  base::Fd socket_;
  std::chrono::milliseconds timeout_{10'000};
  std::function<void()> pump_;
  std::uint64_t protocol_ = 0;
  bool ask_ack_ = true, refused_ = false;
  int cancel_ = -1;
};

}  // namespace millrace::vhost
