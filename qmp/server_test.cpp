// The wire protocol over a real socket, with commands of the test's own.
#include "qmp/server.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "qmp/json_framer.hpp"
#include "qmp/testing/socket.hpp"
#include "qmp/version.hpp"

namespace millrace::qmp {
namespace {

using nlohmann::json;
using testing::Socket;

ServerOptions options(const std::string& path) {
  return {.socket = path, .permissions = 0600, .version = version_object("1.2.3")};
}

class ServerTest : public ::testing::Test {
 protected:
  ServerTest() {
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
    table.add_with_descriptor("take", [this](const json&, base::Fd fd, const Reply& reply) {
      taken_ = std::move(fd);
      reply(json(taken_.valid()));
    });
    server_ = std::move(*Server::make(loop_, options(path_), std::move(table)));
  }
  ~ServerTest() override {
    server_.reset();
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
  base::Fd taken_;
  std::unique_ptr<Server> server_;
};

TEST_F(ServerTest, GreetsAndWantsNegotiationFirst) {
  Socket socket{path_};
  const auto greeting = next(socket);
  ASSERT_TRUE(greeting.contains("QMP"));
  EXPECT_EQ(greeting["QMP"]["capabilities"], json::array());
  EXPECT_EQ(greeting["QMP"]["version"]["qemu"], (json{{"major", 1}, {"minor", 2}, {"micro", 3}}));
  EXPECT_EQ(
      ask(socket, R"({"execute":"echo","id":1})"),
      (json{{"error", {{"class", "CommandNotFound"}, {"desc", "execute qmp_capabilities first"}}},
            {"id", 1}}));
  EXPECT_EQ(ask(socket, R"({"execute":"qmp_capabilities","arguments":{"enable":[]},"id":"n"})"),
            (json{{"return", json::object()}, {"id", "n"}}));
  EXPECT_EQ(ask(socket, R"({"execute":"qmp_capabilities"})")["error"]["class"], "CommandNotFound");
}

TEST_F(ServerTest, ExecutesInOrderWithArgumentsAndId) {
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

TEST_F(ServerTest, ALaterAnswerHoldsBackTheNextCommandOfItsClientOnly) {
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

TEST_F(ServerTest, AnAnswerToAClientThatLeftIsDropped) {
  {
    Socket socket{path_};
    negotiate(socket);
    ASSERT_TRUE(socket.send(R"({"execute":"later"})"));
    turn();
    EXPECT_EQ(server_->clients(), 1u);
  }
  turn();
  EXPECT_EQ(server_->clients(), 0u);
  later_(json::object());
}

TEST_F(ServerTest, WhatIsNotARequestIsRefusedAndTheConnectionGoesOn) {
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

TEST_F(ServerTest, AnEndlessRequestEndsTheConnection) {
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
  EXPECT_EQ(server_->clients(), 0u);
}

TEST_F(ServerTest, ADeepRequestEndsTheConnection) {
  Socket socket{path_};
  negotiate(socket);
  ASSERT_TRUE(socket.send(std::string(JsonFramer::depth_max + 1, '[')));
  EXPECT_TRUE(hung_up(socket));
  EXPECT_NE(socket.take_message()["error"]["desc"].get<std::string>().find("nested"),
            std::string::npos);
}

TEST_F(ServerTest, ASlowReaderIsNotServedFurtherAndEventsCutItOff) {
  Socket slow{path_}, fast{path_};
  negotiate(slow);
  negotiate(fast);
  // Answers that are not read hold back further commands, without end and without loss.
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(slow.send(R"({"execute":"big"})"));
  for (int i = 0; i < 100; ++i) turn();
  EXPECT_EQ(server_->clients(), 2u);
  EXPECT_TRUE(ask(fast, R"({"execute":"echo"})").contains("return"));
  // Events do not wait for anybody.
  const json data{{"text", std::string(100'000, 'e')}};
  for (int i = 0; i < 50; ++i) {
    server_->emit("NOISE", data);
    turn();
    fast.drain();
  }
  EXPECT_EQ(server_->clients(), 1u);
  EXPECT_TRUE(hung_up(slow));
}

TEST_F(ServerTest, AHundredAnswersReachAReaderThatComesBack) {
  Socket socket{path_};
  negotiate(socket);
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(socket.send(R"({"execute":"big"})"));
  for (int i = 0; i < 20; ++i) turn();
  for (int i = 0; i < 20; ++i)
    EXPECT_EQ(next(socket)["return"].get<std::string>().size(), 200'000u);
}

TEST_F(ServerTest, EventsReachThoseThatNegotiated) {
  Socket ready{path_}, silent{path_};
  negotiate(ready);
  EXPECT_TRUE(next(silent).contains("QMP"));
  server_->emit("DISK_RESIZED", {{"name", "d"}});
  const auto event = next(ready);
  EXPECT_EQ(event["event"], "DISK_RESIZED");
  EXPECT_EQ(event["data"], (json{{"name", "d"}}));
  EXPECT_GT(event["timestamp"]["seconds"].get<std::int64_t>(), 1'600'000'000);
  EXPECT_TRUE(event["timestamp"]["microseconds"].is_number());
  EXPECT_TRUE(next(silent).is_null());
}

TEST_F(ServerTest, AHalfClosedClientGetsItsAnswers) {
  Socket socket{path_};
  ASSERT_TRUE(socket.send(R"({"execute":"qmp_capabilities"}{"execute":"echo","id":3})"));
  ::shutdown(socket.fd(), SHUT_WR);
  EXPECT_TRUE(hung_up(socket));
  EXPECT_TRUE(socket.take_message().contains("QMP"));
  EXPECT_TRUE(socket.take_message().contains("return"));
  EXPECT_EQ(socket.take_message()["id"], 3);
}

TEST_F(ServerTest, BytesThatAreNoTextAreReplacedInAnswers) {
  Socket socket{path_};
  negotiate(socket);
  EXPECT_TRUE(ask(socket, R"({"execute":"bytes"})")["return"].is_string());
}

TEST_F(ServerTest, ListsItsCommands) {
  Socket socket{path_};
  negotiate(socket);
  const auto names = ask(socket, R"({"execute":"query-commands"})")["return"];
  EXPECT_NE(std::find(names.begin(), names.end(), json{{"name", "echo"}}), names.end());
}

TEST_F(ServerTest, TooManyClientsAreTurnedAway) {
  std::vector<std::unique_ptr<Socket>> sockets;
  for (std::size_t i = 0; i < Server::clients_max + 4; ++i) {
    sockets.push_back(std::make_unique<Socket>(path_));
    turn();
  }
  EXPECT_EQ(server_->clients(), Server::clients_max);
  EXPECT_TRUE(hung_up(*sockets.back()));
  sockets.clear();
  for (int i = 0; i < 20; ++i) turn();
  EXPECT_EQ(server_->clients(), 0u);
}

TEST_F(ServerTest, TheSocketHasItsModeAndOneOwner) {
  struct stat status {};
  ASSERT_EQ(::stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  const auto second = Server::make(loop_, options(path_), {});
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().message, "control socket " + path_ +
                                        " is in use by another process; stop that one, or give "
                                        "another path");
  turn();
  EXPECT_TRUE(Socket{path_}.connected()) << "the first one still serves";
}

TEST_F(ServerTest, AStaleSocketFileIsReplaced) {
  const auto stale = directory_ + "/stale.sock";
  {
    base::Fd dead{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, stale.c_str(), sizeof address.sun_path - 1);
    ASSERT_EQ(::bind(dead.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  }
  auto server = Server::make(loop_, options(stale), {});
  ASSERT_TRUE(server) << server.error().message;
  EXPECT_TRUE(Socket{stale}.connected());
  server->reset();
  EXPECT_FALSE(std::filesystem::exists(stale));
}

TEST_F(ServerTest, AFileThatIsNoSocketIsLeftAlone) {
  const auto file = directory_ + "/file";
  std::ofstream{file} << "kept";
  const auto server = Server::make(loop_, options(file), {});
  ASSERT_FALSE(server);
  EXPECT_EQ(server.error().message, "control socket " + file + ": a file is there already");
  EXPECT_EQ(std::filesystem::file_size(file), 4u);
  // Nothing else is left in the folder, of this server or the one that serves there.
  std::size_t files = 0;
  for ([[maybe_unused]] const auto& each : std::filesystem::directory_iterator{directory_}) ++files;
  EXPECT_EQ(files, 2u);
}

TEST_F(ServerTest, AFolderThatIsNotThereIsOneLine) {
  const auto server = Server::make(loop_, options(directory_ + "/none/c.sock"), {});
  ASSERT_FALSE(server);
  EXPECT_EQ(server.error().message,
            "control socket " + directory_ + "/none/c.sock: No such file or directory");
}

TEST_F(ServerTest, ADescriptorIsTakenOnceAndTheOldestFirst) {
  Socket socket{path_};
  negotiate(socket);
  const base::Fd one{::open("/dev/null", O_RDONLY | O_CLOEXEC)},
      two{::open("/dev/zero", O_RDONLY | O_CLOEXEC)};
  EXPECT_EQ(ask(socket, R"({"execute":"take"})")["return"], false);
  ASSERT_TRUE(socket.send(R"({"execute":)", one.get()));
  ASSERT_TRUE(socket.send(R"("take"})", two.get()));
  EXPECT_EQ(next(socket)["return"], true);
  char byte = 1;
  EXPECT_EQ(::read(taken_.get(), &byte, 1), 0) << "not /dev/null";
  EXPECT_EQ(::fcntl(taken_.get(), F_GETFD), FD_CLOEXEC);
  EXPECT_EQ(ask(socket, R"({"execute":"take"})")["return"], true);
  EXPECT_EQ(::read(taken_.get(), &byte, 1), 1) << "not /dev/zero";
  EXPECT_EQ(ask(socket, R"({"execute":"take"})")["return"], false);
}

TEST_F(ServerTest, DescriptorsThatNobodyTakesAreFewAndGoWithTheirClient) {
  const auto open_now = [] {
    std::size_t count = 0;
    for ([[maybe_unused]] const auto& each : std::filesystem::directory_iterator{"/proc/self/fd"}) {
      ++count;
    }
    return count;
  };
  const auto before = open_now();
  {
    Socket socket{path_};
    negotiate(socket);
    const base::Fd file{::open("/dev/null", O_RDONLY | O_CLOEXEC)};
    for (int i = 0; i < 100; ++i) {
      // A socket, its own at that, is never kept.
      const int fd = i % 2 == 0 ? socket.fd() : file.get();
      ASSERT_TRUE(socket.send(R"({"execute":"echo"})", fd));
      ASSERT_TRUE(next(socket).contains("return"));
    }
    EXPECT_EQ(open_now(), before + 3 + Connection::descriptors_max);
  }
  turn();
  turn();
  EXPECT_EQ(open_now(), before);
}

TEST_F(ServerTest, AnEventWithoutDataHasNoSuchMember) {
  Socket socket{path_};
  negotiate(socket);
  server_->emit("STOP", nullptr);
  const auto event = next(socket);
  EXPECT_EQ(event["event"], "STOP");
  EXPECT_FALSE(event.contains("data"));
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
}  // namespace millrace::qmp
