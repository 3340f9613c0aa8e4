#include "daemon/uplink_choice.hpp"

#include <gmock/gmock.h>

#include <vector>

namespace millrace::daemon {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

UplinkView view(const std::string& name, bool up, bool carries, const std::string& standby = {}) {
  return {.name = name,
          .standby = standby,
          .bond = {},
          .usable = true,
          .up = up,
          .calm = true,
          .carries = carries};
}

TEST(UplinkChoice, TakesAllThatStandAlone) {
  std::vector views{view("a", true, true), view("b", false, true), view("c", true, false, "gone")};
  EXPECT_THAT(choose_uplinks(views), ElementsAre("a", "b", "c"));
  views[1].usable = false;
  EXPECT_THAT(choose_uplinks(views), ElementsAre("a", "c"));
}

TEST(UplinkChoice, TakesOneOfTwo) {
  std::vector views{view("a", true, true, "b"), view("b", true, false)};
  EXPECT_THAT(choose_uplinks(views), ElementsAre("a"));
  views[0].up = false;
  EXPECT_THAT(choose_uplinks(views), ElementsAre("b"));
  views[0] = view("a", true, true, "b");
  views[0].usable = false;
  EXPECT_THAT(choose_uplinks(views), ElementsAre("b"));
  views[1].usable = false;
  EXPECT_THAT(choose_uplinks(views), IsEmpty());
}

TEST(UplinkChoice, TakesMembersOfABondThatHasItsDevice) {
  std::vector views{view("a", true, true), view("b", false, true), view("t", true, true)};
  views[0].bond = views[1].bond = "t";
  EXPECT_THAT(choose_uplinks(views), ElementsAre("a", "b", "t"));
  views[0].usable = false;
  EXPECT_THAT(choose_uplinks(views), ElementsAre("b", "t"));
  views[2].usable = false;
  EXPECT_THAT(choose_uplinks(views), IsEmpty());
  views.pop_back();
  EXPECT_THAT(choose_uplinks(views), IsEmpty());
}

TEST(UplinkChoice, GoesBackWhenTheFirstIsCalm) {
  std::vector views{view("a", true, false, "b"), view("b", true, true)};
  views[0].calm = false;
  EXPECT_THAT(choose_uplinks(views), ElementsAre("b"));
  views[0].calm = true;
  EXPECT_THAT(choose_uplinks(views), ElementsAre("a"));
  views[0].calm = false;
  views[1].up = false;  // better one that may flap than none
  EXPECT_THAT(choose_uplinks(views), ElementsAre("a"));
}

TEST(UplinkChoice, StaysWhereNeitherHasALink) {
  std::vector views{view("a", false, false, "b"), view("b", false, true)};
  EXPECT_THAT(choose_uplinks(views), ElementsAre("b"));
  views[1].carries = false;
  EXPECT_THAT(choose_uplinks(views), ElementsAre("a"));
}

TEST(UplinkChoice, LeadsOutWhileOneOfTheTwoHasALink) {
  std::vector views{view("a", false, false, "b"), view("b", true, true)};
  EXPECT_TRUE(leads_out(views, "a"));
  views[1].up = false;
  EXPECT_FALSE(leads_out(views, "a"));
  views[0].up = true;
  EXPECT_TRUE(leads_out(views, "a"));
  EXPECT_FALSE(leads_out(views, "b"));
  EXPECT_FALSE(leads_out(views, "c"));
}

TEST(UplinkChoice, WaitsLongerEachTime) {
  EXPECT_EQ(pause_before(0, 500ms, 30s), 500ms);
  EXPECT_EQ(pause_before(1, 500ms, 30s), 1s);
  EXPECT_EQ(pause_before(9, 500ms, 30s), 30s);
  EXPECT_EQ(pause_before(4'000'000'000u, 500ms, 2s), 2s);
}

}  // namespace
}  // namespace millrace::daemon
