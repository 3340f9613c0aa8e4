// libFuzzer target for the vhost-user back-end: the input is a script of writes to the socket of a
// Session over a FakeDevice, with real descriptors. After each script no descriptor may be left
// over and no ring started.
//
// Script, repeated until the input ends: an operation byte, then its operands.
//   low 3 bits 0..4: a message: request byte, payload size byte, descriptor byte, then the payload
//              5:    raw bytes: a count byte, then so many bytes
//              6:    the device's answers are held back (odd high bits) or given
//              7:    turn the loop; with high bits set the front-end hangs up and a new one comes
#include <cstdint>
#include <span>

#include "base/log.hpp"
#include "vhost/testing/harness.hpp"

namespace {

using namespace millrace;
using vhost::testing::Harness;

class Input {
 public:
  explicit Input(std::span<const std::uint8_t> bytes) : bytes_{bytes} {}
  [[nodiscard]] bool empty() const { return bytes_.empty(); }
  std::uint8_t byte() {
    if (bytes_.empty()) return 0;
    const auto value = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return value;
  }
  std::vector<std::byte> take(std::size_t count) {
    std::vector<std::byte> out(count);
    for (auto& one : out) one = std::byte{byte()};
    return out;
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

// One of each kind that a front-end might send. They live as long as the process.
struct Pool {
  base::Fd memory = vhost::testing::make_memory(1 << 20), event = vhost::testing::make_event();
  base::Fd small = vhost::testing::make_memory(4096), directory{::open("/", O_RDONLY | O_CLOEXEC)};
  base::Fd zero{::open("/dev/zero", O_RDWR | O_CLOEXEC)}, read_end, write_end, channel, listener;
  Pool() {
    std::array<int, 2> pipe{};
    CHECK(::pipe2(pipe.data(), O_CLOEXEC | O_NONBLOCK) == 0);
    read_end = base::Fd{pipe[0]};
    write_end = base::Fd{pipe[1]};
    auto ends = vhost::testing::make_sockets();
    channel = std::move(ends.first);
    listener = std::move(ends.second);
  }
  [[nodiscard]] int at(unsigned index) const {
    const std::array all{memory.get(), event.get(),    small.get(),     directory.get(),
                         zero.get(),   read_end.get(), write_end.get(), channel.get()};
    return all[index % all.size()];
  }
};

void message(Harness& h, Input& input, const Pool& pool) {
  const auto request = static_cast<vhost::wire::Request>(input.byte());
  const auto size = input.byte();
  const auto descriptors = input.byte();
  const auto flags =
      vhost::wire::version | ((descriptors & 0x80) != 0 ? vhost::wire::flag_need_reply : 0u);
  std::vector<int> fds(descriptors & 3u);
  for (unsigned i = 0; i < fds.size(); ++i) fds[i] = pool.at((descriptors >> 2) + i);
  // A front-end that is gone cannot be sent to; that is fine.
  const auto sent = h.frontend.send(request, input.take(size), fds, flags);
  if (!sent) h.ended = true;
}

void again(Harness& h) {
  h.frontend.hang_up();
  h.device.hold = false;
  while (h.device.answer_one()) {
  }
  h.settle();
  CHECK(h.session->phase() == vhost::Session::Phase::ended);
  CHECK(h.device.started.empty());
  h.connect();
  h.device.config_hook();
}

void drain_replies(const Harness& h, const Pool& pool) {
  std::array<std::byte, 4096> sink;
  while (h.frontend.fd() >= 0 &&
         ::recv(h.frontend.fd(), sink.data(), sink.size(), MSG_DONTWAIT) > 0) {
  }
  while (::recv(pool.listener.get(), sink.data(), sink.size(), MSG_DONTWAIT) > 0) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const bool quiet = [] {
    spdlog::set_level(spdlog::level::off);
    return true;
  }();
  static const Pool pool;
  CHECK(quiet);
  const auto before = vhost::testing::open_fds();
  {
    Harness h{size % 2 == 0 ? virtio::DeviceKind::blk : virtio::DeviceKind::net};
    h.frontend.set_timeout(std::chrono::milliseconds{100});
    h.device.offered |= 1ull << 17;
    if (size > 0 && (data[0] & 0x80) != 0) {
      h.negotiate();
      h.give_memory();
      h.start_ring(0);
    }
    Input input{{data, size}};
    while (!input.empty()) {
      const auto operation = input.byte();
      switch (operation & 7) {
        case 5: {
          const auto sent = h.frontend.send_bytes(input.take(input.byte()));
          if (!sent) h.ended = true;
          break;
        }
        case 6:
          h.device.hold = (operation & 8) != 0;
          h.device.answer_one();
          if (h.device.config_hook) h.device.config_hook();
          break;
        case 7:
          if (operation > 0xc0) again(h);
          break;
        default:
          message(h, input, pool);
      }
      h.turn();
      h.turn();
      drain_replies(h, pool);
      if (h.ended) again(h);
    }
    again(h);
  }
  CHECK(vhost::testing::open_fds() == before);
  return 0;
}
