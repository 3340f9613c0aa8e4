// Bonds over DPDK's null devices, which are always there, have a link and send nothing back.
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "daemon/eal.hpp"
#include "switch/ethdev_port.hpp"
#include "switch/testing/switchboard.hpp"

#ifdef __SANITIZE_THREAD__
// The bonding driver's alarms are guarded by a lock of DPDK's, whose code is not instrumented.
extern "C" const char* __tsan_default_suppressions();   // NOLINT(bugprone-reserved-identifier)
extern "C" const char* __tsan_default_suppressions() {  // NOLINT(bugprone-reserved-identifier)
  return "race:rte_eal_alarm_cancel\nrace:rte_eal_alarm_set\nrace:eal_alarm_callback\n";
}
#endif

namespace millrace::vswitch {
namespace {

using namespace testing;

class BondTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto started = daemon::start_eal(128);
    if (!started) GTEST_SKIP() << started.error().message;
  }
  std::unique_ptr<Uplink> make(BondMode mode) {
    UplinkConfig config;
    config.name = "trunk";
    config.device = "net_bonding_trunk";
    config.bond = mode;
    std::unique_ptr<Uplink> out;
    board.finish([&](Fabric::Done done) {
      auto opened = open_bond(config, board.pool(), board.fabric(), done);
      ASSERT_TRUE(opened.has_value());
      out = *std::move(opened);
    });
    return out;
  }
  static std::unique_ptr<Uplink> member(unsigned number, Uplink& bond) {
    UplinkConfig config;
    config.name = "wan" + std::to_string(number);
    config.device = "net_null" + std::to_string(20 + number) + ",no-rx=1";
    auto opened = open_member(config, *bond.bond());
    EXPECT_TRUE(opened.has_value()) << (opened ? "" : opened.error().message);
    return opened ? *std::move(opened) : nullptr;
  }
  static base::Result<> attach(Uplink& uplink, const std::string& device) {
    base::Result<> out;
    uplink.attach(device, [&out](const base::Result<>& result) { out = result; });
    return out;
  }
  void carry(Uplink& uplink, bool carries) {
    board.finish([&](Fabric::Done done) { uplink.carry(carries, std::move(done)); });
  }
  void close(std::unique_ptr<Uplink> uplink) {
    board.finish([&](Fabric::Done done) { uplink->close(std::move(done)); });
  }
  // How many of `count` flows a member was given.
  static std::uint64_t sent_by(const Uplink& member) {
    for (const auto& counter : member.driver_counters()) {
      if (counter.name == "tx_good_packets") return counter.value;
    }
    return 0;
  }
  void send_flows(PortId from, unsigned count) {
    for (unsigned flow = 0; flow < count; ++flow) {
      Bytes frame = make_frame({.udp = true, .payload = 20});
      std::copy(everybody.begin(), everybody.end(), frame.begin());
      set16(frame, 34, 1000 + flow);
      board.send(from, {frame});
    }
  }

  Switchboard board{2};
};

TEST_F(BondTest, HasADeviceOnceItsMembersHave) {
  auto trunk = make(BondMode::balance_xor);
  ASSERT_NE(trunk->bond(), nullptr);
  EXPECT_FALSE(trunk->attached());
  EXPECT_FALSE(trunk->link().up);
  auto first = member(0, *trunk), second = member(1, *trunk);
  EXPECT_EQ(first->bond(), nullptr);
  EXPECT_EQ(first->port(), no_port);
  EXPECT_TRUE(first->attached() && !first->carries());
  ASSERT_TRUE(attach(*trunk, "net_bonding_trunk"));
  EXPECT_TRUE(first->carries() && second->carries());
  EXPECT_EQ(trunk->status().driver, "net_bonding");
  carry(*trunk, true);
  board.wait([&] { return trunk->link().up; });
  EXPECT_TRUE(first->status().member->active && second->status().member->active);
  close(std::move(first));
  close(std::move(second));
  close(std::move(trunk));
}

TEST_F(BondTest, SpreadsFlowsOverThoseThatItHas) {
  auto trunk = make(BondMode::balance_xor);
  auto first = member(0, *trunk), second = member(1, *trunk);
  ASSERT_TRUE(attach(*trunk, "net_bonding_trunk"));
  carry(*trunk, true);
  board.wait([&] { return first->status().member->active && second->status().member->active; });
  const PortId guest = board.port({});
  send_flows(guest, 64);
  const auto by_first = sent_by(*first), by_second = sent_by(*second);
  EXPECT_EQ(by_first + by_second, 64u);
  EXPECT_GT(by_first, 8u);
  EXPECT_GT(by_second, 8u);
  // One leaves while the bond carries: the other has all.
  carry(*first, false);
  EXPECT_TRUE(trunk->carries() && !first->carries());
  send_flows(guest, 64);
  EXPECT_EQ(sent_by(*second), by_second + 64);
  // Its device may be closed, and had again.
  board.finish([&](Fabric::Done done) { first->detach(std::move(done)); });
  ASSERT_TRUE(attach(*first, "net_null30,no-rx=1"));
  carry(*first, true);
  EXPECT_TRUE(first->carries());
  board.wait([&] { return first->status().member->active; });
  send_flows(guest, 64);
  EXPECT_EQ(sent_by(*first), by_first);
  close(std::move(first));
  close(std::move(second));
  close(std::move(trunk));
}

TEST_F(BondTest, UsesOneAtATime) {
  auto trunk = make(BondMode::active_backup);
  auto first = member(0, *trunk), second = member(1, *trunk);
  ASSERT_TRUE(attach(*trunk, "net_bonding_trunk"));
  carry(*trunk, true);
  board.wait([&] { return trunk->link().up; });
  const auto way = trunk->link().way;
  EXPECT_NE(first->status().member->active, second->status().member->active);
  auto& used = first->status().member->active ? first : second;
  auto& other = first->status().member->active ? second : first;
  const PortId guest = board.port({});
  send_flows(guest, 10);
  EXPECT_EQ(sent_by(*used), 10u);
  EXPECT_EQ(sent_by(*other), 0u);
  carry(*used, false);
  send_flows(guest, 10);
  EXPECT_EQ(sent_by(*other), 10u);
  EXPECT_TRUE(trunk->link().up);
  EXPECT_NE(trunk->link().way, way);
  close(std::move(first));
  close(std::move(second));
  close(std::move(trunk));
}

TEST_F(BondTest, NeedsAPartnerForLacp) {
  auto trunk = make(BondMode::lacp);
  auto first = member(0, *trunk), second = member(1, *trunk);
  ASSERT_TRUE(attach(*trunk, "net_bonding_trunk"));
  carry(*trunk, true);
  // It speaks by itself, with nothing to carry.
  board.wait([&] { return sent_by(*first) > 2 && sent_by(*second) > 2; });
  EXPECT_FALSE(trunk->link().up);
  EXPECT_FALSE(first->status().member->active);
  EXPECT_FALSE(first->status().member->partner.has_value());
  const PortId guest = board.port({});
  send_flows(guest, 10);
  EXPECT_EQ(trunk->status().queues[0].sent, 0u);
  close(std::move(first));
  close(std::move(second));
  close(std::move(trunk));
}

}  // namespace
}  // namespace millrace::vswitch
