// A start over what a killed predecessor left behind.
#include "daemon/topology.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>
#include <optional>

#include "base/fd.hpp"

namespace millrace::daemon {
namespace {

using namespace std::chrono_literals;

class TopologyTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string folder = "/tmp/millrace-topology-XXXXXX";
    ASSERT_NE(::mkdtemp(folder.data()), nullptr);
    folder_ = folder;
    image_ = base::Fd{::open(path("disk.img").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)};
    ASSERT_EQ(::ftruncate(image_.get(), 1 << 20), 0);
    config_.cores = {0};
    config_.disks.emplace_back();
    config_.disks[0].device.name = "disk";
    config_.disks[0].device.path = path("disk.img");
    config_.disks[0].server.socket = path("disk.sock");
    auto made = Topology::make(loop_, config_);
    ASSERT_TRUE(made) << made.error().message;
    topology_ = *std::move(made);
  }

  void TearDown() override {
    bool closed = false;
    if (topology_ != nullptr) topology_->close([&closed] { closed = true; });
    while (topology_ != nullptr && !closed) loop_.step(100ms);
    topology_.reset();
    std::filesystem::remove_all(folder_);
  }

  [[nodiscard]] std::string path(const std::string& name) const { return folder_ + "/" + name; }

  void lock() {
    struct flock whole {};
    whole.l_type = F_WRLCK;
    ASSERT_EQ(::fcntl(image_.get(), F_OFD_SETLK, &whole), 0);
  }

  void start() {
    topology_->add_all(config_, [this](const base::Result<void>& result) {
      answer_ = result ? "" : result.error().message;
    });
  }

  std::string folder_;
  base::Fd image_;
  Config config_;
  base::EventLoop loop_;
  std::unique_ptr<Topology> topology_;
  std::optional<std::string> answer_;
};

TEST_F(TopologyTest, AStartWaitsForAnImageThatAPredecessorStillHolds) {
  lock();
  start();
  for (int i = 0; i < 3; ++i) loop_.step(100ms);
  EXPECT_FALSE(answer_);
  EXPECT_TRUE(topology_->disks().empty());
  image_.reset();
  while (!answer_) loop_.step(100ms);
  EXPECT_EQ(*answer_, "");
  EXPECT_EQ(topology_->disks().size(), 1u);
}

TEST_F(TopologyTest, ACommandDoesNotWait) {
  lock();
  topology_->add(config_.disks[0], [this](const base::Result<void>& result) {
    answer_ = result ? "" : result.error().message;
  });
  ASSERT_TRUE(answer_);
  EXPECT_THAT(*answer_, ::testing::HasSubstr("is in use"));
}

TEST_F(TopologyTest, ClosesWhileItWaits) {
  lock();
  start();
  loop_.step(100ms);
  EXPECT_FALSE(answer_);  // TearDown() closes
}

}  // namespace
}  // namespace millrace::daemon
