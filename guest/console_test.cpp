#include "guest/console.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

#include "guest/testing/host.hpp"

namespace millrace::guest {
namespace {

using testing::Host, testing::Queue;
using virtio::Fault;
using virtio::wire::ConsoleControl, virtio::wire::ConsoleEvent;

constexpr std::uint32_t buffer = 4096;

// A program of the host.
class Client {
 public:
  explicit Client(const std::string& path)
      : socket_{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)} {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    EXPECT_EQ(::connect(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  // As much as the other side takes. Answers how much.
  std::size_t say(std::string_view text) {
    std::size_t said = 0;
    while (said < text.size()) {
      const auto count = ::send(socket_.get(), text.data() + said, text.size() - said, 0);
      if (count <= 0) break;
      said += static_cast<std::size_t>(count);
    }
    return said;
  }
  // What came so far, at most `most` bytes.
  void listen(std::string& heard, std::size_t most = ~0ull) {
    std::array<char, 4096> piece;
    while (heard.size() < most) {
      const auto count =
          ::recv(socket_.get(), piece.data(), std::min(piece.size(), most - heard.size()), 0);
      if (count <= 0) return;
      heard.append(piece.data(), static_cast<std::size_t>(count));
    }
  }
  void hang_up() { socket_.reset(); }

 private:
  base::Fd socket_;
};

// What a driver knows of its ports. Split and packed.
class Console : public ::testing::TestWithParam<bool> {
 protected:
  Console() : folder{::testing::TempDir() + "console-" + std::to_string(::getpid())} {
    std::filesystem::create_directory(folder);
  }
  ~Console() override { std::filesystem::remove_all(folder); }

  std::string path(const std::string& name) const { return folder + "/" + name; }
  PortSettings port(const std::string& name, bool terminal = false) const {
    PortSettings settings;
    settings.name = name;
    settings.socket = path(name);
    settings.terminal = terminal;
    return settings;
  }
  void make(const std::vector<PortSettings>& ports, unsigned ports_max = 4) {
    auto made = make_device("c0", ConsoleSettings{ports_max, ports}, host.means());
    ASSERT_TRUE(made) << made.error().message;
    device = *std::move(made);
    device->set_features(device->features());
  }
  virtio::testing::DriverConfig ring(std::uint16_t start = 0) const {
    return {.size = 16, .packed = GetParam(), .start = start};
  }
  // Control queues with buffers, as a driver has them.
  void start_control(std::uint16_t from = 0) {
    in = std::make_unique<Queue>(host, *device, 2, ring(from));
    out = std::make_unique<Queue>(host, *device, 3, ring(from));
    for (unsigned i = 0; i < 8; ++i) offer(*in);
  }
  void offer(Queue& queue) {
    const auto at = queue.driver.allocate(buffer);
    const auto id = queue.driver.add({}, {{at, buffer}});
    ASSERT_TRUE(id);
    places[{&queue, *id}] = at;
    queue.driver.submit();
  }
  // The next buffer's bytes; the buffer is offered again.
  std::string take(Queue& queue) {
    const auto used = queue.next();
    if (used.length == ~0u) return {};
    const auto at = places.at({&queue, used.id});
    std::string bytes(used.length, 0);
    queue.driver.read(at, std::as_writable_bytes(std::span{bytes}));
    const auto id = queue.driver.add({}, {{at, buffer}});
    places[{&queue, *id}] = at;
    queue.driver.submit();
    return bytes;
  }
  void say(ConsoleEvent event, unsigned id = 0, std::uint16_t value = 1) {
    const auto at = out->driver.allocate(sizeof(ConsoleControl));
    out->driver.store(at,
                      ConsoleControl{base::le32{id}, base::le16{static_cast<std::uint16_t>(event)},
                                     base::le16{value}});
    out->driver.add({{at, sizeof(ConsoleControl)}}, {});
    out->driver.submit();
    out->next();
  }
  // "EVENT ID VALUE NAME", as the driver is told.
  std::string told() {
    const auto bytes = take(*in);
    if (bytes.size() < sizeof(ConsoleControl)) return "nothing";
    ConsoleControl message;
    std::memcpy(&message, bytes.data(), sizeof message);
    return std::to_string(message.event.host()) + " " + std::to_string(message.id.host()) + " " +
           std::to_string(message.value.host()) + " " + bytes.substr(sizeof message);
  }
  // A port that a program of the guest has open, on queues 4 and 5.
  void open_port_1() {
    start_control();
    say(ConsoleEvent::device_ready);
    EXPECT_EQ(told(), "1 1 1 ");
    say(ConsoleEvent::port_ready, 1);
    EXPECT_EQ(told(), "7 1 1 agent");
    to_guest = std::make_unique<Queue>(host, *device, 4, ring());
    from_guest = std::make_unique<Queue>(host, *device, 5, ring());
    say(ConsoleEvent::port_open, 1);
  }
  // A buffer of `text` from the guest.
  void write(const std::string& text) {
    from_guest->driver.free_all();
    const auto at = from_guest->driver.allocate(text.size());
    from_guest->driver.write(at, std::as_bytes(std::span{text}));
    ASSERT_TRUE(from_guest->driver.add({{at, static_cast<std::uint32_t>(text.size())}}, {}));
    from_guest->driver.submit();
  }
  std::uint64_t figure(const std::string& name) const {
    for (const auto& each : device->figures()) {
      if (each.name == name) return each.value;
    }
    ADD_FAILURE() << "no figure " << name;
    return 0;
  }

  Host host;
  std::string folder;
  std::unique_ptr<Device> device;
  std::map<std::pair<Queue*, std::uint16_t>, std::uint64_t> places;
  std::unique_ptr<Queue> in, out, to_guest, from_guest;
};
INSTANTIATE_TEST_SUITE_P(Rings, Console, ::testing::Bool());

TEST_P(Console, TellsADriverOfEveryPort) {
  make({port("tty", true), port("agent")});
  start_control();
  say(ConsoleEvent::device_ready);
  EXPECT_EQ(told(), "1 0 1 ");
  EXPECT_EQ(told(), "1 1 1 ");
  say(ConsoleEvent::port_ready, 0);
  EXPECT_EQ(told(), "4 0 1 ") << "a terminal";
  EXPECT_EQ(told(), "7 0 1 tty");
  say(ConsoleEvent::port_ready, 1);
  EXPECT_EQ(told(), "7 1 1 agent");
  Client client{path("agent")};
  EXPECT_EQ(told(), "6 1 1 ");
  client.hang_up();
  EXPECT_EQ(told(), "6 1 0 ");
}

TEST_P(Console, CarriesBytesBothWays) {
  make({port("agent")});
  open_port_1();
  for (unsigned i = 0; i < 8; ++i) offer(*to_guest);
  Client client{path("agent")};
  EXPECT_EQ(told(), "6 1 1 ");
  write("from the guest");
  EXPECT_EQ(from_guest->next().length, 0u);
  std::string heard;
  EXPECT_TRUE(host.wait([&] {
    client.listen(heard);
    return heard.size() >= 14;
  }));
  EXPECT_EQ(heard, "from the guest");
  client.say("from the host");
  EXPECT_EQ(take(*to_guest), "from the host");
  EXPECT_EQ(figure("bytes_in"), 13u);
  EXPECT_EQ(figure("bytes_out"), 14u);
  EXPECT_EQ(figure("ports_open"), 1u);
}

// A program that does not read holds up the guest's program, and loses nothing.
TEST_P(Console, AHostThatDoesNotReadStopsTheGuest) {
  make({port("agent")});
  open_port_1();
  Client client{path("agent")};
  EXPECT_EQ(told(), "6 1 1 ");
  std::string sent, heard;
  std::string text(30'000, ' ');
  const auto next = [&] {
    for (std::size_t i = 0; i < text.size(); ++i) {
      text[i] = static_cast<char>('a' + (sent.size() + i * 7) % 26);
    }
    sent += text;
    write(text);
  };
  // Until a buffer does not come back.
  unsigned written = 0;
  for (bool back = true; back; ++written) {
    ASSERT_LT(written, 1000u) << "nothing holds the guest up";
    next();
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds{200};
    back = false;
    while (!back && std::chrono::steady_clock::now() < until) {
      host.loop.step(std::chrono::milliseconds{0});
      back = from_guest->driver.poll().has_value();
    }
  }
  EXPECT_TRUE(host.wait([&] {
    client.listen(heard);
    return heard.size() >= sent.size();
  }));
  EXPECT_EQ(heard, sent);
  from_guest->next();
  EXPECT_EQ(figure("dropped_bytes"), 0u);
}

TEST_P(Console, AGuestThatDoesNotReadStopsTheHost) {
  make({port("agent")});
  open_port_1();
  Client client{path("agent")};
  EXPECT_EQ(told(), "6 1 1 ");
  std::string text(4 << 20, ' ');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>('a' + i * 13 % 26);
  std::size_t said = 0;
  for (std::size_t before = ~0ull; before != said;) {
    before = said;
    said += client.say(std::string_view{text}.substr(said));
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds{100};
    while (std::chrono::steady_clock::now() < until) {
      host.loop.step(std::chrono::milliseconds{0});
    }
  }
  ASSERT_LT(said, text.size()) << "nothing holds the host up";
  for (unsigned i = 0; i < 8; ++i) offer(*to_guest);
  std::string heard;
  while (heard.size() < text.size()) {
    said += client.say(std::string_view{text}.substr(said));
    const auto piece = take(*to_guest);
    ASSERT_FALSE(piece.empty());
    heard += piece;
  }
  EXPECT_TRUE(heard == text);
}

TEST_P(Console, ABufferLargerThanThePipeArrivesWhole) {
  make({port("agent")});
  open_port_1();
  Client client{path("agent")};
  EXPECT_EQ(told(), "6 1 1 ");
  std::string text(900'000, ' '), heard;
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>('a' + i * 17 % 26);
  write(text);
  EXPECT_TRUE(host.wait([&] {
    client.listen(heard);
    return heard.size() >= text.size();
  }));
  EXPECT_TRUE(heard == text);
  EXPECT_EQ(from_guest->next().length, 0u);
  EXPECT_EQ(figure("bytes_out"), text.size());
}

// A queue that stops in the middle of such a buffer gives it back; the daemon does not hang.
TEST_P(Console, AQueueStopsWhileNobodyReads) {
  make({port("agent")});
  open_port_1();
  Client client{path("agent")};
  EXPECT_EQ(told(), "6 1 1 ");
  write(std::string(1'000'000, 'x'));
  EXPECT_TRUE(host.wait([&] { return figure("bytes_out") >= 64u << 10; }));
  from_guest->stop();
  EXPECT_TRUE(from_guest->driver.poll());
  EXPECT_GT(figure("dropped_bytes"), 0u);
}

TEST_P(Console, WithoutAProgramOfTheHostBytesAreDropped) {
  make({port("agent")});
  open_port_1();
  for (unsigned i = 0; i < 20; ++i) {
    write(std::string(30'000, 'x'));
    from_guest->next();
  }
  EXPECT_EQ(figure("dropped_bytes"), 600'000u);
  Client client{path("agent")};
  EXPECT_EQ(told(), "6 1 1 ");
  write("new");
  from_guest->next();
  std::string heard;
  EXPECT_TRUE(host.wait([&] {
    client.listen(heard);
    return heard.size() >= 3;
  }));
  EXPECT_EQ(heard, "new");
}

// A kernel waits for its console in a loop: it must never have to.
TEST_P(Console, ATerminalNeverHoldsTheGuestUp) {
  make({port("tty", true)});
  start_control();
  say(ConsoleEvent::device_ready);
  EXPECT_EQ(told(), "1 0 1 ");
  say(ConsoleEvent::port_ready, 0);
  EXPECT_EQ(told(), "4 0 1 ");
  EXPECT_EQ(told(), "7 0 1 tty");
  from_guest = std::make_unique<Queue>(host, *device, 1, ring());
  Client client{path("tty")};
  EXPECT_EQ(told(), "6 0 1 ");
  for (unsigned i = 0; i < 100; ++i) {
    write(std::string(30'000, 'x'));
    EXPECT_EQ(from_guest->next().length, 0u);
  }
  EXPECT_GT(figure("dropped_bytes"), 0u);
}

TEST_P(Console, PortsComeAndGo) {
  make({}, 3);
  start_control();
  say(ConsoleEvent::device_ready);
  ASSERT_TRUE(device->add_port(port("one")));
  EXPECT_EQ(told(), "1 1 1 ");
  say(ConsoleEvent::port_ready, 1);
  EXPECT_EQ(told(), "7 1 1 one");
  ASSERT_TRUE(device->add_port(port("two")));
  EXPECT_EQ(told(), "1 2 1 ");
  const auto full = device->add_port(port("three"));
  ASSERT_FALSE(full);
  EXPECT_NE(full.error().message.find("ports_max"), std::string::npos);
  const auto twice = device->add_port(port("two"));
  ASSERT_FALSE(twice);
  Client client{path("one")};
  EXPECT_EQ(told(), "6 1 1 ");
  ASSERT_TRUE(device->remove_port("one"));
  EXPECT_EQ(told(), "2 1 1 ");
  EXPECT_FALSE(std::filesystem::exists(path("one")));
  EXPECT_FALSE(device->remove_port("one"));
  EXPECT_EQ(device->ports().size(), 1u);
  ASSERT_TRUE(device->add_port(port("three")));
  EXPECT_EQ(told(), "1 1 1 ");
  say(ConsoleEvent::port_ready, 1);
  EXPECT_EQ(told(), "7 1 1 three");
}

// The driver of a ring that goes on does not say again what it said to the daemon before this one.
TEST_P(Console, AfterARestartThePortsAreKnownAgain) {
  make({port("agent")});
  start_control(5);
  EXPECT_EQ(told(), "1 1 1 ");
  say(ConsoleEvent::port_ready, 1);
  EXPECT_EQ(told(), "7 1 1 agent");
  EXPECT_EQ(told(), "6 1 0 ") << "the program that was connected is not any more";
  EXPECT_TRUE(host.wait([&] { return device->ports().at(0).guest_open; }));
  to_guest = std::make_unique<Queue>(host, *device, 4, ring());
  offer(*to_guest);
  Client client{path("agent")};
  EXPECT_EQ(told(), "6 1 1 ");
  client.say("hello again");
  EXPECT_EQ(take(*to_guest), "hello again");
}

TEST_P(Console, NonsenseFromTheDriverIsNoOne) {
  make({port("agent")});
  start_control();
  say(ConsoleEvent::port_ready, 1);  // before it was told of it
  say(ConsoleEvent::port_open, 7);
  say(ConsoleEvent::port_open, 0xffff'ffff);
  say(static_cast<ConsoleEvent>(0x7777), 1);
  say(ConsoleEvent::device_ready);
  EXPECT_EQ(told(), "1 1 1 ");
  say(ConsoleEvent::port_ready, 1);
  EXPECT_EQ(told(), "7 1 1 agent");
  const auto at = out->driver.allocate(16);
  out->driver.add({{at, 7}}, {});
  out->driver.submit();
  EXPECT_TRUE(host.wait([&] { return device->queue_status(3).fault == Fault::request_malformed; }));
}

// More messages than there are buffers for their answers: the driver waits, nothing is lost.
TEST_P(Console, ADriverThatTakesNoAnswersWaits) {
  make({port("agent")});
  start_control();
  say(ConsoleEvent::device_ready);
  EXPECT_EQ(told(), "1 1 1 ");
  unsigned sent = 0;
  const auto at = out->driver.allocate(sizeof(ConsoleControl));
  out->driver.store(at, ConsoleControl{base::le32{1}, base::le16{3}, base::le16{1}});
  for (unsigned quiet = 0; quiet < 200; ++quiet) {
    host.loop.step(std::chrono::milliseconds{1});
    while (out->driver.poll()) quiet = 0;
    while (out->driver.add({{at, sizeof(ConsoleControl)}}, {})) ++sent;
    out->driver.submit();
    ASSERT_LT(sent, 100'000u) << "nothing holds the driver up";
  }
  for (unsigned i = 0; i < sent; ++i) ASSERT_EQ(told(), "7 1 1 agent") << i;
}

TEST_P(Console, ASocketOfAProcessThatDiedIsTakenOver) {
  {
    auto old = PortListener::open(path("agent"), 0600);
    ASSERT_TRUE(old);
    const auto second = PortListener::open(path("agent"), 0600);
    ASSERT_FALSE(second) << "somebody listens there";
    std::filesystem::rename(path("agent"), path("kept"));
  }
  std::filesystem::rename(path("kept"), path("agent"));
  make({port("agent")});
  std::filesystem::remove(path("file"));
  std::ofstream{path("file")} << "text";
  EXPECT_FALSE(device->add_port(port("file")));
  EXPECT_TRUE(std::filesystem::exists(path("file")));
}

}  // namespace
}  // namespace millrace::guest
