#include "daemon/ctl/pf.hpp"

#include <gtest/gtest.h>

namespace millrace::ctl {
namespace {

using nlohmann::json;

TEST(Pf, ListsFunctionsTheirValuesAndWhoUsesThem) {
  const json vf0{{"index", 0},      {"pci", "0000:01:10.0"},      {"driver", "vfio-pci"},
                 {"numa_node", 1},  {"mac", "52:54:00:00:00:01"}, {"vlan", 10},
                 {"max_rate", 100}, {"spoof_check", true},        {"trust", false},
                 {"link", "auto"},  {"lent_to", "uplink wan0"},   {"held_by", json::array()}};
  json vf1{{"index", 1}, {"pci", "0000:01:10.2"}, {"driver", ""}, {"numa_node", nullptr}};
  vf1["held_by"] = json::array({{{"pid", 4711}, {"name", "qemu"}}});
  const json pf{{"pci", "0000:01:00.0"}, {"interface", "eth0"}, {"driver", "igb"},
                {"link", true},          {"vfs_max", 7},        {"adopted", false},
                {"problem", ""},         {"vfs", {vf0, vf1}}};
  EXPECT_EQ(
      render_pfs(json::array({pf}), {}),
      (std::vector<std::string>{
          "PF 0000:01:00.0  eth0  driver igb  link up  2 of 7 VFs", "as configured",
          "VF  PCI           DRIVER    NODE  MAC                VLAN  RATE  SPOOF  TRUST  LINK  "
          "USED BY",
          " 0  0000:01:10.0  vfio-pci  1     52:54:00:00:00:01  10     100  on     off    auto  "
          "uplink wan0",
          " 1  0000:01:10.2  -         -     -                  -        -  -      -      -     "
          "process 4711 (qemu)"}));
}

TEST(Pf, SaysWhichGuestHasAFunctionAndWhoHoldsIt) {
  json lent{{"index", 0}, {"pci", "0000:01:10.0"}, {"lent_to", "guest web0"}};
  const auto last_of = [&lent] {
    const json pf{{"pci", "0000:01:00.0"}, {"problem", ""}, {"vfs", json::array({lent})}};
    const auto line = render_pfs(json::array({pf}), {}).back();
    return line.substr(line.find("guest"));
  };
  EXPECT_EQ(last_of(), "guest web0");
  lent["held_by"] = json::array({{{"pid", 4711}, {"name", "millrace-vmm"}}});
  EXPECT_EQ(last_of(), "guest web0, process 4711 (millrace-vmm)");
  // Who holds an uplink's is the daemon.
  lent["lent_to"] = "uplink guest-wan";
  EXPECT_EQ(last_of(), "guest-wan");
}

TEST(Pf, SaysWhatIsNotAsConfigured) {
  const json pf{{"pci", "0000:01:00.0"},
                {"adopted", true},
                {"problem", "it is gone"},
                {"vfs", json::array()}};
  EXPECT_EQ(render_pfs(json::array({pf}), {}),
            (std::vector<std::string>{"PF 0000:01:00.0  -  driver -  no link  0 of - VFs, adopted",
                                      "NOT as configured: it is gone"}));
}

}  // namespace
}  // namespace millrace::ctl
