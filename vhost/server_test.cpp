// Sockets: listening, connecting, adopting, and who is served when.
#include "vhost/server.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <fstream>

#include "vhost/testing/harness.hpp"

namespace millrace::vhost {
namespace {

using testing::FakeDevice;
using testing::open_fds;

struct ServerTest : ::testing::Test {
  ServerTest() : device{loop, virtio::DeviceKind::blk, 2} {
    std::array<char, 32> name{"/tmp/millrace-XXXXXX"};
    CHECK(::mkdtemp(name.data()) != nullptr);
    directory = name.data();
    path = directory + "/s.sock";
  }
  ~ServerTest() override {
    if (server != nullptr) close();
    ::unlink(path.c_str());
    ::rmdir(directory.c_str());
  }
  base::Result<void> make(const ServerConfig& config) {
    auto made = Server::make(loop, device, config);
    if (!made) return base::Unexpected{made.error()};
    server = std::move(made).value();
    return {};
  }
  std::string error_of(const ServerConfig& config) {
    const auto made = make(config);
    if (made) return "";
    EXPECT_EQ(made.error().message.find('\n'), std::string::npos);
    return made.error().message;
  }
  void close() {
    bool done = false;
    server->close([&] { done = true; });
    for (int i = 0; i < 100 && !done; ++i) turn();
    EXPECT_TRUE(done);
    server.reset();
  }
  void turn() { loop.step(std::chrono::milliseconds{1}); }
  void settle() {
    for (int i = 0; i < 20; ++i) loop.step(std::chrono::milliseconds{0});
  }
  std::unique_ptr<Frontend> connect() {
    auto made = Frontend::connect(path, std::chrono::milliseconds{100});
    CHECK(made.has_value());
    (*made)->set_pump([this] { turn(); });
    (*made)->set_timeout(std::chrono::milliseconds{2000});
    return std::move(made).value();
  }
  // A listening socket of our own at `path`.
  base::Fd listen_here() {
    base::Fd fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    struct sockaddr_un address {};
    address.sun_family = AF_UNIX;
    std::copy(path.begin(), path.end(), address.sun_path);
    CHECK(::bind(fd.get(), reinterpret_cast<struct sockaddr*>(&address), sizeof address) == 0);
    CHECK(::listen(fd.get(), 4) == 0);
    return fd;
  }

  base::EventLoop loop;
  FakeDevice device;
  std::string directory, path;
  std::unique_ptr<Server> server;
};

TEST_F(ServerTest, ListensWithThePermissionsAskedFor) {
  ASSERT_TRUE(make({.socket = path, .permissions = 0600}));
  struct stat status {};
  ASSERT_EQ(::lstat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777u, 0600u);
  EXPECT_FALSE(server->status().connected);
}

TEST_F(ServerTest, TellsWhoIsThereAndHowFar) {
  ASSERT_TRUE(make({.socket = path}));
  std::vector<bool> changes;
  server->on_change([&](bool is) { changes.push_back(is); });
  auto peer = connect();
  ASSERT_TRUE(peer->set_owner());
  ASSERT_TRUE(peer->get_features());
  const auto status = server->status();
  EXPECT_TRUE(status.connected);
  EXPECT_EQ(status.sessions, 1u);
  EXPECT_EQ(status.messages, 2u);
  EXPECT_EQ(status.phase, "negotiating");
  EXPECT_EQ(status.peer.find("pid " + std::to_string(::getpid()) + " ("), 0u);
  peer->hang_up();
  settle();
  EXPECT_FALSE(server->status().connected);
  EXPECT_EQ(server->status().last_error, "");
  EXPECT_EQ(changes, (std::vector<bool>{true, false}));
}

TEST_F(ServerTest, OneFrontEndAtATimeTheNextWaits) {
  ASSERT_TRUE(make({.socket = path}));
  auto first = connect();
  ASSERT_TRUE(first->get_features());
  auto second = connect();
  ASSERT_TRUE(second->send(wire::Request::get_features, {}));
  settle();
  EXPECT_EQ(server->status().sessions, 1u);
  EXPECT_EQ(server->status().messages, 1u);
  first->hang_up();
  EXPECT_TRUE(second->receive());
  EXPECT_EQ(server->status().sessions, 2u);
}

TEST_F(ServerTest, ABrokenSessionMakesPlaceForTheNext) {
  ASSERT_TRUE(make({.socket = path}));
  auto bad = connect();
  ASSERT_TRUE(bad->send(static_cast<wire::Request>(99), {}));
  EXPECT_FALSE(bad->receive());
  settle();
  EXPECT_NE(server->status().last_error, "");
  EXPECT_EQ(server->status().refused, 1u);
  auto good = connect();
  EXPECT_TRUE(good->get_features());
}

TEST_F(ServerTest, AFrontEndThatComesAndGoesInALoopIsMadeToWait) {
  ASSERT_TRUE(make({.socket = path}).has_value());
  for (int i = 0; i < 40; ++i) {
    // Once it is made to wait it fills the backlog, and can no longer connect.
    static_cast<void>(Frontend::connect(path, std::chrono::milliseconds{1}));
    settle();
  }
  // Without the wait, each of the 40 would have had its session by now.
  EXPECT_GE(server->status().sessions, 5u);
  EXPECT_LT(server->status().sessions, 12u);
  EXPECT_FALSE(server->status().connected);
}

TEST_F(ServerTest, ReplacesAStaleSocketAndNothingElse) {
  listen_here().reset();  // its file stays
  EXPECT_TRUE(make({.socket = path}));
  close();
  EXPECT_NE(::access(path.c_str(), F_OK), 0);
  const auto alive = listen_here();
  EXPECT_NE(error_of({.socket = path}).find("in use"), std::string::npos);
  ::unlink(path.c_str());
  std::ofstream{path} << "precious";
  EXPECT_NE(error_of({.socket = path}).find("not a socket"), std::string::npos);
  EXPECT_EQ(::access(path.c_str(), F_OK), 0);
}

TEST_F(ServerTest, OneClearLineForAPathThatCannotBe) {
  EXPECT_NE(error_of({.socket = "/nonexistent/dir/s.sock"}).find("/nonexistent/dir"),
            std::string::npos);
  EXPECT_NE(error_of({.socket = "/tmp/" + std::string(103, 'x')}).find("longer than 107"),
            std::string::npos);
  EXPECT_NE(error_of({.socket = ""}), "");
  EXPECT_NE(error_of({.socket = "fd:"}), "");
  EXPECT_NE(error_of({.socket = "fd:x"}), "");
  EXPECT_NE(error_of({.socket = "fd:99999"}), "");
  EXPECT_NE(error_of({.socket = "fd:0"}), "");
  const std::string longest = directory + "/" + std::string(106 - directory.size(), 'x');
  ASSERT_EQ(longest.size(), 107u);
  EXPECT_TRUE(make({.socket = longest}));
}

TEST_F(ServerTest, AdoptsAPassedListener) {
  const int number = listen_here().release();
  ASSERT_TRUE(make({.socket = "fd:" + std::to_string(number)}));
  auto peer = connect();
  EXPECT_TRUE(peer->get_features());
  peer->hang_up();
  settle();
  close();
  EXPECT_EQ(::fcntl(number, F_GETFD), -1);     // it was ours
  EXPECT_EQ(::access(path.c_str(), F_OK), 0);  // its file is not
}

TEST_F(ServerTest, ConnectsAndTriesAgain) {
  ASSERT_TRUE(make({.socket = path, .mode = SocketMode::connect}));
  settle();
  EXPECT_FALSE(server->status().connected);
  const auto listener = listen_here();
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 200 && !server->status().connected; ++i) {
      loop.step(std::chrono::milliseconds{50});
    }
    ASSERT_TRUE(server->status().connected);
    Frontend peer{base::Fd{::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC)}};
    peer.set_pump([this] { turn(); });
    EXPECT_TRUE(peer.get_features());
    peer.hang_up();
    settle();
    EXPECT_FALSE(server->status().connected);
  }
  EXPECT_EQ(server->status().sessions, 2u);
}

TEST_F(ServerTest, ClosingDrainsTheRingsAndRemovesTheFile) {
  const auto before = open_fds();
  ASSERT_TRUE(make({.socket = path}));
  auto peer = connect();
  const auto memory = testing::make_memory(1 << 20);
  const auto kick = testing::make_event();
  const Frontend::Region one{
      .guest_address = 0, .size = 1 << 20, .user_address = 1 << 20, .fd = memory.get()};
  ASSERT_TRUE(peer->set_mem_table({&one, 1}));
  ASSERT_TRUE(peer->set_vring_num(0, 64));
  ASSERT_TRUE(peer->set_vring_addr(testing::ring_at(0, 1 << 20)));
  ASSERT_TRUE(peer->set_vring_kick(0, kick.get()));
  settle();
  ASSERT_EQ(device.started.size(), 1u);
  EXPECT_EQ(server->status().phase, "running");
  EXPECT_EQ(server->status().memory_bytes, 1u << 20);
  device.hold = true;
  bool done = false;
  server->close([&] { done = true; });
  settle();
  EXPECT_FALSE(done);
  EXPECT_EQ(server->status().phase, "draining");
  device.hold = false;
  ASSERT_TRUE(device.answer_one());
  settle();
  EXPECT_TRUE(done);
  EXPECT_TRUE(device.started.empty());
  EXPECT_NE(::access(path.c_str(), F_OK), 0);
  server.reset();
  peer.reset();
  EXPECT_EQ(open_fds(), before + 2);  // memory and kick
}

TEST_F(ServerTest, DoesNotRemoveAFileThatIsAnothersByNow) {
  ASSERT_TRUE(make({.socket = path}));
  ::unlink(path.c_str());
  const auto other = listen_here();
  close();
  EXPECT_EQ(::access(path.c_str(), F_OK), 0);
}

}  // namespace
}  // namespace millrace::vhost
