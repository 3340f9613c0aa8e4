// Uplinks through DPDK's virtual devices, with the EAL as the daemon starts it.
#include <gtest/gtest.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/side_thread.hpp"
#include "daemon/eal.hpp"
#include "switch/ethdev_port.hpp"
#include "switch/testing/switchboard.hpp"

namespace millrace::vswitch {
namespace {

using namespace testing;

class UplinkTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto started = daemon::start_eal(128);
    if (!started) GTEST_SKIP() << started.error().message;
  }
  static UplinkConfig named(const std::string& device, const PortConfig& port) {
    UplinkConfig config;
    config.name = "up";
    config.device = device;
    config.port = port;
    return config;
  }
  std::unique_ptr<Uplink> open(const std::string& device, const PortConfig& port = {}) {
    return open(named(device, port));
  }
  std::unique_ptr<Uplink> open(const UplinkConfig& config) {
    std::unique_ptr<Uplink> out;
    board.finish([&](Fabric::Done done) {
      auto opened = open_uplink(config, board.pool(), board.fabric(), done);
      if (opened) {
        out = *std::move(opened);
      } else {
        reason = opened.error().message;
        done();
      }
    });
    return out;
  }
  base::Result<> attach(Uplink& uplink, const std::string& device) {
    base::Result<> out;
    board.finish([&](Fabric::Done done) {
      uplink.attach(device, [&out, done](const base::Result<>& result) {
        out = result;
        done();
      });
    });
    return out;
  }
  void close(std::unique_ptr<Uplink> uplink) {
    board.finish([&](Fabric::Done done) { uplink->close(std::move(done)); });
  }

  Switchboard board{2};
  std::string reason;
};

Bytes u32le(std::initializer_list<std::uint32_t> values) {
  Bytes out;
  for (const auto value : values) {
    for (unsigned i = 0; i < 4; ++i) out.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
  }
  return out;
}
const Bytes pcap_header = u32le({0xa1b2c3d4, 0x00040002, 0, 0, 65535, 1});
void append_record(Bytes& file, const Bytes& frame) {
  const auto size = static_cast<std::uint32_t>(frame.size());
  for (const auto b : u32le({1, 0, size, size})) file.push_back(b);
  file.insert(file.end(), frame.begin(), frame.end());
}
void write_file(const std::string& path, const Bytes& bytes) {
  std::ofstream{path, std::ios::binary}.write(reinterpret_cast<const char*>(bytes.data()),
                                              static_cast<std::streamsize>(bytes.size()));
}
std::vector<Bytes> read_pcap(const std::string& path) {
  std::ifstream in{path, std::ios::binary};
  const Bytes file{std::istreambuf_iterator<char>{in}, {}};
  std::vector<Bytes> out;
  for (std::size_t at = 24; at + 16 <= file.size();) {
    const std::size_t size = file[at + 8] + file[at + 9] * 256u;
    at += 16;
    out.emplace_back(file.begin() + static_cast<std::ptrdiff_t>(at),
                     file.begin() + static_cast<std::ptrdiff_t>(at + size));
    at += size;
  }
  return out;
}

TEST_F(UplinkTest, EalLeavesTheThreadAsItWas) {
  EXPECT_TRUE(daemon::eal_started());
  EXPECT_TRUE(daemon::start_eal(128));
  cpu_set_t cpus;
  ASSERT_EQ(::sched_getaffinity(0, sizeof(cpus), &cpus), 0);
  EXPECT_GE(CPU_COUNT(&cpus), std::min(2L, ::sysconf(_SC_NPROCESSORS_ONLN)));
  sigset_t mask;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  EXPECT_EQ(sigismember(&mask, SIGTERM), 0);
}

TEST_F(UplinkTest, SaysWhatIsWrong) {
  EXPECT_EQ(open("0000:01:00.0"), nullptr);
  EXPECT_NE(reason.find("only virtual devices"), std::string::npos) << reason;
  EXPECT_EQ(open("net_nonsense0"), nullptr);
  EXPECT_NE(reason.find("net_nonsense0: cannot plug it in"), std::string::npos) << reason;
  auto first = open("net_null1");
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(open("net_null1"), nullptr);
  EXPECT_NE(reason.find("in use"), std::string::npos) << reason;
  close(std::move(first));
}

TEST_F(UplinkTest, ThePortOutlivesItsDevice) {
  auto uplink = open("net_null2,size=64");
  ASSERT_NE(uplink, nullptr) << reason;
  EXPECT_TRUE(uplink->attached() && uplink->carries() && uplink->link().up);
  const auto port = uplink->port();
  board.finish([&](Fabric::Done done) { uplink->carry(false, std::move(done)); });
  EXPECT_TRUE(uplink->attached() && !uplink->carries());
  board.finish([&](Fabric::Done done) { uplink->detach(std::move(done)); });
  EXPECT_FALSE(uplink->attached());
  EXPECT_FALSE(uplink->link().up);
  EXPECT_TRUE(uplink->status().queues.empty());
  EXPECT_EQ(uplink->departure_fd(), -1);
  const auto refused = attach(*uplink, "net_nonsense0");
  ASSERT_FALSE(refused);
  EXPECT_FALSE(uplink->attached());
  ASSERT_TRUE(attach(*uplink, "net_null3"));  // another one
  EXPECT_TRUE(uplink->attached() && !uplink->carries());
  EXPECT_EQ(uplink->status().device, "net_null3");
  board.finish([&](Fabric::Done done) { uplink->carry(true, std::move(done)); });
  EXPECT_TRUE(uplink->carries());
  EXPECT_EQ(uplink->port(), port);
  close(std::move(uplink));
  close(open("net_null3"));  // free again
}

TEST_F(UplinkTest, ItsDeviceIsOpenedAndClosedElsewhere) {
  const auto elsewhere = *base::SideThread::make(board.loop(), "devices");
  std::atomic<bool> answers = false;
  auto uplink = open("net_null4");
  ASSERT_NE(uplink, nullptr) << reason;
  uplink->open_and_close_by([&](const Uplink::Work& work) {
    elsewhere->run([&answers, work] {
      answers.wait(false);
      return work();
    });
  });
  board.finish([&](Fabric::Done done) { uplink->carry(false, std::move(done)); });
  bool closed = false;
  uplink->detach([&closed] { closed = true; });
  // Control and the switch go on.
  EXPECT_FALSE(uplink->attached());
  EXPECT_FALSE(uplink->link().up);
  board.settle();
  close(open("net_null5"));
  EXPECT_FALSE(closed);
  answers = true;
  answers.notify_one();
  board.wait([&closed] { return closed; });
  EXPECT_FALSE(attach(*uplink, "net_nonsense0"));
  ASSERT_TRUE(attach(*uplink, "net_null4"));
  board.finish([&](Fabric::Done done) { uplink->carry(true, std::move(done)); });
  EXPECT_EQ(uplink->status().queues.size(), 1u);
  close(std::move(uplink));
}

TEST_F(UplinkTest, AStandbyHearsAndSendsNothing) {
  auto config = named("net_ring9", {});
  config.carries = false;
  auto uplink = open(config);
  ASSERT_NE(uplink, nullptr);
  EXPECT_FALSE(uplink->carries());
  const PortId guest = board.port({});
  const auto frame = plain_frame(everybody, mac(1));
  board.send(guest, {frame});
  EXPECT_EQ(uplink->status().queues[0].sent, 0u);
  const auto frames = std::make_shared<std::vector<Packet>>(40);
  for (auto& each : *frames) describe(frame, each);
  board.finish([&](Fabric::Done done) { uplink->send(frames, std::move(done)); });
  EXPECT_EQ(uplink->status().queues[0].sent, 0u);
  board.finish([&](Fabric::Done done) { uplink->carry(true, std::move(done)); });
  board.finish([&](Fabric::Done done) { uplink->send(frames, std::move(done)); });
  EXPECT_EQ(uplink->status().queues[0].sent, 40u);
  close(std::move(uplink));
}

TEST_F(UplinkTest, RefusesWhatTheDeviceCannot) {
  auto config = named("net_ring7", {});
  config.queues = 64;
  EXPECT_EQ(open(config), nullptr);
  EXPECT_NE(reason.find("queues with its driver net_ring, 64 are asked for; give queues = "),
            std::string::npos)
      << reason;
  config.queues = 1;
  config.zero_copy = true;
  EXPECT_EQ(open(config), nullptr);
  EXPECT_NE(reason.find("net_ring does not say in time which frames were sent; give zero_copy = "),
            std::string::npos)
      << reason;
  config = named("net_tap7,iface=mru" + std::to_string(::getpid() % 100'000), {});
  config.mtu = 9000;
  EXPECT_EQ(open(config), nullptr);
  if (reason.find("cannot plug it in") != std::string::npos) GTEST_SKIP() << reason;
  EXPECT_NE(reason.find("is an interface of the host with an mtu of 1500, 9000 is asked for"),
            std::string::npos)
      << reason;
}

TEST_F(UplinkTest, NullReceivesAndForgets) {
  auto uplink = open("net_null0,size=100");
  ASSERT_NE(uplink, nullptr) << reason;
  const auto status = uplink->status();
  EXPECT_EQ(status.driver, "net_null");
  EXPECT_EQ(status.name, "up");
  EXPECT_TRUE(uplink->link().up);
  // It receives without end; its frames have no source address.
  auto& counters = board.counters(uplink->port(), status.queues.front().reactor);
  board.wait([&] { return counters.tx_packets.get() > 1000; });
  EXPECT_GT(counters.drop_source.get(), 0u);
  const PortId port = board.port({});
  board.send(port, {plain_frame(everybody, mac(1)), plain_frame(everybody, mac(1), 0, 9000)});
  EXPECT_EQ(counters.rx_packets.get(), 2u);
  EXPECT_EQ(counters.rx_bytes.get(), 9060u);
  EXPECT_FALSE(uplink->driver_counters().empty());
  close(std::move(uplink));
}

TEST_F(UplinkTest, RingLoopsFramesBack) {
  PortConfig config;
  config.trunk = {10};
  auto uplink = open("net_ring0", config);
  ASSERT_NE(uplink, nullptr) << reason;
  PortConfig guest;
  guest.access_vlan = 10;
  const PortId port = board.port(guest), other = board.port(guest);
  auto& end = board.endpoint(other);
  // Out with a tag, back in with it: the source has moved to the uplink, and everybody else hears
  // it.
  const Bytes frame = plain_frame(everybody, mac(1), 9, 1514);
  board.send(port, {frame});
  auto& counters = board.counters(uplink->port(), uplink->status().queues.front().reactor);
  board.wait([&] { return counters.tx_packets.get() >= 1; });
  board.settle();
  EXPECT_EQ(counters.tx_bytes.get(), 1518u);
  ASSERT_GE(end.received, 2u);
  EXPECT_EQ(end.frame(0), frame);
  EXPECT_EQ(end.frame(1), frame);
  close(std::move(uplink));
}

TEST_F(UplinkTest, PcapCarriesWhatTheWireWouldSee) {
  const auto folder =
      std::filesystem::temp_directory_path() / ("uplink." + std::to_string(::getpid()));
  std::filesystem::create_directory(folder);
  const std::string in = folder / "in.pcap", out = folder / "out.pcap";
  Bytes file = pcap_header;
  const Bytes small = plain_frame(mac(1), mac(5), 1), jumbo = plain_frame(mac(1), mac(5), 2, 9000);
  append_record(file, small);
  append_record(file, jumbo);
  write_file(in, file);
  const PortId port = board.port({});
  auto& end = board.endpoint(port);
  auto uplink = open("net_pcap0,rx_pcap=" + in + ",tx_pcap=" + out);
  ASSERT_NE(uplink, nullptr) << reason;
  const unsigned reactor = uplink->status().queues.front().reactor;
  auto& counters = board.counters(uplink->port(), reactor);
  board.wait([&] { return counters.tx_packets.get() == 2; });
  board.settle();
  ASSERT_EQ(end.received, 2u);
  EXPECT_EQ(end.frame(0), small);
  EXPECT_EQ(end.frame(1), jumbo);
  // A checksum to complete and 5000 bytes to segment: both done before the wire.
  const Shape partial{.udp = true, .payload = 700}, big{.ipv6 = true, .payload = 5000};
  board.send(port, {make_frame(partial)}, 0, [&](Packet& p) { request(p, partial); });
  board.send(port, {make_frame(big)}, 0, [&](Packet& p) { request(p, big, Gso::tcp6, 1400); });
  board.send(port, {plain_frame(everybody, mac(1), 0, 9400)});
  EXPECT_EQ(counters.rx_packets.get(), 5u);
  EXPECT_EQ(counters.segmented.get(), 1u);
  EXPECT_EQ(counters.checksummed.get(), 5u);
  EXPECT_EQ(counters.drop_too_long.get(), 1u);
  close(std::move(uplink));
  const auto sent = read_pcap(out);
  ASSERT_EQ(sent.size(), 5u);
  const auto right = [](const Bytes& frame, const Shape& shape) {
    return oracle_checksum(frame, shape.l2() + shape.l3(), frame.size(),
                           pseudo_sum(frame, shape)) == 0;
  };
  EXPECT_TRUE(right(sent[0], partial));
  std::size_t payload = 0;
  for (std::size_t i = 1; i < 5; ++i) {
    EXPECT_TRUE(right(sent[i], big));
    payload += sent[i].size() - big.headers();
  }
  EXPECT_EQ(payload, 5000u);
  std::filesystem::remove_all(folder);
}

// Around every edge there is: blocks of a header's copy, the end of the header, that of a buffer.
TEST_F(UplinkTest, FramesOfAnySizeAreWhole) {
  const auto folder =
      std::filesystem::temp_directory_path() / ("sizes." + std::to_string(::getpid()));
  std::filesystem::create_directory(folder);
  const std::string in = folder / "in.pcap", out = folder / "out.pcap";
  std::vector<Bytes> received, sent;
  for (const std::size_t edge : {17u, 33u, 65u, 129u, 1514u, 2048u, 2176u, 4096u}) {
    for (std::size_t size = edge - 2; size <= edge + 2; ++size) {
      for (auto* frames : {&received, &sent}) {
        // The stations of each direction are their own.
        const unsigned station = frames == &sent ? 20 : 10;
        Bytes frame = plain_frame(mac(station), mac(30 - station), 0, size);
        for (std::size_t i = 14; i < size; ++i) {
          frame[i] = static_cast<std::uint8_t>(i * 31 + size + station);
        }
        frames->push_back(std::move(frame));
      }
    }
  }
  Bytes file = pcap_header;
  for (const auto& frame : received) append_record(file, frame);
  write_file(in, file);
  const PortId port = board.port({});
  auto& end = board.endpoint(port);
  auto uplink = open("net_pcap0,rx_pcap=" + in + ",tx_pcap=" + out);
  ASSERT_NE(uplink, nullptr) << reason;
  auto& counters = board.counters(uplink->port(), uplink->status().queues.front().reactor);
  board.wait([&] { return counters.tx_packets.get() == received.size(); });
  board.settle();
  ASSERT_EQ(end.received, received.size());
  for (std::size_t i = 0; i < received.size(); ++i) EXPECT_EQ(end.frame(i), received[i]);
  for (const auto& frame : sent) board.send(port, {frame}, 0);
  board.settle();
  close(std::move(uplink));
  EXPECT_EQ(read_pcap(out), sent);
  std::filesystem::remove_all(folder);
}

TEST_F(UplinkTest, TapComesAndGoes) {
  for (int round = 0; round < 3; ++round) {
    const std::string name = "mrt" + std::to_string(::getpid() % 100'000);
    auto uplink = open("net_tap0,iface=" + name);
    if (!uplink) GTEST_SKIP() << reason;
    EXPECT_NE(::if_nametoindex(name.c_str()), 0u);
    EXPECT_EQ(uplink->status().driver, "net_tap");
    EXPECT_EQ(uplink->status().mtu, 1500);
    const PortId port = board.port({});
    board.send(port, {plain_frame(everybody, mac(1), 0, 60)});
    EXPECT_EQ(
        board.counters(uplink->port(), uplink->status().queues.front().reactor).rx_packets.get(),
        1u);
    close(std::move(uplink));
    EXPECT_EQ(::if_nametoindex(name.c_str()), 0u);
  }
}

}  // namespace
}  // namespace millrace::vswitch
