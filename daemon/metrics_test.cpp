#include "daemon/metrics.hpp"

#include <gtest/gtest.h>

namespace millrace::daemon {
namespace {

using nlohmann::json;

TEST(Metrics, OneFamilyForEachCounterAndOneSampleForEachUnit) {
  const auto text = metrics_of(
      json{{"status", {{"version", "1.2.3"}, {"uptime_s", 4.5}}},
           {"reactors", {{{"index", 0}, {"rounds", 10}, {"busy_cycles", 5}}}},
           {"ports",
            {{{"name", "web\"0"}, {"connected", true}, {"counters", {{"rx_packets", 3}}}},
             {{"name", "web1"}, {"connected", false}, {"counters", {{"rx_packets", 4}}}}}},
           {"disks",
            {{{"name", "d"},
              {"connected", true},
              {"bytes", 512},
              {"counters", {{"in_flight", 2}, {"io_errors", 1}}},
              {"latency_ns", {{"p50", 1000}, {"p99", 2000}, {"p999", 3000}}}}}},
           {"uplinks",
            {{{"name", "wire"},
              {"link_up", true},
              {"offloads", {{"checksum", "device"}, {"tso", "software"}}}},
             {{"name", "gone"}, {"link_up", false}}}}});
  EXPECT_EQ(text, R"(# TYPE millrace_info gauge
millrace_info{version="1.2.3"} 1
# TYPE millrace_uptime_seconds gauge
millrace_uptime_seconds 4.5
# TYPE millrace_reactor_rounds_total counter
millrace_reactor_rounds_total{reactor="0"} 10
# TYPE millrace_reactor_busy_cycles_total counter
millrace_reactor_busy_cycles_total{reactor="0"} 5
# TYPE millrace_port_connected gauge
millrace_port_connected{port="web\"0"} 1
millrace_port_connected{port="web1"} 0
# TYPE millrace_disk_connected gauge
millrace_disk_connected{disk="d"} 1
# TYPE millrace_disk_bytes gauge
millrace_disk_bytes{disk="d"} 512
# TYPE millrace_uplink_link_up gauge
millrace_uplink_link_up{uplink="wire"} 1
millrace_uplink_link_up{uplink="gone"} 0
# TYPE millrace_uplink_offload gauge
millrace_uplink_offload{uplink="wire",offload="checksum"} 1
millrace_uplink_offload{uplink="wire",offload="tso"} 0
# TYPE millrace_port_rx_packets_total counter
millrace_port_rx_packets_total{port="web\"0"} 3
millrace_port_rx_packets_total{port="web1"} 4
# TYPE millrace_disk_in_flight gauge
millrace_disk_in_flight{disk="d"} 2
# TYPE millrace_disk_io_errors_total counter
millrace_disk_io_errors_total{disk="d"} 1
# TYPE millrace_disk_latency_seconds summary
millrace_disk_latency_seconds{disk="d",quantile="0.5"} 1e-06
millrace_disk_latency_seconds{disk="d",quantile="0.99"} 2e-06
millrace_disk_latency_seconds{disk="d",quantile="0.999"} 3e-06
)");
}

}  // namespace
}  // namespace millrace::daemon
