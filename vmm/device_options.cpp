#include "vmm/device_options.hpp"

#include <array>
#include <cstdio>
#include <optional>

#include "base/log.hpp"
#include "vmm/vhost_device.hpp"

namespace millrace::vmm {

using base::fail;
using base::Result;

namespace {

using Mac = std::array<std::uint8_t, 6>;

std::optional<Mac> parse_mac(const std::string& text) {
  Mac mac{};
  int used = 0;
  const int got = std::sscanf(text.c_str(), "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%n", &mac[0],
                              &mac[1], &mac[2], &mac[3], &mac[4], &mac[5], &used);
  const bool whole = got == 6 && static_cast<std::size_t>(used) == text.size();
  const bool is_multicast = (mac[0] & 1) != 0;
  if (!whole || is_multicast || mac == Mac{}) return std::nullopt;
  return mac;
}

}  // namespace

Result<MakeFunction> make_device(const DeviceOption& option, std::function<int()> cancel) {
  VhostDeviceOptions options;
  options.socket = option.socket;
  options.queues = option.queues;
  options.queue_size = static_cast<std::uint16_t>(option.queue_size);
  options.wait = option.wait;
  if (!option.mac.empty()) {
    options.mac = parse_mac(option.mac);
    if (!options.mac) {
      return fail("--net: mac=" + option.mac +
                  " is no address of one station, such as "
                  "52:54:00:12:34:56");
    }
  }
  const auto kind = option.kind == DeviceOption::Kind::net ? DeviceKind::net : DeviceKind::blk;
  return MakeFunction{[options, kind, cancel = std::move(cancel)](
                          Doorbells& doorbells, Interrupts& interrupts,
                          const GuestRam& ram) -> Result<std::unique_ptr<PciFunction>> {
    auto now = options;
    now.cancel = cancel();
    auto device = VhostDevice::make(kind, now, doorbells, interrupts, ram);
    if (!device) return base::Unexpected{device.error()};
    return std::unique_ptr<PciFunction>{*std::move(device)};
  }};
}

}  // namespace millrace::vmm
