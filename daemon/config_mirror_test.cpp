#include <gtest/gtest.h>

#include "daemon/config.hpp"
#include "daemon/testing/config_text.hpp"

namespace millrace::daemon {
namespace {

using config_text::Lines;
using config_text::parsed;
using config_text::refused;
using vswitch::MirrorDirection;

std::string port(const std::string& name) {
  return "[[port]]\nname = \"" + name + "\"\nsocket = \"/run/" + name + ".sock\"\n";
}
const std::string ports = port("a") + port("b") + port("watcher");  // nine lines
std::string mirror(const std::string& name, const std::string& from, const std::string& to,
                   const std::string& keys = {}) {
  return "[[mirror]]\nname = \"" + name + "\"\nfrom = " + from + "\nto = \"" + to + "\"\n" + keys;
}

TEST(MirrorConfig, ReadsMirrors) {
  const auto config = parsed("[[uplink]]\nname = \"wan\"\ndevice = \"net_null0\"\n" + ports +
                             mirror("m", R"(["a", "wan"])", "watcher") +
                             mirror("i", R"(["a"])", "b", "direction = \"in\"\n"));
  ASSERT_EQ(config.mirrors.size(), 2u);
  EXPECT_EQ(config.mirrors[0].name, "m");
  EXPECT_EQ(config.mirrors[0].from, (Lines{"a", "wan"}));
  EXPECT_EQ(config.mirrors[0].to, "watcher");
  EXPECT_EQ(config.mirrors[0].direction, MirrorDirection::both);
  EXPECT_EQ(config.mirrors[1].direction, MirrorDirection::in);
}

TEST(MirrorConfig, RefusesWhatIsNotThere) {
  const auto line = [](const std::string& name) {
    return "m.toml:10:1: [[mirror]] m: there is no port or uplink " + name +
           "; add a [[port]] or an [[uplink]] of that name";
  };
  EXPECT_EQ(refused(ports + mirror("m", R"(["a", "c"])", "d")), (Lines{line("c"), line("d")}));
}

TEST(MirrorConfig, RefusesWrongNames) {
  const auto give = "; give it like [\"web0\"], the ports and uplinks that are watched";
  const auto from = std::string{"m.toml:12:8: [[mirror]] m: from "};
  EXPECT_EQ(refused(ports + mirror("m", "[]", "b")), (Lines{from + "is empty" + give}));
  EXPECT_EQ(refused(ports + mirror("m", "\"a\"", "b")),
            (Lines{from + "is no list of names; give it like [\"web0\"], the ports and uplinks "
                          "that are watched"}));
  EXPECT_EQ(refused(ports + mirror("m", R"(["a", "a"])", "b")),
            (Lines{from + "has a twice; give each once"}));
  EXPECT_EQ(refused(ports + mirror("m", R"(["a", "b"])", "b")),
            (Lines{from + "has b, its own destination; leave it out"}));
  EXPECT_EQ(refused(ports + mirror("m", R"(["a"])", "b", "direction = \"up\"\n")),
            (Lines{"m.toml:14:13: [[mirror]] m: direction is \"up\"; give \"both\", \"in\" or "
                   "\"out\""}));
}

// No loops, and one mirror for each destination.
TEST(MirrorConfig, RefusesMirrorsOfMirrors) {
  const auto begin = std::string{"m.toml:14:1: [[mirror]] n: "};
  const auto first = ports + mirror("m", R"(["a"])", "watcher");
  EXPECT_EQ(refused(first + mirror("n", R"(["b"])", "watcher")),
            (Lines{begin + "to watcher is the destination of m already; name all ports in one "
                           "mirror"}));
  EXPECT_EQ(refused(first + mirror("n", R"(["b"])", "a")),
            (Lines{begin + "to a is mirrored by m, and copies are not copied; give another"}));
  EXPECT_EQ(refused(first + mirror("n", R"(["watcher"])", "b")),
            (Lines{begin + "from has watcher, the destination of m, and copies are not copied; "
                           "leave it out"}));
  EXPECT_EQ(refused(first + mirror("a", R"(["b"])", "b")).size(), 2u);
}

}  // namespace
}  // namespace millrace::daemon
