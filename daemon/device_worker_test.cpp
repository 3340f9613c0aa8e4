#include "daemon/device_worker.hpp"

#include <gmock/gmock.h>

#include <atomic>
#include <thread>
#include <vector>

namespace millrace::daemon {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre;

class DeviceWorkerTest : public ::testing::Test {
 protected:
  ~DeviceWorkerTest() override { answer(); }

  // A device that does not answer before answer().
  base::SideThread::Work stuck(const std::string& name) {
    return [this, name]() -> base::SideThread::Told {
      answers.wait(false);
      ran_elsewhere = std::this_thread::get_id() != here;
      return [this, name] { done.push_back(name); };
    };
  }
  void answer() {
    answers = true;
    answers.notify_all();
  }
  void until(const std::function<bool()>& ready) {
    const auto end = std::chrono::steady_clock::now() + 20s;
    while (!ready()) {
      ASSERT_LT(std::chrono::steady_clock::now(), end);
      loop.step(5ms);
    }
  }

  const std::thread::id here = std::this_thread::get_id();
  std::atomic<bool> answers = false, ran_elsewhere = false;
  std::vector<std::string> done;
  base::EventLoop loop;
  std::unique_ptr<DeviceWorker> worker = *DeviceWorker::make(loop, 1ms);  // reminds all the while
};

TEST_F(DeviceWorkerTest, ControlGoesOnWhileADeviceDoesNotAnswer) {
  EXPECT_EQ(worker->doing(), "");
  worker->run("closes a", stuck("a"));
  worker->run("resets a", stuck("b"));
  unsigned answered = 0;
  const auto commands = loop.every(1ms, [&] { ++answered; });
  until([&] { return answered >= 10; });
  EXPECT_EQ(worker->doing(), "closes a");
  EXPECT_THAT(done, ElementsAre());
  answer();
  until([&] { return done.size() == 2; });
  EXPECT_THAT(done, ElementsAre("a", "b"));
  EXPECT_TRUE(ran_elsewhere);
  EXPECT_EQ(worker->doing(), "");
}

TEST_F(DeviceWorkerTest, WhatIsToldMayAskForMore) {
  answer();
  worker->run("closes a", [this]() -> base::SideThread::Told {
    return [this] {
      EXPECT_EQ(worker->doing(), "");
      worker->run("opens b", stuck("b"));
      EXPECT_EQ(worker->doing(), "opens b");
    };
  });
  until([&] { return !done.empty(); });
}

}  // namespace
}  // namespace millrace::daemon
