// Serial: a 16550A serial port, without the time that a wire takes: a byte is sent when it is
// written. National Semiconductor PC16550D.
//
// Thread: any; it locks for itself, and calls its wires with that lock held.
#pragma once

#include <deque>
#include <functional>
#include <mutex>

#include "vmm/bus.hpp"

namespace millrace::vmm {

class Serial final : public BusDevice {
 public:
  static constexpr std::uint64_t size = 8;
  static constexpr std::size_t input_max = 4096;  // bytes that wait for the guest

  struct Wires {
    std::function<void(bool high)> interrupt;
    std::function<void(std::byte)> transmit;  // must not block
    std::function<void()> room;               // receive() took not all, and would take more now
  };
  explicit Serial(Wires wires) : wires_{std::move(wires)} {}

  // Bytes for the guest. Answers how many fitted; room() is called later if that was not all.
  std::size_t receive(std::span<const std::byte> bytes);

  void read(std::uint64_t offset, std::span<std::byte> data) override;
  void write(std::uint64_t offset, std::span<const std::byte> data) override;

 private:
  std::uint8_t read_register(std::uint64_t at);
  void write_register(std::uint64_t at, std::uint8_t value);
  std::uint8_t take_input();
  void send(std::uint8_t value);
  [[nodiscard]] std::uint8_t pending() const;
  [[nodiscard]] std::uint8_t modem_status() const;
  void update_interrupt();

  const Wires wires_;
  std::mutex mutex_;
  std::deque<std::uint8_t> input_;
  std::uint8_t interrupt_enable_ = 0, fifo_control_ = 0, line_control_ = 0, modem_control_ = 0,
               scratch_ = 0;
  std::uint16_t divisor_ = 12;      // 9600 baud
  bool transmitter_empty_ = false;  // its interrupt is due
  bool line_ = false, short_of_room_ = false;
};

}  // namespace millrace::vmm
