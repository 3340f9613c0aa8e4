// Status of units that are on their way out.
#include "daemon/status.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>

#include "daemon/topology.hpp"

namespace millrace::daemon {
namespace {

using namespace std::chrono_literals;

TEST(Status, IsToldWhileAPortOrAnUplinkGoes) {
  std::string folder = "/tmp/millrace-status-XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  base::EventLoop loop;
  Config config;
  config.cores = {0};
  config.dpdk_mb = 64;
  auto made = Topology::make(loop, config);
  ASSERT_TRUE(made) << made.error().message;
  auto topology = *std::move(made);
  const auto finish = [&](auto start) {
    std::string answer = "none";
    start([&answer](const base::Result<void>& r) { answer = r ? "" : r.error().message; });
    // Asked at every step between.
    while (answer == "none") {
      loop.step(100ms);
      EXPECT_LE(ports_of(*topology).size(), 1u);
      EXPECT_LE(uplinks_of(*topology).size(), 1u);
    }
    EXPECT_EQ(answer, "");
  };
  GuestPort port;
  port.device.name = port.device.port.name = "a";
  port.server.socket = folder + "/a.sock";
  UplinkEntry uplink;
  uplink.uplink.name = "u";
  uplink.uplink.device = "net_null0";
  finish([&](Topology::Done done) { topology->add(port, std::move(done)); });
  finish([&](Topology::Done done) { topology->add(uplink, std::move(done)); });
  EXPECT_TRUE(ports_of(*topology)[0].contains("counters"));
  EXPECT_TRUE(uplinks_of(*topology)[0].contains("counters"));
  finish([&](Topology::Done done) { topology->remove_port("a", std::move(done)); });
  finish([&](Topology::Done done) { topology->remove_uplink("u", std::move(done)); });
  EXPECT_TRUE(ports_of(*topology).empty());
  EXPECT_TRUE(uplinks_of(*topology).empty());
  bool closed = false;
  topology->close([&closed] { closed = true; });
  while (!closed) loop.step(100ms);
  topology.reset();
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace millrace::daemon
