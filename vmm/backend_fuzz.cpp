// libFuzzer target for a back-end that sends nonsense: the input says what comes back on the socket
// of a BackendConnection, whole messages with descriptors or raw bytes, on the back-end's own
// channel too, and which steps the VMM takes. Every step ends, with one line where it fails, and no
// descriptor is left over.
//
// Input: a byte of options, then answers until a zero operation, then steps until the end.
//   An answer: an operation byte. Bits 0..1: 1 an answer to the request that the next byte names,
//   with the flags of an answer; 2 a message with flags of the input's; 3 raw bytes. Bits 2..3: so
//   many descriptors. Bits 4..7 with the next byte: the payload's size.
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstring>

#include "base/log.hpp"
#include "vhost/testing/harness.hpp"
#include "virtio/features.hpp"
#include "virtio/wire/blk.hpp"
#include "vmm/backend_connection.hpp"
#include "vmm/testing/fuzz_input.hpp"

namespace {

using namespace millrace;
using namespace millrace::vmm;
using vhost::wire::Request;
using vmm::testing::FuzzInput;

constexpr std::size_t config_size = sizeof(virtio::wire::BlkConfig);

// The back-end's end of the socket. Everything is written before the VMM asks.
class Peer {
 public:
  explicit Peer(base::Fd socket) : frontend_{std::move(socket)} {
    frontend_.set_timeout(std::chrono::milliseconds{1});
  }
  void answer(Request request, std::span<const std::byte> payload, std::span<const int> fds = {},
              std::uint32_t flags = vhost::wire::version | vhost::wire::flag_reply) {
    [[maybe_unused]] const auto full = frontend_.send(request, payload, fds, flags);
  }
  void say(std::span<const std::byte> bytes) {
    [[maybe_unused]] const auto full = frontend_.send_bytes(bytes);
  }
  void finish() { ::shutdown(frontend_.fd(), SHUT_WR); }
  // The descriptor that came with SET_BACKEND_REQ_FD, where it came.
  base::Fd channel() {
    while (true) {
      auto message = frontend_.receive();
      if (!message) return {};
      if (message->header.request == static_cast<std::uint32_t>(Request::set_backend_req_fd) &&
          !message->fds.empty()) {
        return std::move(message->fds.front());
      }
    }
  }

 private:
  vhost::Frontend frontend_;
};

// What a good back-end answers, so that the nonsense comes late.
void negotiate_well(Peer& peer, std::uint64_t features, std::uint64_t protocol) {
  const auto word = [&](Request request, std::uint64_t value) {
    peer.answer(request, vhost::bytes_of(value));
  };
  word(Request::get_features, features | virtio::feature::protocol_features);
  word(Request::get_protocol_features, protocol);
  const bool acknowledges = (protocol & vhost::wire::protocol::reply_ack) != 0;
  if ((protocol & vhost::wire::protocol::mq) != 0) word(Request::get_queue_num, 2);
  if ((protocol & vhost::wire::protocol::backend_req) != 0 && acknowledges) {
    word(Request::set_backend_req_fd, 0);
  }
  if ((protocol & vhost::wire::protocol::config) != 0) {
    std::array<std::byte, sizeof(vhost::wire::ConfigHeader) + config_size> config{};
    peer.answer(Request::get_config, config);
  }
}

void send_answers(Peer& peer, FuzzInput& input, std::span<const int> descriptors) {
  while (!input.empty()) {
    const auto operation = input.take<std::uint8_t>();
    if ((operation & 3) == 0) return;
    const auto request = static_cast<Request>(input.take<std::uint8_t>());
    const auto size = (operation >> 4) * 256u + input.take<std::uint8_t>();
    std::vector<int> fds;
    for (unsigned i = 0; i < (operation >> 2 & 3u); ++i) {
      fds.push_back(descriptors[(static_cast<unsigned>(request) + i) % descriptors.size()]);
    }
    if ((operation & 3) == 1) {
      peer.answer(request, input.take_bytes(size), fds);
    } else if ((operation & 3) == 2) {
      const auto flags = input.take<std::uint32_t>();
      peer.answer(request, input.take_bytes(size), fds, flags);
    } else {
      peer.say(input.take_bytes(size));
    }
  }
}

base::Result<void> take_step(BackendConnection& connection, std::uint8_t step, const GuestRam& ram,
                             InflightMemory& inflight, int event) {
  const std::array<std::uint8_t, 6> mac{2, 0, 0, 0, 0, 1};
  const auto region = reinterpret_cast<std::uintptr_t>(ram.regions().front().host);
  switch (step % 12) {
    case 0:
      return connection.read_config();
    case 1:
      return connection.share(ram.regions());
    case 2:
      return connection.share_inflight(inflight, 2, 64);
    case 3:
      clear_part(inflight, step / 12 % 3u, step % 2 != 0);
      return {};
    case 4:
      return connection.start({.vring = 1,
                               .size = 64,
                               .descriptors = region,
                               .driver = region + 4096,
                               .device = region + 8192,
                               .kick = event,
                               .call = event,
                               .error = event});
    case 5:
      return connection.stop(1);
    case 6:
      return connection.set_features(connection.offer().features);
    case 7:
      return connection.set_status(15);
    case 8:
      return connection.reset();
    case 9:
      return connection.set_mtu(1500);
    case 10:
      return connection.announce(mac);
    default:
      return connection.write_config(32, std::as_bytes(std::span{mac}.first(1)));
  }
}

void talk(FuzzInput& input, const GuestRam& ram, std::span<const int> descriptors, int event) {
  auto [ours, theirs] = vhost::testing::make_sockets();
  Peer peer{std::move(theirs)};
  const auto options = input.take<std::uint8_t>();
  if ((options & 1) != 0) {
    const auto features = input.take<std::uint64_t>();
    negotiate_well(peer, features, input.take<std::uint32_t>());
  }
  send_answers(peer, input, descriptors);
  peer.finish();
  const BackendConnection::Timeouts timeouts{std::chrono::milliseconds{50},
                                             std::chrono::milliseconds{50}};
  auto made = BackendConnection::negotiate(std::move(ours), config_size, timeouts, -1);
  if (!made) {
    CHECK(made.error().message.find('\n') == std::string::npos);
    return;
  }
  auto& connection = **made;
  for (const auto kind : {DeviceKind::blk, DeviceKind::net}) {
    const auto shape = shape_of(connection.offer(), {.kind = kind});
    if (shape) CHECK(shape->queues <= 256 && shape->queues <= shape->vrings);
  }
  if (connection.request_fd() >= 0) {
    if (auto channel = peer.channel(); channel.valid()) {
      Peer own{std::move(channel)};
      send_answers(own, input, descriptors);
      own.finish();
      for (int i = 0; i < 8 && connection.request_fd() >= 0; ++i) {
        if (!connection.take_request()) break;
      }
    }
  }
  InflightMemory inflight;
  for (int steps = 0; steps < 32 && !input.empty(); ++steps) {
    const auto ok = take_step(connection, input.take<std::uint8_t>(), ram, inflight, event);
    if (!ok && !connection.refused()) return;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  spdlog::set_level(spdlog::level::off);
  static const auto ram = GuestRam::make({.bytes = 64ull << 20});
  static const base::Fd event = vhost::testing::make_event(),
                        memory = vhost::testing::make_memory(1 << 20),
                        small = vhost::testing::make_memory(100),
                        other = vhost::testing::make_sockets().first;
  CHECK(ram);
  const std::array descriptors{memory.get(), small.get(), event.get(), other.get()};
  const auto before = vhost::testing::open_fds();
  {
    FuzzInput input{data, size};
    talk(input, *ram, descriptors, event.get());
  }
  CHECK(vhost::testing::open_fds() == before);
  return 0;
}
