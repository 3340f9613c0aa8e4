// Session: device configuration space, the channel for our own requests, and net's two messages.
#include <algorithm>

#include "base/log.hpp"
#include "vhost/session.hpp"

namespace millrace::vhost {

namespace {

// Where the Rust front-ends (Cloud Hypervisor) start to count: the offset of the configuration
// space in the legacy MMIO register layout.
constexpr std::uint32_t mmio_config_offset = 0x100;
// Smallest MTU of IPv4 (RFC 791) and largest that the field holds.
constexpr std::uint64_t mtu_min = 68, mtu_max = 65535;

}  // namespace

// A configuration space that ends before that offset has nothing there, so the offset means its
// start.
std::uint64_t Session::config_offset(std::uint32_t offset) const {
  const bool counted_from_there =
      offset >= mmio_config_offset && device_.config().size() <= mmio_config_offset;
  return counted_from_there ? offset - mmio_config_offset : offset;
}

// The answer is as long as the question; what the device has not is zero. An answer without payload
// says that the question was wrong.
Session::Handled Session::get_config(Message& message) {
  const auto asked = message.as<wire::ConfigHeader>();
  if (message.payload.size() != sizeof asked + std::size_t{asked.size}) {
    note_refused("GET_CONFIG refused: its size does not fit its " + std::to_string(asked.size) +
                 " bytes");
    reply({});
    return Progress::replied;
  }
  const auto config = device_.config();
  const auto offset = config_offset(asked.offset);
  std::vector<std::byte> answer(sizeof asked + asked.size);
  std::memcpy(answer.data(), &asked, sizeof asked);
  if (offset < config.size()) {
    const auto rest = config.subspan(static_cast<std::size_t>(offset));
    const auto count = std::min<std::size_t>(rest.size(), asked.size);
    std::copy_n(rest.begin(), count, answer.begin() + sizeof asked);
  }
  reply(answer);
  return Progress::replied;
}

// The flags do not matter: front-ends disagree about their values, and the device refuses to write
// what is not writable in any case. That is the guest's fault, not the front-end's, so it does not
// end the session.
Session::Handled Session::set_config(Message& message) {
  const auto asked = message.as<wire::ConfigHeader>();
  if (message.payload.size() != sizeof asked + std::size_t{asked.size}) {
    return base::fail("its size does not fit its " + std::to_string(asked.size) + " bytes");
  }
  const auto offset = static_cast<std::uint32_t>(config_offset(asked.offset));
  const auto bytes = std::span<const std::byte>{message.payload}.subspan(sizeof asked);
  const auto written = device_.write_config(offset, bytes);
  if (written) return Progress::done;
  if (ack_wanted()) return base::Unexpected{written.error()};
  note_refused("SET_CONFIG refused: " + written.error().message);
  return Progress::done;
}

Session::Handled Session::set_backend_req_fd(Message& message) {
  if (base::kind_of(message.fds[0]) != base::FdKind::socket) {
    return base::fail("its descriptor is not a socket");
  }
  auto channel = std::make_unique<BackendChannel>(loop_, std::move(message.fds[0]),
                                                  acked(wire::protocol::reply_ack));
  if (const auto ok = channel->open(); !ok) return base::Unexpected{ok.error()};
  backend_ = std::move(channel);
  return Progress::done;
}

Session::Handled Session::send_rarp(Message& message) {
  std::array<std::uint8_t, 6> mac;
  std::memcpy(mac.data(), message.payload.data(), mac.size());
  if (const auto ok = device_.announce(mac); !ok) return base::Unexpected{ok.error()};
  return Progress::done;
}

Session::Handled Session::net_set_mtu(Message& message) {
  const auto mtu = message.as<std::uint64_t>();
  if (mtu < mtu_min || mtu > mtu_max) return base::fail("an MTU of " + std::to_string(mtu));
  if (const auto ok = device_.set_mtu(static_cast<std::uint16_t>(mtu)); !ok) {
    return base::Unexpected{ok.error()};
  }
  return Progress::done;
}

}  // namespace millrace::vhost
