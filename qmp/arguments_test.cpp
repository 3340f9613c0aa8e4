#include "qmp/arguments.hpp"

#include <gtest/gtest.h>

namespace millrace::qmp {
namespace {

using nlohmann::json;

TEST(Arguments, ReadsWhatIsThere) {
  const json given{{"id", "a"}, {"on", true}, {"count", 7}};
  Arguments arguments{given, "do"};
  EXPECT_EQ(arguments.text("id"), "a");
  EXPECT_EQ(arguments.optional_boolean("on"), true);
  EXPECT_EQ(arguments.optional_number("count", 1, 7), 7u);
  EXPECT_EQ(arguments.optional_text("other"), std::nullopt);
  EXPECT_EQ(arguments.optional_boolean("off"), std::nullopt);
  EXPECT_EQ(arguments.optional_number("size", 1, 2), std::nullopt);
  EXPECT_EQ(arguments.finish(), "");
}

TEST(Arguments, SaysTheFirstThingThatIsWrong) {
  const auto line = [](const json& given) {
    Arguments arguments{given, "do"};
    std::ignore = arguments.text("id");
    std::ignore = arguments.optional_boolean("on");
    std::ignore = arguments.optional_number("count", 1, 7);
    return arguments.finish();
  };
  EXPECT_EQ(line({{"id", "a"}}), "");
  EXPECT_EQ(line(json::object()), "do: \"id\" is missing");
  EXPECT_EQ(line({{"id", ""}}), "do: \"id\" is empty");
  EXPECT_EQ(line({{"id", 1}}), "do: \"id\" has to be text");
  EXPECT_EQ(line({{"id", std::string("a\0b", 3)}}), "do: \"id\" has a zero byte in it");
  EXPECT_EQ(line({{"id", "a"}, {"on", 1}}), "do: \"on\" has to be true or false");
  for (const auto& count : {json(0), json(8), json(-1), json(1.5), json("7"), json(nullptr)}) {
    EXPECT_EQ(line({{"id", "a"}, {"count", count}}),
              "do: \"count\" has to be a whole number from 1 to 7")
        << count;
  }
  EXPECT_EQ(line({{"id", "a"}, {"colour", "red"}}), "do: there is no argument \"colour\"");
}

}  // namespace
}  // namespace millrace::qmp
