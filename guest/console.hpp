// The console device, virtio 1.2 §5.3, with VIRTIO_CONSOLE_F_MULTIPORT: ports between programs of
// the guest (/dev/virtio-ports/NAME, /dev/hvcN) and programs of the host (a socket each), added and
// removed while the guest runs. Thread: control.
//
// Queues move bytes between a guest's buffers and pipes, on reactors; everything else, the control
// messages included, is done here on control. What a driver has been told is compared with what is
// true, and it is told the difference when there is room for it: no message is ever lost.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "guest/console_port.hpp"
#include "guest/device.hpp"
#include "guest/pipe.hpp"
#include "virtio/wire/console.hpp"

namespace millrace::guest {

class Console final : public Device {
 public:
  static base::Result<std::unique_ptr<Device>> make(const std::string& name,
                                                    const ConsoleSettings& settings,
                                                    const Means& means);
  Console(const std::string& name, const ConsoleSettings& settings, const Means& means,
          std::unique_ptr<Notifier> notifier);

  [[nodiscard]] virtio::DeviceKind kind() const override { return virtio::DeviceKind::console; }
  [[nodiscard]] std::uint64_t features() const override;
  [[nodiscard]] std::span<const std::byte> config() const override;
  base::Result<void> write_config(std::uint32_t offset, std::span<const std::byte> bytes) override;
  void set_connected(bool connected) override;
  [[nodiscard]] std::vector<Figure> figures() const override;
  [[nodiscard]] std::vector<PortStatus> ports() const override;
  base::Result<void> add_port(const PortSettings& settings) override;
  base::Result<void> remove_port(const std::string& port) override;

 protected:
  [[nodiscard]] std::unique_ptr<virtio::QueueWorker> make_worker(
      std::unique_ptr<virtio::Queue> queue) override;
  void worker_stopped(virtio::QueueWorker& worker) override;

 private:
  // Bytes on their way between a queue and a socket, each way.
  static constexpr std::size_t pipe_size = 64 << 10, control_pipe_size = 16 << 10;
  // Room for the answers to any one message of a driver.
  static constexpr std::size_t answers_max = 2048;

  // A place for a port, with its two queues.
  struct Slot {
    Slot(unsigned number, Notifier& notifier)
        : id{number}, out{pipe_size, Flow::drop, notifier}, in{pipe_size, Flow::hold, notifier} {}
    unsigned id;
    Pipe out, in;
    std::unique_ptr<ConsolePort> port;
    // What the driver was told, and what it said.
    bool told_of = false, told_open = false, is_ready = false, is_open = false;
  };

  base::Result<void> watch();
  // From the event loop, soon and once.
  void turn_later();
  void turn();
  void take_messages();
  void handle(const virtio::wire::ConsoleControl& message);
  void answer_ready(Slot& slot);
  void tell(Slot& slot);
  bool send(unsigned port, virtio::wire::ConsoleEvent event, std::uint16_t value,
            const std::string& name = {});
  void forget_driver();
  [[nodiscard]] bool multiport() const;
  [[nodiscard]] bool reads(const Slot& slot) const;
  [[nodiscard]] static unsigned queue_of(unsigned slot) { return slot == 0 ? 0 : 2 * slot + 2; }

  base::EventLoop& loop_;
  std::unique_ptr<Notifier> notifier_;
  base::EventLoop::Watch notifier_watch_;
  base::EventLoop::Timer turn_timer_;
  virtio::wire::ConsoleConfig space_{};
  std::vector<std::unique_ptr<Slot>> slots_;
  Pipe control_out_, control_in_;
  bool driver_ready_ = false;
  // The driver was set up by a device before this one: which programs had ports open is not known.
  bool resumed_ = false;
};

}  // namespace millrace::guest
