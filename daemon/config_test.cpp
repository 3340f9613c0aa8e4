#include "daemon/config.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "daemon/testing/config_text.hpp"

namespace millrace::daemon {
namespace {

using config_text::Lines;
using config_text::parsed;
using config_text::refused;

std::string port_with(const std::string& keys) {
  return "[[port]]\nname = \"a\"\nsocket = \"/run/a\"\n" + keys + "\n";
}
std::string disk_with(const std::string& keys) {
  return "[[disk]]\nname = \"d\"\nsocket = \"/run/d\"\n" + keys + "\n";
}
std::string ram_with(const std::string& keys) {
  return disk_with("backend = \"ram\"\nsize = \"1MiB\"\n" + keys);
}

TEST(Config, EmptyFileIsTheDefaults) {
  const auto config = parsed("");
  EXPECT_EQ(config.control_socket, "/run/millrace/control.sock");
  EXPECT_TRUE(config.cores.empty());
  EXPECT_EQ(config.mode, base::IdleMode::adaptive);
  EXPECT_EQ(config.spin_us, 50u);
  EXPECT_TRUE(config.balance);
  EXPECT_TRUE(config.ports.empty() && config.disks.empty() && config.uplinks.empty());
}

TEST(Config, ReadsEveryKeyOfTheDaemon) {
  const auto config = parsed(R"(
[control]
socket = "/run/m/c.sock"
permissions = "0600"
[reactors]
cores = [0, 3]
mode = "poll"
spin_us = 7
balance = false
[switch]
ageing_s = 60
addresses_max = 1024
[memory]
dpdk_mb = 64
)");
  EXPECT_EQ(config.control_socket, "/run/m/c.sock");
  EXPECT_EQ(config.control_permissions, 0600u);
  EXPECT_EQ(config.cores, (std::vector<unsigned>{0, 3}));
  EXPECT_EQ(config.mode, base::IdleMode::poll);
  EXPECT_EQ(config.spin_us, 7u);
  EXPECT_FALSE(config.balance);
  EXPECT_EQ(config.fabric.ageing_ns, 60'000'000'000u);
  EXPECT_EQ(config.fabric.addresses_max, 1024u);
  EXPECT_EQ(config.dpdk_mb, 64u);
}

TEST(Config, ReadsEveryKeyOfAPort) {
  const auto config = parsed(R"(
[[port]]
name = "web0"
socket = "/run/web0.sock"
mode = "connect"
permissions = 0o600
queues = 4
reactors = [1, 0]
mac = "52:54:00:00:00:01"
mtu = 9000
vlan = 10
isolated = true
addresses_max = 5
control_queue = true
offloads = false
packed = false
in_order = false
ring_reset = true
rss = false
hash_report = true
coalescing = false
[[port]]
name = "trunk"
socket = "fd:3"
trunk = [10, 20]
)");
  ASSERT_EQ(config.ports.size(), 2u);
  const auto& port = config.ports[0];
  EXPECT_EQ(port.device.name, "web0");
  EXPECT_EQ(port.device.port.name, "web0");
  EXPECT_EQ(port.server.socket, "/run/web0.sock");
  EXPECT_EQ(port.server.mode, vhost::SocketMode::connect);
  EXPECT_EQ(port.server.permissions, 0600u);
  EXPECT_EQ(port.device.pairs, 4u);
  EXPECT_EQ(port.reactors, (std::vector<unsigned>{1, 0}));
  EXPECT_TRUE(config.ports[1].reactors.empty());
  EXPECT_EQ(port.device.mac, (vswitch::Mac{0x52, 0x54, 0, 0, 0, 1}));
  EXPECT_EQ(port.device.port.static_macs.size(), 1u);
  EXPECT_EQ(port.device.mtu, 9000);
  EXPECT_EQ(port.device.port.access_vlan, 10);
  EXPECT_TRUE(port.device.port.isolated);
  EXPECT_FALSE(port.device.port.uplink);
  EXPECT_EQ(port.device.port.addresses_max, 5u);
  EXPECT_TRUE(port.device.control_queue);
  EXPECT_FALSE(port.device.offloads);
  EXPECT_FALSE(port.device.packed);
  EXPECT_FALSE(port.device.in_order);
  EXPECT_TRUE(port.device.ring_reset);
  EXPECT_FALSE(port.device.rss);
  EXPECT_TRUE(port.device.hash_report);
  EXPECT_FALSE(port.device.coalescing);
  EXPECT_FALSE(config.ports[1].device.ring_reset);
  EXPECT_TRUE(config.ports[1].device.rss);
  EXPECT_FALSE(config.ports[1].device.hash_report);
  EXPECT_TRUE(config.ports[1].device.coalescing);
  EXPECT_EQ(config.ports[1].device.port.trunk, (std::vector<std::uint16_t>{10, 20}));
}

TEST(Config, ReadsEveryKeyOfADisk) {
  const auto config = parsed(R"(
[[disk]]
name = "d"
socket = "/run/d.sock"
mode = "listen"
path = "/x.img"
backend = "file"
queues = 8
readonly = true
serial = "12345678901234567890"
direct = "on"
pin = "auto"
iopoll = "on"
write_cache = false
block_size = 4096
segments_max = 64
size_max = "64KiB"
discard_segments_max = 3
discard_max = "16MiB"
packed = false
in_order = true
ring_reset = true
[[disk]]
name = "r"
socket = "/run/r.sock"
backend = "ram"
size = 1048576
)");
  ASSERT_EQ(config.disks.size(), 2u);
  const auto& disk = config.disks[0].device;
  EXPECT_EQ(disk.backend, blk::BackendKind::file);
  EXPECT_EQ(disk.path, "/x.img");
  EXPECT_EQ(disk.queues, 8u);
  EXPECT_TRUE(disk.readonly);
  EXPECT_EQ(disk.serial, "12345678901234567890");
  EXPECT_EQ(disk.direct, blk::DirectMode::on);
  EXPECT_EQ(disk.pin, blk::PinMode::automatic);
  EXPECT_EQ(disk.iopoll, blk::PollMode::on);
  EXPECT_FALSE(disk.write_cache);
  EXPECT_EQ(disk.block_size, 4096u);
  EXPECT_EQ(disk.segments_max, 64u);
  EXPECT_EQ(disk.size_max, 65'536u);
  EXPECT_EQ(disk.discard_segments_max, 3u);
  EXPECT_EQ(disk.discard_sectors_max, 32'768u);
  EXPECT_FALSE(disk.packed);
  EXPECT_TRUE(disk.in_order);
  EXPECT_TRUE(disk.ring_reset);
  EXPECT_EQ(config.disks[1].device.backend, blk::BackendKind::ram);
  EXPECT_EQ(config.disks[1].device.size, 1u << 20);
}

TEST(Config, ReadsEveryKeyOfAnUplink) {
  const auto config = parsed(R"(
[[uplink]]
name = "host"
device = "net_tap0,iface=mill0"
trunk = [1, 4094]
isolated = true
)");
  ASSERT_EQ(config.uplinks.size(), 1u);
  const auto& uplink = config.uplinks[0].uplink;
  EXPECT_EQ(uplink.name, "host");
  EXPECT_EQ(uplink.device, "net_tap0,iface=mill0");
  EXPECT_TRUE(uplink.port.uplink);
  EXPECT_TRUE(uplink.port.isolated);
  EXPECT_EQ(uplink.port.trunk, (std::vector<std::uint16_t>{1, 4094}));
  EXPECT_FALSE(uplink.pci);
  EXPECT_EQ(uplink.queues, 1u);
  EXPECT_EQ(uplink.mtu, 0);
  EXPECT_FALSE(uplink.mac);
}

TEST(Config, AnUplinkMayBeInOneVlan) {
  const auto config = parsed("[[uplink]]\nname = \"u\"\ndevice = \"net_null0\"\nvlan = 10\n");
  ASSERT_EQ(config.uplinks.size(), 1u);
  EXPECT_EQ(config.uplinks[0].uplink.port.access_vlan, 10);
  EXPECT_TRUE(config.uplinks[0].uplink.port.uplink);
  EXPECT_EQ(refused("[[uplink]]\nname = \"u\"\ndevice = \"net_null0\"\nvlan = 4095\n").size(), 1u);
}

TEST(Config, ReadsEveryKeyOfAHardwareUplink) {
  const auto config = parsed(R"(
[memory]
dpdk_hugepages = true
[[uplink]]
name = "wire"
pci = "0000:0A:10.2"
queues = 4
mtu = 9000
mac = "52:54:00:00:00:01"
zero_copy = true
)");
  EXPECT_TRUE(config.dpdk_hugepages);
  ASSERT_EQ(config.uplinks.size(), 1u);
  const auto& uplink = config.uplinks[0].uplink;
  EXPECT_TRUE(uplink.pci);
  EXPECT_EQ(uplink.device, "0000:0a:10.2");
  EXPECT_EQ(uplink.queues, 4u);
  EXPECT_EQ(uplink.mtu, 9000);
  EXPECT_EQ(uplink.mac, (vswitch::Mac{0x52, 0x54, 0, 0, 0, 1}));
  EXPECT_TRUE(uplink.zero_copy);
}

TEST(Config, RefusesZeroCopyWithoutAFunction) {
  const auto uplink = [](const char* device) {
    return "[[uplink]]\nname = \"a\"\n" + std::string{device} + "\nzero_copy = true\n";
  };
  EXPECT_EQ(refused(uplink("device = \"net_null0\"")),
            (Lines{"m.toml:4:13: [[uplink]] a: zero_copy needs a PCI function: give pci or pf, or "
                   "leave it out"}));
  EXPECT_FALSE(
      parsed("[[uplink]]\nname = \"a\"\npci = \"0000:01:00.0\"\n").uplinks[0].uplink.zero_copy);
}

TEST(Config, AnUplinkThatAPortIsDirectOnServesItAlone) {
  const auto config = parsed(R"(
[[port]]
name = "web0"
socket = "/run/web0.sock"
mac = "52:54:00:00:00:01"
direct = "vf0"
[[uplink]]
name = "vf0"
pf = "0000:01:00.0"
mac = "52:54:00:00:00:01"
[[uplink]]
name = "spare"
pci = "0000:02:00.0"
direct = true
[[uplink]]
name = "wan"
pci = "0000:03:00.0"
)");
  EXPECT_EQ(config.ports[0].direct, "vf0");
  EXPECT_TRUE(config.ports[0].device.port.alone);
  for (const auto& [at, direct] : {std::pair{0u, true}, {1u, true}, {2u, false}}) {
    EXPECT_EQ(config.uplinks[at].uplink.direct, direct);
    EXPECT_EQ(config.uplinks[at].uplink.zero_copy, direct);
  }
}

TEST(Config, RefusesWhatCannotBeDirect) {
  const auto port = [](const std::string& name, const std::string& more = {}) {
    return "[[port]]\nname = \"" + name + "\"\nsocket = \"/run/" + name + "\"\ndirect = \"v\"\n" +
           more;
  };
  const auto uplink = [](const std::string& more) { return "[[uplink]]\nname = \"v\"\n" + more; };
  const std::string function = "pci = \"0000:01:00.0\"\n";
  EXPECT_EQ(refused(port("a")),
            (Lines{"m.toml:1:1: [[port]] a: direct v is not there; add an [[uplink]] of that "
                   "name"}));
  EXPECT_EQ(refused(port("a") + uplink("device = \"net_null0\"\n")),
            (Lines{"m.toml:1:1: [[port]] a: direct = v: that is no PCI function; give the uplink "
                   "pci or pf"}));
  EXPECT_EQ(refused(port("a") + uplink(function + "queues = 2\n")),
            (Lines{"m.toml:1:1: [[port]] a: direct = v: the uplink has 2 queues; give it one"}));
  EXPECT_EQ(refused(port("a") + uplink(function + "mac = \"52:54:00:00:00:01\"\n")),
            (Lines{"m.toml:1:1: [[port]] a: direct = v: the uplink's mac is another one than the "
                   "port's; give both the same"}));
  EXPECT_EQ(refused(port("a") + uplink(function + "gro = true\n")),
            (Lines{"m.toml:1:1: [[port]] a: direct = v: the uplink has gro, which joins what the "
                   "switch gets; leave that out"}));
  EXPECT_EQ(refused(port("a") + port("b") + uplink(function)),
            (Lines{"m.toml:5:1: [[port]] b: direct = v: the uplink serves port a alone; give each "
                   "port its own"}));
  const std::string other = "[[uplink]]\nname = \"w\"\npci = \"0000:02:00.0\"\n";
  EXPECT_EQ(refused(port("a") + uplink(function) + other + "standby = \"v\"\n"),
            (Lines{"m.toml:1:1: [[port]] a: direct = v: the uplink is the standby of w, and serves "
                   "all ports then; give another"}));
  EXPECT_EQ(refused(port("a") + uplink(function + "standby = \"w\"\n") + other),
            (Lines{"m.toml:1:1: [[port]] a: direct = v: the uplink has a standby, whose guests go "
                   "elsewhere with it; leave that out"}));
  EXPECT_EQ(refused(port("a", "queues = 2\n") + uplink(function)),
            (Lines{"m.toml:5:10: [[port]] a: a port that is direct has one queue pair; leave "
                   "queues out"}));
  EXPECT_EQ(refused(port("a", "reactors = [0]\n") + uplink(function)),
            (Lines{"m.toml:5:12: [[port]] a: the queues of a port that is direct are where its "
                   "uplink is; leave reactors out"}));
  EXPECT_EQ(refused(uplink("device = \"net_null0\"\ndirect = true\n")),
            (Lines{"m.toml:4:10: [[uplink]] v: direct needs a PCI function: give pci or pf, or "
                   "leave it out"}));
}

TEST(Config, ReadsStandbysAndWhoFollowsAnUplink) {
  const auto config = parsed(R"(
[[port]]
name = "web0"
socket = "/run/web0.sock"
follow_uplink = "wan0"
[[uplink]]
name = "wan0"
pci = "0000:01:00.0"
standby = "wan1"
[[uplink]]
name = "wan1"
pci = "0000:02:00.0"
)");
  EXPECT_EQ(config.ports[0].follow_uplink, "wan0");
  EXPECT_TRUE(config.ports[0].device.link_changes);
  EXPECT_EQ(config.uplinks[0].standby, "wan1");
  EXPECT_EQ(config.uplinks[1].standby, "");
}

TEST(Config, TakesFunctionsOfTheirOwnAsStandbys) {
  const auto uplink = [](const std::string& name, const std::string& more) {
    return "[[uplink]]\nname = \"" + name + "\"\n" + more + "\n";
  };
  const std::string standby = "\nstandby = \"b\"";
  const auto own = uplink("b", "pf = \"0000:01:00.0\"");
  EXPECT_EQ(parsed(uplink("a", "pci = \"0000:03:00.0\"" + standby) + own).uplinks[0].standby, "b");
  EXPECT_EQ(parsed(uplink("a", "pf = \"0000:02:00.0\"" + standby) + own).uplinks[0].standby, "b");
  EXPECT_EQ(
      refused(uplink("a", "pf = \"0000:01:00.0\"" + standby) + own),
      (Lines{"m.toml:1:1: [[uplink]] a: standby b has a VF of the same PF; leave it out: a VF "
             "that is lost is replaced by another one"}));
}

TEST(Config, RefusesUplinksThatAreNamedInVain) {
  const auto uplink = [](const std::string& name, const std::string& standby) {
    return "[[uplink]]\nname = \"" + name + "\"\ndevice = \"net_" + name + "\"\n" +
           (standby.empty() ? "" : "standby = \"" + standby + "\"\n");
  };
  EXPECT_EQ(refused(uplink("a", "b")),
            (Lines{"m.toml:1:1: [[uplink]] a: standby b is not there; add an [[uplink]] of that "
                   "name"}));
  EXPECT_EQ(refused(uplink("a", "a")),
            (Lines{"m.toml:4:11: [[uplink]] a: standby is the uplink itself; give the name of "
                   "another"}));
  EXPECT_EQ(refused(uplink("a", "b") + uplink("b", "c") + uplink("c", "")),
            (Lines{"m.toml:1:1: [[uplink]] a: standby b has a standby itself; give one that has "
                   "none"}));
  EXPECT_EQ(refused(uplink("a", "b") + uplink("b", "a")),
            (Lines{"m.toml:1:1: [[uplink]] a: standby b has a standby itself; give one that has "
                   "none",
                   "m.toml:5:1: [[uplink]] b: standby a has a standby itself; give one that has "
                   "none"}));
  EXPECT_EQ(refused(uplink("a", "c") + uplink("b", "c") + uplink("c", "")),
            (Lines{"m.toml:5:1: [[uplink]] b: standby c is already the one of a; give each uplink "
                   "its own"}));
  EXPECT_EQ(refused("[[port]]\nname = \"p\"\nsocket = \"/run/p\"\nfollow_uplink = \"a\"\n"),
            (Lines{"m.toml:1:1: [[port]] p: follow_uplink a is not there; add an [[uplink]] of "
                   "that name"}));
  EXPECT_EQ(refused("[[port]]\nname = \"p\"\nsocket = \"/run/p\"\nfollow_uplink = \"\"\n"),
            (Lines{"m.toml:4:17: [[port]] p: follow_uplink is empty; give the name of an "
                   "[[uplink]]"}));
}

TEST(Config, HasOneWayOutForVepa) {
  const auto uplink = [](const std::string& name, const std::string& more) {
    return "[[uplink]]\nname = \"" + name + "\"\ndevice = \"net_" + name + "\"\n" + more;
  };
  const std::string vepa = "vepa = true\n", standby = "standby = \"b\"\n";
  EXPECT_FALSE(parsed(uplink("a", "")).uplinks[0].uplink.port.vepa);
  EXPECT_TRUE(parsed(uplink("a", vepa) + uplink("b", "")).uplinks[0].uplink.port.vepa);
  EXPECT_TRUE(parsed(uplink("a", vepa + standby) + uplink("b", vepa)).uplinks[1].uplink.port.vepa);
  EXPECT_EQ(refused(uplink("a", vepa) + uplink("b", vepa)),
            (Lines{"m.toml:5:1: [[uplink]] b: a has vepa already, and guests reach each other by "
                   "one uplink; leave it out"}));
  EXPECT_EQ(refused(uplink("a", vepa + standby) + uplink("b", "")),
            (Lines{"m.toml:6:1: [[uplink]] b: it and a carry in each other's place, and one has "
                   "vepa; give it to both or to none"}));
}

TEST(Config, ReadsAnUplinkFromThePool) {
  const auto config = parsed(R"(
[[uplink]]
name = "a"
pf = "0000:0A:00.1"
[[uplink]]
name = "b"
pf = "0000:0a:00.1"
)");
  ASSERT_EQ(config.uplinks.size(), 2u);
  for (const auto& entry : config.uplinks) {
    EXPECT_EQ(entry.pf, (sriov::PciAddress{0, 10, 0, 1}));
    EXPECT_FALSE(entry.uplink.pci);
  }
  EXPECT_EQ(refused("[[uplink]]\nname = \"u\"\npf = \"0000:01:00.0\"\npci = \"0000:01:00.1\"\n"),
            (Lines{"m.toml:4:7: [[uplink]] u: both pf and pci are given; give one of them"}));
  EXPECT_EQ(refused("[[uplink]]\nname = \"u\"\npf = \"eth0\"\n"),
            (Lines{"m.toml:3:6: [[uplink]] u: pf is \"eth0\"; give the whole address of a physical "
                   "function that has a [[pf]], as lspci -D does: \"0000:01:00.0\""}));
}

TEST(Config, RefusesWhatIsNoUplinkDevice) {
  EXPECT_EQ(refused("[[uplink]]\nname = \"u\"\n"),
            (Lines{"m.toml:1:1: [[uplink]] u: device is missing; give device = "
                   "\"net_tap0,iface=mill0\", or pci = \"0000:01:00.0\""}));
  EXPECT_EQ(refused("[[uplink]]\nname = \"u\"\npci = \"01:00\"\n"),
            (Lines{"m.toml:3:7: [[uplink]] u: pci is \"01:00\"; give a function's whole address, "
                   "as lspci -D does: \"0000:01:00.0\""}));
  EXPECT_EQ(refused("[[uplink]]\nname = \"u\"\npci = \"0000:01:00.0\"\ndevice = \"net_tap0\"\n"),
            (Lines{"m.toml:4:10: [[uplink]] u: both pci and device are given; give one of them"}));
}

struct Refusal {
  const char* label;
  std::string text;
  std::string line;
};

void PrintTo(const Refusal& refusal, std::ostream* out) {
  *out << refusal.label;
}

std::string label_of(const testing::TestParamInfo<Refusal>& refusal) {
  return refusal.param.label;
}

class Refusals : public testing::TestWithParam<Refusal> {};

TEST_P(Refusals, IsOneClearLine) {
  EXPECT_EQ(refused(GetParam().text), Lines{GetParam().line});
}

INSTANTIATE_TEST_SUITE_P(
    Daemon, Refusals,
    testing::Values(
        Refusal{"unknown_table", "[reactor]\n",
                "m.toml:1:2: the file: unknown key \"reactor\"; did you mean \"reactors\"?"},
        Refusal{"unknown_key", "[reactors]\nkores = [0]\n",
                "m.toml:2:1: [reactors]: unknown key \"kores\"; did you mean \"cores\"?"},
        Refusal{"unknown_key_far", "[control]\nxyzzyxyzzy = 1\n",
                "m.toml:2:1: [control]: unknown key \"xyzzyxyzzy\"; the keys are socket, "
                "permissions"},
        Refusal{"table_is_number", "reactors = 3\n",
                "m.toml:1:12: [reactors]: this is a number; give a table of keys"},
        Refusal{"port_is_table", "[port]\nname = \"x\"\n",
                "m.toml:1:1: [[port]]: this is a table; begin it with [[port]]"},
        Refusal{"control_relative", "[control]\nsocket = \"c.sock\"\n",
                "m.toml:2:10: [control]: socket \"c.sock\" is relative; give a path from /"},
        Refusal{"control_empty", "[control]\nsocket = \"\"\n",
                "m.toml:2:10: [control]: socket is empty; give a path"},
        Refusal{"control_descriptor", "[control]\nsocket = \"fd:3\"\n",
                "m.toml:2:10: [control]: socket \"fd:3\" is relative; give a path from /"},
        Refusal{"cores_type", "[reactors]\ncores = 1\n",
                "m.toml:2:9: [reactors]: cores is a number; give a list of whole numbers, 0 to "
                "1023"},
        Refusal{"cores_text", "[reactors]\ncores = [0, \"1\"]\n",
                "m.toml:2:13: [reactors]: cores holds text; give whole numbers, 0 to 1023"},
        Refusal{"cores_range", "[reactors]\ncores = [1024]\n",
                "m.toml:2:10: [reactors]: cores holds 1024; give whole numbers, 0 to 1023"},
        Refusal{"cores_twice", "[reactors]\ncores = [1, 1]\n",
                "m.toml:2:13: [reactors]: cores holds 1 twice; give each number once"},
        Refusal{"cores_empty", "[reactors]\ncores = []\n",
                "m.toml:2:9: [reactors]: cores is empty; give cores, or leave it out to have them "
                "chosen"},
        Refusal{"owners_empty", port_with("reactors = []"),
                "m.toml:4:12: [[port]] a: reactors is empty; give numbers of reactors, or leave it "
                "out"},
        Refusal{"owners_range", port_with("reactors = [64]"),
                "m.toml:4:13: [[port]] a: reactors holds 64; give whole numbers, 0 to 63"},
        Refusal{"mode", "[reactors]\nmode = \"fast\"\n",
                "m.toml:2:8: [reactors]: mode is \"fast\"; give \"poll\" or \"adaptive\""},
        Refusal{"spin_fraction", "[reactors]\nspin_us = 1.5\n",
                "m.toml:2:11: [reactors]: spin_us is a fraction; give a whole number, 0 to "
                "1000000"},
        Refusal{"a_date", "[reactors]\nspin_us = 2026-01-01\n",
                "m.toml:2:11: [reactors]: spin_us is a date or a time; give a whole number, 0 to "
                "1000000"},
        Refusal{"a_key_of_two_lines", "[reactors]\n\"spin\\nus\" = 1\n",
                "m.toml:2:1: [reactors]: unknown key \"spin?us\"; did you mean \"spin_us\"?"},
        Refusal{"an_escape", "[control]\nsocket = \"/run/\\u001b[2J\"\n",
                "m.toml:2:10: [control]: socket holds a control character; give text of one line"},
        Refusal{"ageing", "[switch]\nageing_s = 0\n",
                "m.toml:2:12: [switch]: ageing_s is 0; give 1 to 1000000"},
        Refusal{"dpdk_mb", "[memory]\ndpdk_mb = -1\n",
                "m.toml:2:11: [memory]: dpdk_mb is -1; give 32 to 1048576"}),
    label_of);

INSTANTIATE_TEST_SUITE_P(
    Port, Refusals,
    testing::Values(
        Refusal{"no_name", "[[port]]\nsocket = \"/run/a\"\n",
                "m.toml:1:1: [[port]]: name is missing; give name = \"web0\""},
        Refusal{"no_socket", "[[port]]\nname = \"a\"\n",
                "m.toml:1:1: [[port]] a: socket is missing; give socket = "
                "\"/run/millrace/NAME.sock\""},
        Refusal{"bad_name", "[[port]]\nname = \"a b\"\nsocket = \"/run/a\"\n",
                "m.toml:2:8: [[port]]: name is \"a b\"; give 1 to 64 letters, digits, dots, dashes "
                "or underscores"},
        Refusal{"name_type", "[[port]]\nname = 7\nsocket = \"/run/a\"\n",
                "m.toml:2:8: [[port]]: name is a number; give text in quotes"},
        Refusal{"long_socket",
                "[[port]]\nname = \"a\"\nsocket = \"/" + std::string(107, 'x') + "\"\n",
                "m.toml:3:10: [[port]] a: socket has 108 bytes; give a path of at most 107"},
        Refusal{"descriptor", "[[port]]\nname = \"a\"\nsocket = \"fd:x\"\n",
                "m.toml:3:10: [[port]] a: socket is \"fd:x\"; give \"fd:N\" with the number of a "
                "passed descriptor, 3 or more"},
        Refusal{"descriptor_connects",
                "[[port]]\nname = \"a\"\nsocket = \"fd:3\"\nmode = "
                "\"connect\"\n",
                "m.toml:4:8: [[port]] a: a passed descriptor listens; leave mode = \"connect\" "
                "out"},
        Refusal{"socket_mode", port_with("mode = \"server\""),
                "m.toml:4:8: [[port]] a: mode is \"server\"; give \"listen\" or \"connect\""},
        Refusal{"permissions", port_with("permissions = 660"),
                "m.toml:4:15: [[port]] a: permissions are not a file mode; give \"0660\" or 0o660"},
        Refusal{"queues", port_with("queues = 129"),
                "m.toml:4:10: [[port]] a: queues is 129; give 1 to 128"},
        Refusal{"queues_control", port_with("queues = 128\ncontrol_queue = true"),
                "m.toml:4:10: [[port]] a: queues is 128; give 1 to 127"},
        Refusal{"mac", port_with("mac = \"52:54:00:00:01\""),
                "m.toml:4:7: [[port]] a: mac is \"52:54:00:00:01\"; give six bytes like "
                "\"52:54:00:00:00:01\""},
        Refusal{"mac_group", port_with("mac = \"ff:ff:ff:ff:ff:ff\""),
                "m.toml:4:7: [[port]] a: mac ff:ff:ff:ff:ff:ff is not one station's address; give "
                "a unicast address like \"52:54:00:00:00:01\""},
        Refusal{"mtu", port_with("mtu = 67"),
                "m.toml:4:7: [[port]] a: mtu is 67; give 68 to 65535"},
        Refusal{"vlan", port_with("vlan = 4095"),
                "m.toml:4:8: [[port]] a: vlan is 4095; give 1 to 4094"},
        Refusal{"vlan_and_trunk", port_with("vlan = 1\ntrunk = [2]"),
                "m.toml:5:9: [[port]] a: vlan and trunk are both given; give vlan for an access "
                "port or trunk for a trunk"},
        Refusal{"trunk_empty", port_with("trunk = []"),
                "m.toml:4:9: [[port]] a: trunk is empty; give its VLANs, 1 to 4094, or leave it "
                "out"},
        Refusal{"isolated", port_with("isolated = 1"),
                "m.toml:4:12: [[port]] a: isolated is a number; give true or false"},
        Refusal{"key_of_a_disk", port_with("path = \"/x\""),
                "m.toml:4:1: [[port]] a: unknown key \"path\"; the keys are name, socket, mode, "
                "permissions, control_queue, queues, mac, mtu, reactors, follow_uplink, direct, "
                "vlan, trunk, isolated, addresses_max, offloads, packed, in_order, ring_reset, "
                "rss, hash_report, "
                "coalescing"}),
    label_of);

INSTANTIATE_TEST_SUITE_P(
    Disk, Refusals,
    testing::Values(
        Refusal{"no_path", disk_with(""),
                "m.toml:1:1: [[disk]] d: path is missing; give path = "
                "\"/var/lib/millrace/NAME.img\", or backend = \"ram\" or \"null\""},
        Refusal{"relative", disk_with("path = \"x.img\""),
                "m.toml:4:8: [[disk]] d: path \"x.img\" is relative; give a path from /"},
        Refusal{"file_size", disk_with("path = \"/x\"\nsize = 512"),
                "m.toml:5:8: [[disk]] d: a file has the size it has; leave size out (see "
                "truncate(1))"},
        Refusal{"backend", disk_with("backend = \"nvme\""),
                "m.toml:4:11: [[disk]] d: backend is \"nvme\"; give \"file\", \"ram\" or \"null\""},
        Refusal{"ram_path", ram_with("path = \"/x\""),
                "m.toml:6:8: [[disk]] d: this backend keeps nothing in a file; leave path out, or "
                "backend"},
        Refusal{"no_size", disk_with("backend = \"null\""),
                "m.toml:1:1: [[disk]] d: size is missing; give size = \"1GiB\""},
        Refusal{"size_text", disk_with("backend = \"ram\"\nsize = \"big\""),
                "m.toml:5:8: [[disk]] d: size is \"big\"; give a size like \"16MiB\""},
        Refusal{"size_odd", disk_with("backend = \"ram\"\nsize = 1000"),
                "m.toml:5:8: [[disk]] d: size is not a multiple of 512 bytes; give whole sectors"},
        Refusal{"serial", ram_with("serial = \"123456789012345678901\""),
                "m.toml:6:10: [[disk]] d: serial has 21 bytes; give at most 20"},
        Refusal{"direct", ram_with("direct = true"),
                "m.toml:6:10: [[disk]] d: direct is true or false; give \"auto\", \"on\" or "
                "\"off\""},
        Refusal{
            "pin", ram_with("pin = \"on\""),
            "m.toml:6:7: [[disk]] d: this backend has nothing to pin memory for; leave pin out"},
        Refusal{"iopoll", ram_with("iopoll = \"on\""),
                "m.toml:6:10: [[disk]] d: this backend has no device to poll; leave iopoll out"},
        Refusal{"iopoll_buffered", disk_with("path = \"/x\"\ndirect = \"off\"\niopoll = \"on\""),
                "m.toml:6:10: [[disk]] d: only direct transfers can be polled for; leave direct "
                "out"},
        Refusal{"block_size", ram_with("block_size = 1000"),
                "m.toml:6:14: [[disk]] d: block_size is not a power of two; give 512, 1024, 2048 "
                "or 4096"},
        Refusal{"segments", ram_with("segments_max = 1023"),
                "m.toml:6:16: [[disk]] d: segments_max is 1023; give 1 to 1008"},
        Refusal{"discard", ram_with("discard_max = \"1000\""),
                "m.toml:6:15: [[disk]] d: discard_max is not a multiple of 512 bytes; give whole "
                "sectors"}),
    label_of);

TEST(Config, NamesTwoOwnersOfOneThing) {
  const auto lines = refused(R"([control]
socket = "/run/c"
[[port]]
name = "a"
socket = "/run/c"
mac = "52:54:00:00:00:01"
[[disk]]
name = "a"
socket = "/run/d"
backend = "null"
size = "1GiB"
[[port]]
name = "b"
socket = "/run/b"
mac = "52:54:00:00:00:01"
[[uplink]]
name = "u"
device = "net_null0"
[[uplink]]
name = "v"
device = "net_null0,size=64"
)");
  EXPECT_EQ(lines, (Lines{"m.toml:5:10: [[port]] a: socket /run/c is already used by [control]; "
                          "give each its own",
                          "m.toml:7:1: [[disk]] a: name a is already used by [[port]] a; give each "
                          "its own",
                          "m.toml:12:1: [[port]] b: mac 52:54:00:00:00:01 is already used by "
                          "[[port]] a; give each its own",
                          "m.toml:19:1: [[uplink]] v: device net_null0 is already used by "
                          "[[uplink]] u; give each its own"}));
}

TEST(Config, TellsEveryProblemInTheOrderOfTheFile) {
  const auto lines =
      refused("[[disk]]\nname = \"d\"\nsocket = 1\nqueues = 0\n[reactors]\nmode=1\n");
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_TRUE(lines[0].starts_with("m.toml:1:1: [[disk]] d: path is missing"));
  EXPECT_TRUE(lines[1].starts_with("m.toml:3:10: [[disk]] d: socket is a number"));
  EXPECT_TRUE(lines[2].starts_with("m.toml:4:10: [[disk]] d: queues is 0"));
  EXPECT_TRUE(lines[3].starts_with("m.toml:6:6: [reactors]: mode is a number"));
}

TEST(Config, SyntaxErrorHasAPlace) {
  const auto lines = refused("[control]\nsocket = \n");
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_TRUE(lines[0].starts_with("m.toml:2:")) << lines[0];
  EXPECT_NE(lines[0].find(": not TOML: "), std::string::npos) << lines[0];
  EXPECT_EQ(lines[0].find('\n'), std::string::npos);
}

TEST(Config, KeysOfAnyLengthAreNoDeeperThanTheStack) {
  std::string dots;
  for (int i = 0; i < 200'000; ++i) dots += "a.";
  EXPECT_EQ(refused("[switch]\n" + dots + "a = 1\n"),
            (Lines{"m.toml:2:1: not TOML: a line with more than 1000 dots"}));
  const auto most = dots.substr(0, 2000);
  const auto deep = refused("[" + most + "b]\n" + most + "b = 1\n");
  ASSERT_EQ(deep.size(), 1u);
  EXPECT_NE(deep[0].find("the file: unknown key \"a\""), std::string::npos) << deep[0];
}

TEST(Config, CommandArgumentsMeanTheSame) {
  Problems problems;
  const auto port = read_port(
      value_from_json({{"name", "w"}, {"socket", "/run/w"}, {"queues", 2}, {"trunk", {10, 20}}}),
      "port", problems);
  EXPECT_TRUE(problems.none()) << problems.joined();
  EXPECT_EQ(port.device.pairs, 2u);
  EXPECT_EQ(port.device.port.trunk.size(), 2u);
  (void)read_disk(value_from_json({{"name", "d"}, {"queues", 1.5}, {"nam", nullptr}}), "disk",
                  problems);
  EXPECT_EQ(problems.joined(),
            "disk d: socket is missing; give socket = \"/run/millrace/NAME.sock\"; also: disk d: "
            "path is missing; give path = \"/var/lib/millrace/NAME.img\", or backend = \"ram\" or "
            "\"null\"; also: disk d: queues is a fraction; give a whole number, 1 to 256; also: "
            "disk d: unknown key \"nam\"; did you mean \"name\"?");
}

}  // namespace
}  // namespace millrace::daemon
