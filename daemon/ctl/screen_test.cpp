#include "daemon/ctl/screen.hpp"

#include <gtest/gtest.h>

#include "daemon/ctl/arguments.hpp"
#include "daemon/ctl/rates.hpp"
#include "daemon/ctl/table.hpp"

namespace millrace::ctl {
namespace {

using nlohmann::json;
using Lines = std::vector<std::string>;

TEST(Table, AlignsClipsAndStyles) {
  Table table{{{"NAME", Align::left, 6}, {"N", Align::right}, {"WHY"}}};
  table.add({"a", "1", "x"});
  table.add({"a-long-name", "100", "yz"}, "\x1b[31m");
  EXPECT_EQ(table.lines(0, ""), (Lines{"NAME      N  WHY", "a         1  x", "a-lon…  100  yz"}));
  EXPECT_EQ(table.lines(10, "\x1b[1m"),
            (Lines{"\x1b[1mNAME     …\x1b[0m", "a        …", "\x1b[31ma-lon…  1…\x1b[0m"}));
}

TEST(Table, CountsCharactersAndNotBytes) {
  EXPECT_EQ(columns_of("äöü"), 3u);
  EXPECT_EQ(clip("äöü", 3), "äöü");
  EXPECT_EQ(clip("äöüß", 3), "äö…");
  EXPECT_EQ(clip("abc", 0), "");
}

TEST(Table, NumbersArePrintedForPeople) {
  EXPECT_EQ(short_number(0), "0");
  EXPECT_EQ(short_number(7.26), "7.3");
  EXPECT_EQ(short_number(999), "999");
  EXPECT_EQ(short_number(1000), "1.00k");
  EXPECT_EQ(short_number(13'600'000), "13.6M");
  EXPECT_EQ(short_number(999'700), "1.00M");
  EXPECT_EQ(short_duration(0), "-");
  EXPECT_EQ(short_duration(850), "850ns");
  EXPECT_EQ(short_duration(12'340), "12.3us");
  EXPECT_EQ(short_duration(4'560'000), "4.56ms");
  EXPECT_EQ(short_duration(2'000'000'000), "2.00s");
  EXPECT_EQ(uptime(9.9), "9s");
  EXPECT_EQ(uptime(250), "4m 10s");
  EXPECT_EQ(uptime(7500), "2h 5m");
  EXPECT_EQ(uptime(273'600), "3d 4h");
}

json port(const std::string& name, std::uint64_t rx, std::uint64_t drops) {
  return {{"name", name},
          {"state", "running"},
          {"connected", true},
          {"peer", "pid 42 (qemu)"},
          {"counters",
           {{"rx_packets", rx},
            {"rx_bytes", 100 * rx},
            {"tx_packets", 0},
            {"tx_bytes", 0},
            {"drop_ring_full", drops}}}};
}

json disk(std::uint64_t reads, const json& buckets) {
  return {{"name", "d0"},
          {"state", "running"},
          {"connected", true},
          {"peer", nullptr},
          {"counters",
           {{"read_requests", reads},
            {"read_bytes", 4096 * reads},
            {"in_flight", 3},
            {"io_errors", 0}}},
          {"latency_ns", {{"buckets", buckets}}}};
}

json sample(std::uint64_t time_ns, json ports, json disks, std::uint64_t busy) {
  return {{"time_ns", time_ns},
          {"status", {{"version", "0.1.0"}, {"uptime_s", 65.0}, {"connected", 1}}},
          {"ports", std::move(ports)},
          {"disks", std::move(disks)},
          {"uplinks", json::array()},
          {"reactors",
           {{{"core", 1},
             {"cycles", 1000 + 10 * busy},
             {"busy_cycles", busy},
             {"busy_rounds", busy / 100}}}}};
}

TEST(Rates, AreDifferencesOverTheInterval) {
  const auto rates = port_rates(port("a", 100, 5), port("a", 1100, 25), 2.0);
  EXPECT_DOUBLE_EQ(rates.rx_packets, 500);
  EXPECT_DOUBLE_EQ(rates.rx_bits, 8 * 50'000);
  EXPECT_DOUBLE_EQ(rates.drops, 10);
  EXPECT_EQ(rates.drop_reasons, "ring_full 10");
  EXPECT_DOUBLE_EQ(port_rates(nullptr, port("a", 1100, 25), 2.0).rx_packets, 0) << "a new port";
  EXPECT_DOUBLE_EQ(port_rates(port("a", 1100, 25), port("a", 3, 0), 2.0).rx_packets, 0)
      << "made anew";
}

TEST(Rates, PercentilesAreOfTheInterval) {
  const auto before = disk(1000, json::array({json::array({100'000'000, 1000})}));
  const auto after = disk(1100, json::array({json::array({1000, 98}), json::array({5000, 2}),
                                             json::array({100'000'000, 1000})}));
  const auto rates = disk_rates(before, after, 1.0);
  EXPECT_DOUBLE_EQ(rates.requests, 100);
  EXPECT_EQ(rates.p50_ns, 1000u);
  EXPECT_EQ(rates.p99_ns, 5000u);
  EXPECT_EQ(rates.in_flight, 3u);
  EXPECT_EQ(disk_rates(after, after, 1.0).p50_ns, 0u) << "nothing happened";
}

TEST(Screen, ShowsWhoIsConnectedRatesDropsAndLatencies) {
  const auto before = sample(1'000'000'000, json::array({port("web0", 0, 0)}),
                             json::array({disk(0, json::array())}), 0);
  const auto after =
      sample(2'000'000'000, json::array({port("web0", 2'000'000, 7)}),
             json::array({disk(5000, json::array({json::array({9000, 5000})}))}), 900);
  EXPECT_EQ(render_status(before, after, {}),
            (Lines{"millraced 0.1.0  up 1m 5s  1 of 2 connected  cpu1 10.0% (100 cyc/round)", "",
                   "PORT  STATE    CONNECTED  TXpps  TXbps  RXpps  RXbps  DROPS/s",
                   "web0  running  42 qemu        0      0  2.00M  1.60G  ring_full 7", "",
                   "DISK  STATE    CONNECTED   IOPS  MB/s     p50     p99   p99.9  FLY  ERR",
                   "d0    running  -          5.00k  20.5  9.00us  9.00us  9.00us    3    0"}));
}

TEST(Screen, AHundredDevicesFitAndTheBusiestAreShown) {
  auto first = json::array(), second = json::array();
  for (unsigned i = 0; i < 100; ++i) {
    first.push_back(port("port" + std::to_string(i), 0, 0));
    second.push_back(port("port" + std::to_string(i), i, i));
  }
  auto disks = json::array();
  for (unsigned i = 0; i < 100; ++i) disks.push_back(disk(1, json::array()));
  const auto before = sample(0, first, disks, 0), after = sample(1'000'000'000, second, disks, 0);
  for (std::size_t height = 1; height < 60; ++height) {
    ScreenOptions options;
    options.width = 80;
    options.height = height;
    const auto lines = render_status(before, after, options);
    EXPECT_LE(lines.size(), height);
    for (const auto& line : lines) EXPECT_LE(columns_of(line), 80u) << line;
  }
  ScreenOptions options;
  options.width = 80;
  options.height = 24;
  const auto lines = render_status(before, after, options);
  EXPECT_TRUE(lines[3].starts_with("port99 ")) << lines[3];
  EXPECT_NE(std::find(lines.begin(), lines.end(), "... 91 more"), lines.end());
  options.sort = SortKey::name;
  EXPECT_TRUE(render_status(before, after, options)[3].starts_with("port0 "));
}

TEST(Screen, ColoursOnlyWhenAsked) {
  const auto both = sample(1, json::array({port("a", 0, 0)}), json::array(), 0);
  for (const auto& line : render_status(both, both, {})) {
    EXPECT_EQ(line.find('\x1b'), std::string::npos);
  }
  ScreenOptions options;
  options.colour = true;
  EXPECT_TRUE(render_status(both, both, options)[2].starts_with("\x1b[1m"));
}

TEST(Screen, ReactorsHaveTheirQueuesWithThem) {
  const json queues =
      json::array({{{"name", "web0"}, {"queue", 1}, {"load", 0.123}, {"pinned", true}},
                   {{"name", "d"}, {"queue", 0}, {"load", 0.5}, {"pinned", false}}});
  const auto lines = render_list("reactors",
                                 json::array({{{"index", 0},
                                               {"core", 2},
                                               {"mode", "poll"},
                                               {"load", 0.625},
                                               {"sleeps", 7},
                                               {"longest_round_ns", 900},
                                               {"queues", queues}},
                                              {{"index", 1}, {"load", 0.0}}}),
                                 {});
  EXPECT_EQ(lines, (Lines{"INDEX  CORE  MODE  LOAD  SLEEPS  LONGEST_ROUND_NS  QUEUES",
                          "0      2     poll  62%   7       900               web0/1 12% pinned, "
                          "d/0 50%",
                          "1      -     -     0%    -       -                 -"}));
}

TEST(Screen, DisksHaveTheirBackendWithThem) {
  const auto disk_of = [](const std::string& name, const json& ring, const json& pin) {
    return json{{"name", name},
                {"bytes", 4096},
                {"backend", {{"kind", "file"}, {"ring", ring}, {"pin", pin}}}};
  };
  const json off = {{"state", "off"}, {"bytes", 0}, {"why", nullptr}};
  const auto lines = render_list(
      "disks",
      {disk_of("a", {"defer-taskrun", "iopoll"},
               {{"state", "pinned"}, {"bytes", 8192}, {"why", nullptr}}),
       disk_of("b", json::array(), off),
       disk_of("c", {"plain"}, {{"state", "failed"}, {"bytes", 0}, {"why", "no memory"}})},
      {});
  EXPECT_EQ(
      lines,
      (Lines{
          "NAME  STATE  PEER  BYTES  QUEUES  READONLY  BACKEND  PIN                 SOCKET  RING",
          "a     -      -     4096   -       -         file     pinned, 8192 bytes  -       "
          "defer-taskrun, iopoll",
          "b     -      -     4096   -       -         file     off                 -       -",
          "c     -      -     4096   -       -         file     failed: no memory   -       "
          "plain"}));
}

TEST(Screen, ListsWhatTheDeviceOfAnUplinkDoes) {
  const auto lines = render_list(
      "uplinks",
      {{{"name", "a"},
        {"offloads", {{"checksum", "device"}, {"tso", "software"}, {"vlan_strip", "device"}}}},
       {{"name", "b"}, {"offloads", {{"checksum", "software"}}}},
       {{"name", "c"}}},
      {});
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_TRUE(lines[0].ends_with("  OFFLOADS")) << lines[0];
  EXPECT_TRUE(lines[1].ends_with("  checksum, vlan_strip")) << lines[1];
  EXPECT_TRUE(lines[2].ends_with("  -")) << lines[2];
  EXPECT_TRUE(lines[3].ends_with("  -")) << lines[3];
}

TEST(Screen, ListsAndCounters) {
  EXPECT_EQ(render_list("addresses",
                        json::array({{{"mac", "52:54:00:00:00:01"},
                                      {"vlan", 0},
                                      {"port", "web0"},
                                      {"age_s", 1.5},
                                      {"static", true}}}),
                        {}),
            (Lines{"MAC                VLAN  PORT  AGE_S  STATIC",
                   "52:54:00:00:00:01  0     web0  1.5    yes"}));
  EXPECT_EQ(render_counters({{"ports", {{"web0", {{"rx_packets", 7}, {"tx_packets", 0}}}}},
                             {"disks", json::object()},
                             {"uplinks", json::object()}},
                            {}),
            (Lines{"KIND   NAME  COUNTER     VALUE", "ports  web0  rx_packets      7"}));
}

TEST(Arguments, WordsBecomeWhatTheirKeysTake) {
  const auto arguments = parse_arguments(
      {"name=7", "queues=2", "trunk=10,20", "readonly=true", "size=1GiB", "discard_max=16MiB",
       "device=net_tap0,iface=mill0", "members=wan0,7", "bond=802.3ad"});
  ASSERT_TRUE(arguments);
  EXPECT_EQ(*arguments, (json{{"name", "7"},
                              {"queues", 2},
                              {"trunk", {10, 20}},
                              {"readonly", true},
                              {"size", "1GiB"},
                              {"discard_max", "16MiB"},
                              {"device", "net_tap0,iface=mill0"},
                              {"members", {"wan0", "7"}},
                              {"bond", "802.3ad"}}));
  EXPECT_EQ(parse_arguments({"direct=true"}, "uplink")->at("direct"), true);
  EXPECT_EQ(parse_arguments({"direct=on"}, "disk")->at("direct"), "on");
  EXPECT_EQ(parse_arguments({"direct=7"}, "port")->at("direct"), "7");
  EXPECT_EQ(parse_arguments({"name"}).error().message, "\"name\" is not key=value");
  EXPECT_EQ(parse_arguments({"a=1", "a=2"}).error().message, "the key a is given twice");
}

}  // namespace
}  // namespace millrace::ctl
