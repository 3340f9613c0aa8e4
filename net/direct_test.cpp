// A port whose receive queue is given to a device: when, and until when.
#include <gtest/gtest.h>

#include "net/testing/device_rig.hpp"

namespace millrace::net {
namespace {

using testing::GuestRing;
namespace vf = virtio::feature;
using Words = std::vector<std::string>;

struct DirectDevice : testing::NetDeviceTest {
  DirectDevice() {
    make({.name = "a"});
    device_->be_direct({[this](vswitch::DirectSink& sink) {
                          EXPECT_EQ(sink.taken(), 0u);
                          said.push_back("tie");
                        },
                        [this](std::function<void()> done) {
                          said.push_back("untie");
                          if (!waits) return done();
                          untied = std::move(done);
                        }});
    device_->set_features(vf::version_1);
  }
  Words take_said() { return std::exchange(said, {}); }

  GuestRing ring{vf::version_1, 16};
  Words said;
  bool waits = false;
  std::function<void()> untied;
};

TEST_F(DirectDevice, AQueueIsGivenWhileItIsEnabled) {
  start(0, ring, false);
  EXPECT_EQ(take_said(), Words{});
  enable(0, true);
  EXPECT_EQ(take_said(), (Words{"untie", "tie"}));
  enable(0, true);
  EXPECT_EQ(take_said(), Words{});
  enable(0, false);
  EXPECT_EQ(take_said(), (Words{"untie"}));
  EXPECT_TRUE(fabric_->endpoints.empty());
  stop(0);
  take_said();
  close();
}

TEST_F(DirectDevice, AQueueStopsWhenTheDeviceHasNothingOfIt) {
  start(0, ring, true);
  EXPECT_EQ(take_said(), (Words{"tie"}));
  EXPECT_FALSE(device_->queue_status(0).can_move);
  waits = true;
  bool stopped = false;
  device_->stop_queue(0, [&](std::uint32_t) { stopped = true; });
  ASSERT_TRUE(until([&] { return untied != nullptr; }));
  for (int i = 0; i < 20; ++i) loop_.step(std::chrono::milliseconds{1});
  EXPECT_FALSE(stopped);
  EXPECT_EQ(fabric_->endpoints.size(), 1u);  // what comes meanwhile is dropped and counted there
  untied();
  EXPECT_TRUE(until([&] { return stopped; }));
  close();
}

TEST_F(DirectDevice, MemoryChangesWhenTheDeviceHasNothingOfIt) {
  start(0, ring, true);
  take_said();
  waits = true;
  bool changed = false;
  device_->set_memory(ring.start(0, true).memory, [&](base::Result<void> set) {
    EXPECT_TRUE(set);
    changed = true;
  });
  for (int i = 0; i < 20; ++i) loop_.step(std::chrono::milliseconds{1});
  EXPECT_FALSE(changed);
  waits = false;
  untied();
  EXPECT_TRUE(until([&] { return changed; }));
  EXPECT_EQ(take_said(), (Words{"untie", "tie"}));
  device_->tie_again();
  EXPECT_EQ(take_said(), (Words{"untie", "tie"}));
  stop(0);
  close();
}

}  // namespace
}  // namespace millrace::net
