#include "vmm/serial.hpp"

#include <algorithm>

namespace millrace::vmm {

namespace {

// Registers, by offset; PC16550D table II.
constexpr std::uint64_t data_at = 0, interrupt_enable_at = 1, interrupt_id_at = 2,
                        line_control_at = 3, modem_control_at = 4, line_status_at = 5,
                        modem_status_at = 6, scratch_at = 7;
constexpr std::uint8_t enable_received = 1 << 0, enable_transmitter = 1 << 1;
constexpr std::uint8_t id_none = 1, id_transmitter = 2, id_received = 4, id_fifos = 0xc0;
constexpr std::uint8_t fifo_enable = 1 << 0, fifo_clear_input = 1 << 1;
constexpr std::uint8_t divisor_latch = 1 << 7;
constexpr std::uint8_t control_dtr = 1 << 0, control_rts = 1 << 1, control_out1 = 1 << 2,
                       control_out2 = 1 << 3, control_loop = 1 << 4;
constexpr std::uint8_t status_data = 1 << 0, status_transmitter = 3 << 5;
constexpr std::uint8_t modem_cts = 1 << 4, modem_dsr = 1 << 5, modem_ring = 1 << 6,
                       modem_carrier = 1 << 7;

}  // namespace

std::size_t Serial::receive(std::span<const std::byte> bytes) {
  const std::lock_guard lock{mutex_};
  const auto room = input_max - std::min(input_max, input_.size());
  const auto taken = std::min(room, bytes.size());
  for (const auto byte : bytes.first(taken)) input_.push_back(std::to_integer<std::uint8_t>(byte));
  if (taken < bytes.size()) short_of_room_ = true;
  update_interrupt();
  return taken;
}

void Serial::read(std::uint64_t offset, std::span<std::byte> data) {
  const std::lock_guard lock{mutex_};
  for (auto& byte : data) {
    if (offset < size) byte = std::byte{read_register(offset)};
    ++offset;
  }
  update_interrupt();
}

void Serial::write(std::uint64_t offset, std::span<const std::byte> data) {
  const std::lock_guard lock{mutex_};
  for (const auto byte : data) {
    if (offset < size) write_register(offset, std::to_integer<std::uint8_t>(byte));
    ++offset;
  }
  update_interrupt();
}

std::uint8_t Serial::read_register(std::uint64_t at) {
  const bool latch = (line_control_ & divisor_latch) != 0;
  switch (at) {
    case data_at:
      return latch ? static_cast<std::uint8_t>(divisor_) : take_input();
    case interrupt_enable_at:
      return latch ? static_cast<std::uint8_t>(divisor_ >> 8) : interrupt_enable_;
    case interrupt_id_at: {
      const auto id = pending();
      if (id == id_transmitter) transmitter_empty_ = false;  // reading it is its acknowledgement
      return id | ((fifo_control_ & fifo_enable) != 0 ? id_fifos : std::uint8_t{0});
    }
    case line_control_at:
      return line_control_;
    case modem_control_at:
      return modem_control_;
    case line_status_at:
      return status_transmitter | (input_.empty() ? std::uint8_t{0} : status_data);
    case modem_status_at:
      return modem_status();
    default:
      return scratch_;
  }
}

void Serial::write_register(std::uint64_t at, std::uint8_t value) {
  const bool latch = (line_control_ & divisor_latch) != 0;
  switch (at) {
    case data_at:
      if (latch) {
        divisor_ = static_cast<std::uint16_t>((divisor_ & 0xff00) | value);
      } else {
        send(value);
      }
      break;
    case interrupt_enable_at:
      if (latch) {
        divisor_ = static_cast<std::uint16_t>((divisor_ & 0x00ff) | value << 8);
        break;
      }
      // Asking for it while the transmitter is empty, which it always is, makes it due.
      if ((value & ~interrupt_enable_ & enable_transmitter) != 0) transmitter_empty_ = true;
      interrupt_enable_ = value & 0x0f;
      break;
    case interrupt_id_at:
      fifo_control_ = value;
      if ((value & fifo_clear_input) != 0) input_.clear();
      break;
    case line_control_at:
      line_control_ = value;
      break;
    case modem_control_at:
      modem_control_ = value & 0x1f;
      break;
    case scratch_at:
      scratch_ = value;
      break;
    default:
      break;
  }
}

std::uint8_t Serial::take_input() {
  if (input_.empty()) return 0;
  const auto value = input_.front();
  input_.pop_front();
  if (short_of_room_ && input_.size() <= input_max / 2) {
    short_of_room_ = false;
    wires_.room();
  }
  return value;
}

void Serial::send(std::uint8_t value) {
  if ((modem_control_ & control_loop) == 0) {
    wires_.transmit(std::byte{value});
  } else if (input_.size() < input_max) {
    input_.push_back(value);
  }
  transmitter_empty_ = true;
}

std::uint8_t Serial::pending() const {
  if (!input_.empty() && (interrupt_enable_ & enable_received) != 0) return id_received;
  if (transmitter_empty_ && (interrupt_enable_ & enable_transmitter) != 0) return id_transmitter;
  return id_none;
}

std::uint8_t Serial::modem_status() const {
  if ((modem_control_ & control_loop) == 0) return modem_cts | modem_dsr | modem_carrier;
  std::uint8_t status = 0;
  if ((modem_control_ & control_rts) != 0) status |= modem_cts;
  if ((modem_control_ & control_dtr) != 0) status |= modem_dsr;
  if ((modem_control_ & control_out1) != 0) status |= modem_ring;
  if ((modem_control_ & control_out2) != 0) status |= modem_carrier;
  return status;
}

// The IOAPIC takes edges. A driver lowers the line by emptying the input and by reading the
// interrupt's identity, so whatever comes after that makes a new edge.
void Serial::update_interrupt() {
  const bool high = pending() != id_none;
  if (high == line_) return;
  line_ = high;
  wires_.interrupt(high);
}

}  // namespace millrace::vmm
