#include <gtest/gtest.h>

#include "daemon/config.hpp"
#include "daemon/testing/config_text.hpp"

namespace millrace::daemon {
namespace {

using config_text::Lines;
using config_text::parsed;
using config_text::refused;
using vswitch::BondMode;

std::string uplink(const std::string& name, const std::string& keys = {}) {
  return "[[uplink]]\nname = \"" + name + "\"\ndevice = \"net_" + name + "\"\n" + keys;
}
std::string bond(const std::string& name, const std::string& keys) {
  return "[[uplink]]\nname = \"" + name + "\"\n" + keys + "\n";
}
const std::string a_and_b = "members = [\"a\", \"b\"]";
const std::string trunk = bond("t", "bond = \"802.3ad\"\n" + a_and_b);

TEST(BondConfig, ReadsBondsAndHasThemFirst) {
  for (const auto& [name, mode] : {std::pair{"active-backup", BondMode::active_backup},
                                   {"balance-xor", BondMode::balance_xor},
                                   {"802.3ad", BondMode::lacp}}) {
    const auto keys = "bond = \"" + std::string{name} + "\"\n" + a_and_b +
                      "\nqueues = 2\nmtu = 9000\ntrunk = [10]";
    const auto config = parsed(uplink("a") + uplink("b") + bond("t", keys));
    ASSERT_EQ(config.uplinks.size(), 3u);
    EXPECT_EQ(config.uplinks[0].uplink.name, "t");
    EXPECT_EQ(config.uplinks[0].uplink.bond, mode);
    EXPECT_EQ(config.uplinks[0].uplink.device, "net_bonding_t");
    EXPECT_EQ(config.uplinks[0].uplink.queues, 2u);
    EXPECT_EQ(config.uplinks[0].members, (Lines{"a", "b"}));
    EXPECT_EQ(config.uplinks[1].uplink.name, "a");
    EXPECT_EQ(config.uplinks[1].uplink.bond, BondMode::none);
  }
}

TEST(BondConfig, RefusesWhatIsNoBond) {
  EXPECT_EQ(refused(bond("t", "bond = \"lacp\"\n" + a_and_b) + uplink("a") + uplink("b")),
            (Lines{"m.toml:3:8: [[uplink]] t: bond is \"lacp\"; give \"active-backup\", "
                   "\"balance-xor\" or \"802.3ad\""}));
  const auto give = "; give them like [\"wan0\", \"wan1\"]";
  const auto begin = std::string{"m.toml:4:11: [[uplink]] t: "};
  const auto with = [](const std::string& members) {
    return bond("t", "bond = \"802.3ad\"\nmembers = " + members) + uplink("a") + uplink("b");
  };
  EXPECT_EQ(refused(with("[\"a\"]")),
            (Lines{begin + "members are 1, and a bond has two or more" + give}));
  EXPECT_EQ(refused(with("[]")),
            (Lines{begin + "members are 0, and a bond has two or more" + give}));
  EXPECT_EQ(refused(with("\"a\"")), (Lines{begin + "members is no list of names" + give}));
  EXPECT_EQ(refused(with("[\"a\", \"a\"]")),
            (Lines{begin + "member a is there twice; give each once"}));
  EXPECT_EQ(refused(with("[\"a\", \"t\"]")).front(),
            begin + "the bond is a member of itself; give the names of others");
  EXPECT_EQ(refused(bond("t", "bond = \"802.3ad\"")),
            (Lines{"m.toml:1:1: [[uplink]] t: members is missing; give members = [\"wan0\", "
                   "\"wan1\"]"}));
  EXPECT_EQ(refused(bond("t", a_and_b) + uplink("a") + uplink("b")),
            (Lines{"m.toml:1:1: [[uplink]] t: bond is missing; give bond = \"802.3ad\""}));
}

TEST(BondConfig, RefusesKeysOfDevices) {
  for (const std::string key :
       {"device = \"net_tap1\"", "pci = \"0000:01:00.0\"", "pf = \"0000:01:00.0\"",
        "mac = \"52:54:00:00:00:01\"", "zero_copy = true", "standby = \"a\""}) {
    const auto name = key.substr(0, key.find(' '));
    const auto lines = refused(bond("t", "bond = \"802.3ad\"\n" + a_and_b + "\n" + key) +
                               uplink("a") + uplink("b"));
    ASSERT_EQ(lines.size(), 1u) << key;
    EXPECT_NE(lines[0].find("[[uplink]] t: " + name + " is given and bond too"), std::string::npos)
        << lines[0];
  }
}

TEST(BondConfig, RefusesMembersThatCannotBe) {
  EXPECT_EQ(refused(trunk + uplink("a")),
            (Lines{"m.toml:1:1: [[uplink]] t: member b is not there; add an [[uplink]] of that "
                   "name"}));
  EXPECT_EQ(refused(trunk + bond("u", "bond = \"802.3ad\"\nmembers = [\"b\", \"c\"]") +
                    uplink("a") + uplink("b") + uplink("c")),
            (Lines{"m.toml:5:1: [[uplink]] u: member b is one of t already; give each once"}));
  const auto other = bond("b", "bond = \"802.3ad\"\nmembers = [\"c\", \"d\"]");
  EXPECT_EQ(refused(trunk + uplink("a") + other + uplink("c") + uplink("d")),
            (Lines{"m.toml:8:1: [[uplink]] t: member b is a bond itself; give uplinks with a "
                   "device"}));
  const std::pair<std::string, std::string> unfit[] = {
      {"standby = \"c\"", "has a standby; leave that out: the bond's others are there"},
      {"mac = \"52:54:00:00:00:01\"", "has mac, and a bond hears everybody; leave mac out"},
      {"queues = 2", "has queues, mtu or gro; give them to the bond"},
      {"mtu = 9000", "has queues, mtu or gro; give them to the bond"},
      {"gro = true", "has queues, mtu or gro; give them to the bond"},
      {"vlan = 10",
       "has vlan, trunk, isolated or vepa, and no port of its own; give them to the bond"},
      {"vepa = true",
       "has vlan, trunk, isolated or vepa, and no port of its own; give them to the bond"},
      {"isolated = true",
       "has vlan, trunk, isolated or vepa, and no port of its own; give them to the bond"}};
  for (const auto& [keys, why] : unfit) {
    EXPECT_EQ(refused(trunk + uplink("a") + uplink("c") + uplink("b", keys + "\n")),
              (Lines{"m.toml:11:1: [[uplink]] t: member b " + why}));
  }
}

TEST(BondConfig, RefusesStandbysOfBonds) {
  EXPECT_EQ(refused(trunk + uplink("a") + uplink("b") + uplink("c", "standby = \"t\"\n")),
            (Lines{"m.toml:11:1: [[uplink]] c: standby t is a bond; make this one a member of "
                   "it"}));
  EXPECT_EQ(refused(trunk + uplink("a") + uplink("b") + uplink("c", "standby = \"a\"\n")),
            (Lines{"m.toml:11:1: [[uplink]] c: standby a is a member of t; give one that is "
                   "none"}));
}

}  // namespace
}  // namespace millrace::daemon
