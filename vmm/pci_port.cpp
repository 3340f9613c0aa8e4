#include "vmm/pci_port.hpp"

#include <utility>

#include "base/check.hpp"

namespace millrace::vmm {

namespace {

// A port that drivers have no special cases for.
constexpr PciIdentity root_port{.vendor = 0x1b36, .device = 0x000c, .class_code = 0x060400};

// The type 1 header, PCI Express Base 4.0 §7.5.1.3.
constexpr std::uint32_t command_at = 0x04, header_type_at = 0x0e, primary_bus_at = 0x18,
                        secondary_bus_at = 0x19, subordinate_bus_at = 0x1a, memory_base_at = 0x20,
                        memory_limit_at = 0x22, wide_base_at = 0x24, wide_limit_at = 0x26,
                        wide_base_upper_at = 0x28, wide_limit_upper_at = 0x2c, windows_end = 0x30,
                        bridge_control_at = 0x3e;
constexpr std::uint8_t header_bridge = 1, header_multifunction = 1 << 7;
constexpr std::uint16_t command_memory = 1 << 1;
constexpr std::uint16_t window_bits = 0xfff0, window_wide = 1;
constexpr std::uint16_t bridge_parity = 1 << 0, bridge_errors = 1 << 1, bridge_reset = 1 << 6;
constexpr std::uint64_t window_unit = 1 << 20;

// The PCI Express capability, §7.5.3: offsets from its header.
constexpr std::uint8_t express_id = 0x10;
constexpr std::uint32_t express_size = 0x3c, flags_at = 0x02, device_capabilities_at = 0x04,
                        link_capabilities_at = 0x0c, link_status_at = 0x12,
                        slot_capabilities_at = 0x14, slot_control_at = 0x18, slot_status_at = 0x1a,
                        root_control_at = 0x1c, link_capabilities_2_at = 0x2c;
constexpr std::uint16_t version_2 = 2, type_root_port = 4 << 4, slot_implemented = 1 << 8;
constexpr std::uint32_t role_based_errors = 1 << 15;
constexpr std::uint32_t link_speed_1 = 1, link_width_1 = 1 << 4, link_active_reported = 1 << 20;
constexpr std::uint32_t link_speeds_2 = 1 << 1;  // the first speed alone
constexpr std::uint16_t link_active = 1 << 13;
constexpr std::uint32_t has_button = 1 << 0, has_power_indicator = 1 << 4, is_hotplug = 1 << 6,
                        no_command_completed = 1 << 18;
constexpr unsigned slot_number_at = 19;

// Slot control and slot status have an event's enable and its bit at the same places, but for the
// link's.
constexpr std::uint16_t button = 1 << 0, presence_changed = 1 << 3, link_changed = 1 << 8,
                        occupied_now = 1 << 6;
constexpr std::uint16_t link_enable = 1 << 12, interrupt_enable = 1 << 5;
constexpr std::uint16_t events = button | presence_changed | link_changed;
constexpr std::uint16_t indicator_bits = 3 << 8, indicator_on = 1 << 8, indicator_blinks = 2 << 8,
                        indicator_off = 3 << 8;
constexpr std::uint16_t slot_control_writable =
    button | presence_changed | interrupt_enable | indicator_bits | link_enable;
constexpr std::uint16_t root_control_writable = 0x1f;

bool overlap(std::uint32_t a, std::size_t a_size, std::uint32_t b, std::size_t b_size) {
  return a < b + b_size && b < a + a_size;
}

template <class T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span{&value, 1});
}

}  // namespace

base::Result<std::unique_ptr<PciPort>> PciPort::make(const Settings& settings,
                                                     Interrupts& interrupts,
                                                     std::function<void()> let_go) {
  auto msi = Msi::make(interrupts);
  if (!msi) return base::Unexpected{msi.error()};
  return std::unique_ptr<PciPort>{new PciPort{settings, std::move(*msi), std::move(let_go)}};
}

PciPort::PciPort(const Settings& settings, Msi msi, std::function<void()> let_go)
    : PciFunction{root_port},
      msi_{std::move(msi)},
      on_let_go_{std::move(let_go)},
      secondary_bus_{settings.bus} {
  const auto window = [](const MemoryWindow& from) {
    CHECK(from.size != 0 && from.start % window_unit == 0 && from.size % window_unit == 0);
    const auto last = from.start + from.size - 1;
    return std::pair{from.start >> 16 & window_bits, last >> 16 & window_bits};
  };
  set_config_at<std::uint8_t>(header_type_at, settings.multifunction
                                                  ? header_bridge | header_multifunction
                                                  : header_bridge);
  set_config_at(secondary_bus_at, settings.bus);
  set_config_at(subordinate_bus_at, settings.bus);
  const auto low = window(settings.low), high = window(settings.high);
  set_config_at(memory_base_at, static_cast<std::uint16_t>(low.first));
  set_config_at(memory_limit_at, static_cast<std::uint16_t>(low.second));
  set_config_at(wide_base_at, static_cast<std::uint16_t>(high.first | window_wide));
  set_config_at(wide_limit_at, static_cast<std::uint16_t>(high.second | window_wide));
  const auto high_last = settings.high.start + settings.high.size - 1;
  set_config_at(wide_base_upper_at, static_cast<std::uint32_t>(settings.high.start >> 32));
  set_config_at(wide_limit_upper_at, static_cast<std::uint32_t>(high_last >> 32));

  constexpr std::uint32_t buses = 0x00ff'ffff;
  constexpr std::array<std::uint16_t, 4> windows{window_bits, window_bits, window_bits,
                                                 window_bits};
  constexpr std::uint64_t upper_halves = ~std::uint64_t{0};
  constexpr std::uint16_t control = bridge_parity | bridge_errors | bridge_reset;
  set_writable_at(primary_bus_at, bytes_of(buses));
  set_writable_at(memory_base_at, std::as_bytes(std::span{windows}));
  set_writable_at(wide_base_upper_at, bytes_of(upper_halves));
  set_writable_at(bridge_control_at, bytes_of(control));
  add_express_capability(settings.number);
  msi_at_ = add_capability(Msi::capability_id, Msi::capability(), Msi::writable());
  set_occupied(false);
}

PciPort::~PciPort() {
  if (device_) device_->set_memory_bus(nullptr);
}

void PciPort::add_express_capability(unsigned number) {
  std::array<std::byte, express_size - 2> body{}, writable{};
  const auto put = [](auto& bytes, std::uint32_t offset, auto value) {
    std::memcpy(bytes.data() + offset - 2, &value, sizeof value);
  };
  put(body, flags_at, static_cast<std::uint16_t>(version_2 | type_root_port | slot_implemented));
  put(body, device_capabilities_at, role_based_errors);
  put(body, link_capabilities_at,
      link_speed_1 | link_width_1 | link_active_reported | number << 24);
  put(body, slot_capabilities_at,
      has_button | has_power_indicator | is_hotplug | no_command_completed |
          number << slot_number_at);
  put(body, slot_control_at, indicator_off);
  put(body, link_capabilities_2_at, link_speeds_2);
  put(writable, slot_control_at, slot_control_writable);
  put(writable, slot_status_at, events);
  put(writable, root_control_at, root_control_writable);
  express_ = add_capability(express_id, body, writable);
}

// --- The slot ---

void PciPort::insert(std::unique_ptr<PciFunction> device, Bus& memory, bool running) {
  CHECK(device_ == nullptr);
  device_ = std::move(device);
  device_->set_memory_bus(&memory, this);
  asked_at_.reset();
  has_let_go_ = false;
  set_occupied(true);
  if (running) return add_events(presence_changed | link_changed);
  const auto at = express_ + slot_control_at;
  set_config_at(at, static_cast<std::uint16_t>((config_at<std::uint16_t>(at) & ~indicator_bits) |
                                               indicator_on));
}

std::unique_ptr<PciFunction> PciPort::take() {
  if (device_ == nullptr) return nullptr;
  device_->set_memory_bus(nullptr);
  asked_at_.reset();
  has_let_go_ = false;
  set_occupied(false);
  add_events(presence_changed | link_changed);
  return std::move(device_);
}

void PciPort::set_occupied(bool occupied) {
  const std::uint32_t link = occupied ? link_speed_1 | link_width_1 | link_active : 0;
  set_config_at(express_ + link_status_at, static_cast<std::uint16_t>(link));
  slot_status_ =
      static_cast<std::uint16_t>((slot_status_ & ~occupied_now) | (occupied ? occupied_now : 0));
  set_config_at(express_ + slot_status_at, slot_status_);
}

std::uint16_t PciPort::indicator() const {
  return config_at<std::uint16_t>(express_ + slot_control_at) & indicator_bits;
}

// A driver that uses the device has made it a bus master.
bool PciPort::is_in_use() const {
  return indicator() != indicator_off || device_->is_bus_master();
}

bool PciPort::ask_for_removal(Clock::time_point now) {
  CHECK(device_ != nullptr);
  // Nobody in the guest has it: it was never taken in, or was switched off by hand.
  if (!is_in_use()) {
    let_go();
    return true;
  }
  // A second press while the indicator blinks would call it off.
  if (has_let_go_ ||
      (asked_at_ && (indicator() == indicator_blinks || now - *asked_at_ < patience))) {
    return false;
  }
  asked_at_ = now;
  asserted_ = false;  // an event that was not heard is told again
  add_events(button);
  return true;
}

void PciPort::let_go() {
  asked_at_ = Clock::now();
  if (!std::exchange(has_let_go_, true)) on_let_go_();
}

void PciPort::add_events(std::uint16_t which) {
  slot_status_ |= which;
  set_config_at(express_ + slot_status_at, slot_status_);
  update_interrupt();
}

// §6.7.3.4: a message goes out when the condition comes to hold.
void PciPort::update_interrupt() {
  const auto control = config_at<std::uint16_t>(express_ + slot_control_at);
  std::uint16_t enabled = control & (button | presence_changed);
  if ((control & link_enable) != 0) enabled |= link_changed;
  const bool asserted = (control & interrupt_enable) != 0 && (slot_status_ & enabled) != 0;
  if (asserted && !asserted_) msi_.raise();
  asserted_ = asserted;
}

// --- What the guest writes ---

void PciPort::config_written(std::uint32_t offset, std::size_t size) {
  if (overlap(offset, size, secondary_bus_at, 1)) {
    secondary_bus_.store(config_at<std::uint8_t>(secondary_bus_at));
  }
  const bool windows = overlap(offset, size, memory_base_at, windows_end - memory_base_at);
  if (device_ && (windows || overlap(offset, size, command_at, 2))) device_->gate_changed();
  if (overlap(offset, size, bridge_control_at, 2)) bridge_control_written();
  if (overlap(offset, size, express_ + slot_status_at, 2)) slot_status_written(offset, size);
  if (overlap(offset, size, express_ + slot_control_at, 2)) slot_control_written();
  if (!overlap(offset, size, msi_at_, Msi::size)) return;
  std::array<std::byte, Msi::size> capability;
  for (std::uint32_t i = 0; i < Msi::size; ++i) capability[i] = config_at<std::byte>(msi_at_ + i);
  msi_.set(capability);
}

void PciPort::config_about_to_be_read(std::uint32_t offset, std::size_t size) {
  if (!overlap(offset, size, msi_at_ + Msi::pending_at, 4)) return;
  set_config_at<std::uint32_t>(msi_at_ + Msi::pending_at, msi_.pending() ? 1 : 0);
}

// A one clears its event; only the bytes that were written count.
void PciPort::slot_status_written(std::uint32_t offset, std::size_t size) {
  const auto at = express_ + slot_status_at;
  const auto written = config_at<std::uint16_t>(at);
  for (std::uint32_t i = 0; i < 2; ++i) {
    if (!overlap(offset, size, at + i, 1)) continue;
    slot_status_ &= static_cast<std::uint16_t>(~(written & events & 0xff << 8 * i));
  }
  set_config_at(at, slot_status_);
  update_interrupt();
}

void PciPort::slot_control_written() {
  update_interrupt();
  if (device_ && asked_at_ && indicator() == indicator_off) let_go();
}

// The bus is reset while the bit is set.
void PciPort::bridge_control_written() {
  const auto before = std::exchange(bridge_control_, config_at<std::uint16_t>(bridge_control_at));
  if (device_ && (bridge_control_ & ~before & bridge_reset) != 0) device_->reset();
}

bool PciPort::forwards(std::uint64_t address, std::uint64_t size) const {
  if ((config_at<std::uint16_t>(command_at) & command_memory) == 0) return false;
  const auto last = address + (size - 1);
  if (last < address) return false;
  const auto field = [this](std::uint32_t at) {
    const auto bits = config_at<std::uint16_t>(at) & window_bits;
    return static_cast<std::uint64_t>(bits) << 16;
  };
  const auto upper = [this](std::uint32_t at) {
    return std::uint64_t{config_at<std::uint32_t>(at)} << 32;
  };
  const auto inside = [&](std::uint64_t base, std::uint64_t limit) {
    return base <= address && last <= (limit | (window_unit - 1));
  };
  return inside(field(memory_base_at), field(memory_limit_at)) ||
         inside(upper(wide_base_upper_at) | field(wide_base_at),
                upper(wide_limit_upper_at) | field(wide_limit_at));
}

}  // namespace millrace::vmm
