#include "vmm/console.hpp"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace millrace::vmm {

namespace {

class ConsoleTest : public testing::Test {
 protected:
  void SetUp() override {
    folder = std::filesystem::temp_directory_path() / "millrace-console-XXXXXX";
    ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  }
  void TearDown() override { std::filesystem::remove_all(folder); }

  std::unique_ptr<Console> make(const std::string& where) {
    auto console = Console::make(loop, where, [] {});
    EXPECT_TRUE(console) << console.error().message;
    return *std::move(console);
  }
  base::Fd connect(const std::string& path) {
    base::Fd client{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    EXPECT_EQ(::connect(client.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address),
              0);
    step();
    return client;
  }
  void step() {
    for (int i = 0; i < 4; ++i) loop.step(std::chrono::milliseconds{0});
  }
  static void say(Console& console, const std::string& text) {
    for (const char letter : text) console.transmit(static_cast<std::byte>(letter));
  }
  static std::string hear(const base::Fd& client) {
    std::string text(1 << 17, '\0');
    const auto got = ::read(client.get(), text.data(), text.size());
    text.resize(got < 0 ? 0 : static_cast<std::size_t>(got));
    return text;
  }
  // So many bytes, however often the loop has to turn.
  std::string await(const base::Fd& client, std::size_t size) {
    std::string all;
    for (int turns = 0; all.size() < size && turns < 1000; ++turns) {
      all += hear(client);
      if (all.size() < size) loop.step(std::chrono::milliseconds{10});
    }
    return all;
  }
  base::EventLoop loop;
  std::string folder;
};

TEST_F(ConsoleTest, AFileGetsEverything) {
  const auto path = folder + "/log";
  say(*make(path), "hello\n");
  std::ifstream file{path};
  std::string line;
  std::getline(file, line);
  EXPECT_EQ(line, "hello");
}

TEST_F(ConsoleTest, ASocketsClientGetsWhatWasKeptAndANewerOneReplacesIt) {
  const auto path = folder + "/socket";
  const auto console = make("socket:" + path);
  say(*console, "early ");
  const auto first = connect(path);
  say(*console, "late");
  EXPECT_EQ(await(first, 10), "early late");
  const auto second = connect(path);
  say(*console, "next");
  EXPECT_EQ(await(second, 4), "next");
  EXPECT_EQ(hear(first), "");
  char byte = 0;
  EXPECT_EQ(::read(first.get(), &byte, 1), 0);  // it was hung up
}

TEST_F(ConsoleTest, WhatComesByteByByteGoesOutTogether) {
  const auto path = folder + "/socket";
  const auto console = make("socket:" + path);
  const auto client = connect(path);
  say(*console, "by the loop");
  EXPECT_EQ(hear(client), "");  // a byte costs the vCPU no system call
  EXPECT_EQ(await(client, 11), "by the loop");
  say(*console, ", later too");
  EXPECT_EQ(await(client, 11), ", later too");
}

TEST_F(ConsoleTest, AVcpuPutsOutMuchWithoutTheLoop) {
  const auto path = folder + "/socket";
  const auto console = make("socket:" + path);
  const auto client = connect(path);
  say(*console, std::string(5000, 'x'));
  EXPECT_EQ(hear(client).size(), 4096u);
}

TEST_F(ConsoleTest, OfWhatNobodyTakesTheNewestIsKept) {
  const auto path = folder + "/socket";
  const auto console = make("socket:" + path);
  say(*console, "old");
  say(*console, std::string(Console::backlog_max - 3, 'x') + "end");
  const auto client = connect(path);
  std::string all;
  for (std::string part; !(part = hear(client)).empty(); step()) all += part;
  EXPECT_EQ(all.size(), Console::backlog_max);
  EXPECT_EQ(all.front(), 'x');
  EXPECT_TRUE(all.ends_with("end"));
}

TEST_F(ConsoleTest, InputWaitsForTheGuestsRoom) {
  const auto path = folder + "/socket";
  const auto console = make("socket:" + path);
  std::string taken;
  std::size_t room = 2;
  console->set_input([&](std::span<const std::byte> bytes) {
    const auto count = std::min(room, bytes.size());
    for (const auto byte : bytes.first(count)) taken += static_cast<char>(byte);
    room -= count;
    return count;
  });
  const auto client = connect(path);
  ASSERT_EQ(::send(client.get(), "abcd", 4, 0), 4);
  step();
  EXPECT_EQ(taken, "ab");
  room = 10;
  console->room();
  step();
  EXPECT_EQ(taken, "abcd");
  console->set_input({});
  ASSERT_EQ(::send(client.get(), "e", 1, 0), 1);
  step();
  EXPECT_EQ(taken, "abcd");
}

TEST_F(ConsoleTest, ABadPlaceIsOneClearLine) {
  for (const auto& where : {folder + "/no/file", "socket:" + folder + "/no/socket",
                            std::string{"socket:"}, "socket:" + std::string(200, 'x')}) {
    const auto console = Console::make(loop, where, [] {});
    ASSERT_FALSE(console) << where;
    EXPECT_NE(console.error().message.find("console"), std::string::npos);
  }
}

}  // namespace

}  // namespace millrace::vmm
