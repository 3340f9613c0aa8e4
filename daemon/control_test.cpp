// The wire protocol over a real socket, with commands of the test's own.
#include "daemon/control.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstring>
#include <filesystem>

#include "daemon/json_framer.hpp"

namespace millrace::daemon {
namespace {

using nlohmann::json;

class Socket {
 public:
  explicit Socket(const std::string& path)
      : fd_{::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)} {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    connected_ =
        ::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }
  [[nodiscard]] bool connected() const { return connected_; }
  // False: the peer is gone, or its buffer is full.
  bool send(std::string_view text) {
    return ::send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT) ==
           static_cast<ssize_t>(text.size());
  }
  // Reads what there is; true when the peer hung up.
  bool drain() {
    char bytes[65536];
    ssize_t got = 0;
    while ((got = ::recv(fd_.get(), bytes, sizeof bytes, MSG_DONTWAIT)) > 0) {
      input_.append(bytes, static_cast<std::size_t>(got));
    }
    return got == 0 || (errno != EAGAIN && errno != EINTR);
  }
  json take_message() {
    const auto end = input_.find('\n');
    if (end == std::string::npos) return nullptr;
    auto message = json::parse(input_.substr(0, end), nullptr, false);
    input_.erase(0, end + 1);
    return message;
  }
  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  base::Fd fd_;
  bool connected_ = false;
  std::string input_;
};

class ControlTest : public testing::Test {
 protected:
  ControlTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "mr-ctl-XXXXXX").string();
    directory_ = ::mkdtemp(pattern.data());
    path_ = directory_ + "/c.sock";
    CommandTable table;
    table.add("echo", [](const json& arguments, const Reply& reply) { reply(arguments); });
    table.add("refuse", [](const json&, const Reply& reply) {
      reply(refuse("there is no disk x", "DeviceNotFound"));
    });
    table.add("later", [this](const json&, const Reply& reply) { later_ = reply; });
    table.add("big",
              [](const json&, const Reply& reply) { reply(json(std::string(200'000, 'x'))); });
    table.add("bytes",
              [](const json&, const Reply& reply) { reply(json(std::string{"\xff\xfe"})); });
    control_ = std::move(*Control::make(loop_, path_, 0600, std::move(table)));
  }
  ~ControlTest() override {
    control_.reset();
    std::filesystem::remove_all(directory_);
  }

  void turn() {
    for (int i = 0; i < 4; ++i) loop_.step(std::chrono::milliseconds{0});
  }
  // The next message, or null when the daemon has nothing to say.
  json next(Socket& socket) {
    for (int i = 0; i < 50; ++i) {
      auto message = socket.take_message();
      if (!message.is_null()) return message;
      turn();
      socket.drain();
    }
    return socket.take_message();
  }
  json ask(Socket& socket, const std::string& request) {
    EXPECT_TRUE(socket.send(request));
    return next(socket);
  }
  void negotiate(Socket& socket) {
    EXPECT_TRUE(next(socket).contains("QMP"));
    EXPECT_EQ(ask(socket, R"({"execute":"qmp_capabilities"})"), (json{{"return", json::object()}}));
  }
  // True when the daemon hung up, after as much as it had to say.
  bool hung_up(Socket& socket) {
    for (int i = 0; i < 50; ++i) {
      turn();
      if (socket.drain()) return true;
    }
    return false;
  }

  std::string directory_, path_;
  base::EventLoop loop_;
  Reply later_;
  std::unique_ptr<Control> control_;
};

TEST_F(ControlTest, GreetsAndWantsNegotiationFirst) {
  Socket socket{path_};
  const auto greeting = next(socket);
  ASSERT_TRUE(greeting.contains("QMP"));
  EXPECT_EQ(greeting["QMP"]["capabilities"], json::array());
  EXPECT_TRUE(greeting["QMP"]["version"]["qemu"]["major"].is_number());
  EXPECT_EQ(
      ask(socket, R"({"execute":"echo","id":1})"),
      (json{{"error", {{"class", "CommandNotFound"}, {"desc", "execute qmp_capabilities first"}}},
            {"id", 1}}));
  EXPECT_EQ(ask(socket, R"({"execute":"qmp_capabilities","arguments":{"enable":[]},"id":"n"})"),
            (json{{"return", json::object()}, {"id", "n"}}));
  EXPECT_EQ(ask(socket, R"({"execute":"qmp_capabilities"})")["error"]["class"], "CommandNotFound");
}

TEST_F(ControlTest, ExecutesInOrderWithArgumentsAndId) {
  Socket socket{path_};
  negotiate(socket);
  // Three requests in two writes, cut inside a string that holds a brace.
  ASSERT_TRUE(socket.send(R"({"execute":"echo","arguments":{"a":"}{\""},"id":{"x":[1]}} {"execu)"));
  turn();
  ASSERT_TRUE(socket.send("te\":\"refuse\",\"id\":2}\n{\"execute\":\"echo\"}"));
  EXPECT_EQ(next(socket), (json{{"return", {{"a", "}{\""}}}, {"id", {{"x", {1}}}}}));
  EXPECT_EQ(
      next(socket),
      (json{{"error", {{"class", "DeviceNotFound"}, {"desc", "there is no disk x"}}}, {"id", 2}}));
  EXPECT_EQ(next(socket), (json{{"return", json::object()}}));
}

TEST_F(ControlTest, ALaterAnswerHoldsBackTheNextCommandOfItsClientOnly) {
  Socket one{path_}, other{path_};
  negotiate(one);
  negotiate(other);
  ASSERT_TRUE(one.send(R"({"execute":"later","id":1}{"execute":"echo","id":2})"));
  EXPECT_TRUE(next(one).is_null());
  EXPECT_EQ(ask(other, R"({"execute":"echo","id":9})")["id"], 9);
  later_(json{7});
  EXPECT_EQ(next(one), (json{{"return", {7}}, {"id", 1}}));
  EXPECT_EQ(next(one)["id"], 2);
}

TEST_F(ControlTest, AnAnswerToAClientThatLeftIsDropped) {
  {
    Socket socket{path_};
    negotiate(socket);
    ASSERT_TRUE(socket.send(R"({"execute":"later"})"));
    turn();
    EXPECT_EQ(control_->clients(), 1u);
  }
  turn();
  EXPECT_EQ(control_->clients(), 0u);
  later_(json::object());
}

TEST_F(ControlTest, WhatIsNotARequestIsRefusedAndTheConnectionGoesOn) {
  Socket socket{path_};
  negotiate(socket);
  for (const char* request :
       {"hello\n", "[1,2]", "{\"execute\": 1}", "{\"arguments\": {}}", "{\"execute\":\"echo\",}",
        "{\"execute\":\"echo\",\"arguments\":[]}", "{\"execute\":\"echo\",\"x\":1}", "{]", "\x01\n",
        "{\"execute\":\"\xff\"}", "{\"execute\":\"none\"}"}) {
    const auto answer = ask(socket, request);
    ASSERT_TRUE(answer.contains("error")) << request << " -> " << answer;
    EXPECT_FALSE(answer["error"]["desc"].get<std::string>().empty());
  }
  EXPECT_TRUE(ask(socket, R"({"execute":"echo"})").contains("return"));
}

TEST_F(ControlTest, AnEndlessRequestEndsTheConnection) {
  Socket socket{path_};
  negotiate(socket);
  const std::string piece(32 * 1024, 'x');
  bool sent = socket.send("{\"execute\":\"");
  for (int i = 0; sent && i < 100; ++i) {
    sent = socket.send(piece);
    turn();
  }
  EXPECT_TRUE(hung_up(socket));
  turn();
  EXPECT_EQ(control_->clients(), 0u);
}

TEST_F(ControlTest, ADeepRequestEndsTheConnection) {
  Socket socket{path_};
  negotiate(socket);
  ASSERT_TRUE(socket.send(std::string(JsonFramer::depth_max + 1, '[')));
  EXPECT_TRUE(hung_up(socket));
  EXPECT_NE(socket.take_message()["error"]["desc"].get<std::string>().find("nested"),
            std::string::npos);
}

TEST_F(ControlTest, ASlowReaderIsNotServedFurtherAndEventsCutItOff) {
  Socket slow{path_}, fast{path_};
  negotiate(slow);
  negotiate(fast);
  // Answers that are not read hold back further commands, without end and without loss.
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(slow.send(R"({"execute":"big"})"));
  for (int i = 0; i < 100; ++i) turn();
  EXPECT_EQ(control_->clients(), 2u);
  EXPECT_TRUE(ask(fast, R"({"execute":"echo"})").contains("return"));
  // Events do not wait for anybody.
  const json data{{"text", std::string(100'000, 'e')}};
  for (int i = 0; i < 50; ++i) {
    control_->emit("NOISE", data);
    turn();
    fast.drain();
  }
  EXPECT_EQ(control_->clients(), 1u);
  EXPECT_TRUE(hung_up(slow));
}

TEST_F(ControlTest, AHundredAnswersReachAReaderThatComesBack) {
  Socket socket{path_};
  negotiate(socket);
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(socket.send(R"({"execute":"big"})"));
  for (int i = 0; i < 20; ++i) turn();
  for (int i = 0; i < 20; ++i)
    EXPECT_EQ(next(socket)["return"].get<std::string>().size(), 200'000u);
}

TEST_F(ControlTest, EventsReachThoseThatNegotiated) {
  Socket ready{path_}, silent{path_};
  negotiate(ready);
  EXPECT_TRUE(next(silent).contains("QMP"));
  control_->emit("DISK_RESIZED", {{"name", "d"}});
  const auto event = next(ready);
  EXPECT_EQ(event["event"], "DISK_RESIZED");
  EXPECT_EQ(event["data"], (json{{"name", "d"}}));
  EXPECT_GT(event["timestamp"]["seconds"].get<std::int64_t>(), 1'600'000'000);
  EXPECT_TRUE(event["timestamp"]["microseconds"].is_number());
  EXPECT_TRUE(next(silent).is_null());
}

TEST_F(ControlTest, AHalfClosedClientGetsItsAnswers) {
  Socket socket{path_};
  ASSERT_TRUE(socket.send(R"({"execute":"qmp_capabilities"}{"execute":"echo","id":3})"));
  ::shutdown(socket.fd(), SHUT_WR);
  EXPECT_TRUE(hung_up(socket));
  EXPECT_TRUE(socket.take_message().contains("QMP"));
  EXPECT_TRUE(socket.take_message().contains("return"));
  EXPECT_EQ(socket.take_message()["id"], 3);
}

TEST_F(ControlTest, BytesThatAreNoTextAreReplacedInAnswers) {
  Socket socket{path_};
  negotiate(socket);
  EXPECT_TRUE(ask(socket, R"({"execute":"bytes"})")["return"].is_string());
}

TEST_F(ControlTest, ListsItsCommands) {
  Socket socket{path_};
  negotiate(socket);
  const auto names = ask(socket, R"({"execute":"query-commands"})")["return"];
  EXPECT_NE(std::find(names.begin(), names.end(), json{{"name", "echo"}}), names.end());
}

TEST_F(ControlTest, TooManyClientsAreTurnedAway) {
  std::vector<std::unique_ptr<Socket>> sockets;
  for (std::size_t i = 0; i < Control::clients_max + 4; ++i) {
    sockets.push_back(std::make_unique<Socket>(path_));
    turn();
  }
  EXPECT_EQ(control_->clients(), Control::clients_max);
  EXPECT_TRUE(hung_up(*sockets.back()));
  sockets.clear();
  for (int i = 0; i < 20; ++i) turn();
  EXPECT_EQ(control_->clients(), 0u);
}

TEST_F(ControlTest, TheSocketHasItsModeAndOneOwner) {
  struct stat status {};
  ASSERT_EQ(::stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  const auto second = Control::make(loop_, path_, 0600, {});
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().message, "control socket " + path_ +
                                        " is in use by another process; stop that one, or give "
                                        "another path");
  turn();
  EXPECT_TRUE(Socket{path_}.connected()) << "the first one still serves";
}

TEST_F(ControlTest, AStaleSocketFileIsReplaced) {
  const auto stale = directory_ + "/stale.sock";
  {
    base::Fd dead{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, stale.c_str(), sizeof address.sun_path - 1);
    ASSERT_EQ(::bind(dead.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  }
  auto control = Control::make(loop_, stale, 0600, {});
  ASSERT_TRUE(control) << control.error().message;
  EXPECT_TRUE(Socket{stale}.connected());
  control->reset();
  EXPECT_FALSE(std::filesystem::exists(stale));
}

TEST(JsonFramer, CutsAnyFragmentation) {
  const std::string stream = R"({"a":"\"}"} [1,{"b":[]}]
word
{"c":{}})";
  for (std::size_t piece = 1; piece <= stream.size(); ++piece) {
    JsonFramer framer;
    std::vector<std::string> documents;
    for (std::size_t at = 0; at < stream.size(); at += piece) {
      framer.feed(std::string_view{stream}.substr(at, piece));
      while (auto document = framer.next()) documents.push_back(*document);
    }
    EXPECT_EQ(documents, (std::vector<std::string>{R"({"a":"\"}"})", R"([1,{"b":[]}])", "word\n",
                                                   R"({"c":{}})"}));
    EXPECT_EQ(framer.broken(), nullptr);
  }
}

}  // namespace
}  // namespace millrace::daemon
