#include "daemon/ctl/vm.hpp"

#include <gtest/gtest.h>

namespace millrace::ctl {
namespace {

using nlohmann::json;
using Lines = std::vector<std::string>;

TEST(GuestWords, AGuestIsOneLine) {
  EXPECT_EQ(render_guest({{"name", "web0"}}, {{"status", "running"}}, json::array({1})),
            "web0: running, 1 vCPU");
  EXPECT_EQ(render_guest(json::object(), {{"status", "paused"}, {"why", "asked to"}},
                         json::array({1, 2})),
            "guest: paused (asked to), 2 vCPUs");
}

TEST(GuestWords, DevicesAreATable) {
  const json devices = json::array({{{"id", "net0"},
                                     {"driver", "net"},
                                     {"queues", 3},
                                     {"connected", true},
                                     {"socket", "/run/web0.sock"}},
                                    {{"id", "root"},
                                     {"driver", "disk"},
                                     {"queues", 16},
                                     {"connected", false},
                                     {"socket", "/run/root.sock"}}});
  EXPECT_EQ(render_devices(devices), (Lines{"ID    DRIVER  QUEUES  BACK-END   SOCKET",
                                            "net0  net          3  connected  /run/web0.sock",
                                            "root  disk        16  gone       /run/root.sock"}));
}

}  // namespace
}  // namespace millrace::ctl
