#include <gtest/gtest.h>

#include "daemon/testing/config_text.hpp"

namespace millrace::daemon {
namespace {

using config_text::Lines;
using config_text::refused;

std::vector<PfEntry> pfs_of(const std::string& text) {
  return config_text::parsed(text).pfs;
}

std::string pf_with(const std::string& keys, const std::string& pci = "0000:01:00.0") {
  return "[[pf]]\npci = \"" + pci + "\"\n" + keys + "\n";
}

TEST(ConfigPf, ReadsEveryKey) {
  const auto pfs = pfs_of(pf_with(R"(vfs = 4
autoprobe = true
driver = "keep"
[[pf.vf]]
index = 3
mac = "52:54:00:00:00:01"
vlan = 10
qos = 3
vlan_protocol = "802.1ad"
min_rate = 10
max_rate = 1000
spoof_check = false
trust = true
link = "on"
[[pf.vf]]
index = 0
)"));
  ASSERT_EQ(pfs.size(), 1u);
  const auto& wish = pfs[0].wish;
  EXPECT_EQ(wish.address, (sriov::PciAddress{0, 1, 0, 0}));
  EXPECT_EQ(wish.vfs, 4u);
  EXPECT_EQ(wish.autoprobe, true);
  EXPECT_EQ(wish.driver, std::nullopt);
  EXPECT_TRUE(wish.up);
  ASSERT_EQ(wish.functions.size(), 2u);
  EXPECT_EQ(wish.functions[0].index, 3u);
  const auto& values = wish.functions[0].values;
  EXPECT_EQ(values.mac, (base::Mac{0x52, 0x54, 0, 0, 0, 1}));
  EXPECT_EQ(values.vlan, (sriov::Vlan{10, 3, true}));
  EXPECT_EQ(values.rate, (sriov::Rate{10, 1000}));
  EXPECT_EQ(values.spoof_check, sriov::SpoofCheck{false});
  EXPECT_EQ(values.trust, sriov::Trust{true});
  EXPECT_EQ(values.link, sriov::LinkState::on);
  EXPECT_EQ(wish.functions[1].values, sriov::VfValues{});  // and nothing where nothing is said
}

TEST(ConfigPf, FunctionsThatAreMadeAreMadeForUsAndOthersAreLeft) {
  EXPECT_EQ(pfs_of(pf_with("vfs = 2"))[0].wish.driver, "vfio-pci");
  const auto adopted = pfs_of(pf_with(""))[0].wish;
  EXPECT_EQ(adopted.vfs, std::nullopt);
  EXPECT_EQ(adopted.autoprobe, std::nullopt);
  EXPECT_EQ(adopted.driver, std::nullopt);
  EXPECT_EQ(pfs_of(pf_with("driver = \"vfio-pci\""))[0].wish.driver, "vfio-pci");
}

TEST(ConfigPf, OneClearLineForEachMistake) {
  EXPECT_EQ(refused("[[pf]]\nvfs = 2\n")[0],
            "m.toml:1:1: [[pf]]: pci is missing; give pci = \"0000:01:00.0\"");
  EXPECT_EQ(refused(pf_with("", "eth0"))[0],
            "m.toml:2:7: [[pf]]: pci is \"eth0\"; give a PCI address like \"0000:01:00.0\" "
            "(lspci -D)");
  EXPECT_EQ(refused(pf_with("vfs = 70000"))[0],
            "m.toml:3:7: [[pf]] 0000:01:00.0: vfs is 70000; give 0 to 65535");
  EXPECT_EQ(refused(pf_with("driver = \"igbvf\""))[0],
            "m.toml:3:10: [[pf]] 0000:01:00.0: driver is \"igbvf\"; give \"vfio-pci\" or \"keep\"");
  const auto vf = [](const std::string& keys) {
    return refused(pf_with("vfs = 2\n[[pf.vf]]\nindex = 1\n" + keys));
  };
  const std::string at = "[[pf]] 0000:01:00.0: [[pf.vf]]: ";
  EXPECT_EQ(vf("mac = \"01:00:00:00:00:01\""),
            Lines{"m.toml:6:7: " + at +
                  "mac is \"01:00:00:00:00:01\"; give one station's address "
                  "like \"52:54:00:00:00:01\""});
  EXPECT_EQ(vf("vlan = 4095"), Lines{"m.toml:6:8: " + at + "vlan is 4095; give 0 to 4094"});
  EXPECT_EQ(vf("qos = 3"),
            Lines{"m.toml:6:7: " + at + "qos is of a VLAN, and there is none; give vlan, too"});
  EXPECT_EQ(vf("min_rate = 20\nmax_rate = 10"),
            Lines{"m.toml:6:12: " + at + "min_rate 20 is more than max_rate 10"});
  EXPECT_EQ(vf("colour = 1")[0].substr(0, 60),
            ("m.toml:6:1: " + at + "unknown key \"colour\"").substr(0, 60));
  EXPECT_EQ(vf("[[pf.vf]]\nindex = 1"),
            Lines{"m.toml:6:1: " + at + "index 1 is there twice; give each function one table"});
  EXPECT_EQ(vf("[[pf.vf]]\nindex = 2"),
            Lines{"m.toml:6:1: " + at + "there is no index 2 where vfs is 2"});
}

TEST(ConfigPf, OneAddressAndOnePhysicalFunctionAreThereOnce) {
  const std::string mac = "mac = \"52:54:00:00:00:01\"\n";
  const auto lines = refused(pf_with("[[pf.vf]]\nindex = 0\n" + mac) +
                             pf_with("[[pf.vf]]\nindex = 5\n" + mac, "02:00.0"));
  EXPECT_EQ(lines, Lines{"m.toml:9:1: [[pf]] 0000:02:00.0: mac 52:54:00:00:00:01 of VF 5 is "
                         "already the one of VF 0 of 0000:01:00.0; give each its own"});
  EXPECT_EQ(refused(pf_with("") + pf_with("", "01:00.0"))[0],
            "m.toml:4:1: [[pf]] 0000:01:00.0: this physical function is there twice; make one of "
            "them");
}

}  // namespace
}  // namespace millrace::daemon
