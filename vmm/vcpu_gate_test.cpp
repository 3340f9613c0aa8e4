#include "vmm/vcpu_gate.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace millrace::vmm {
namespace {

TEST(VcpuGate, StandsStillOnlyWhenEveryThreadWaits) {
  VcpuGate gate;
  std::atomic<bool> end{false};
  std::atomic<std::uint64_t> work{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      const VcpuGate::Visitor visitor{gate};
      while (!end) {
        ++work;
        visitor.pass();
      }
    });
  }
  for (int round = 0; round < 200; ++round) {
    gate.close();
    gate.wait_until_still();
    const auto before = work.load();
    std::this_thread::yield();
    // Those that have not come yet do one piece of work and wait, too; nobody does two.
    EXPECT_LE(work.load(), before + threads.size());
    gate.open();
  }
  end = true;
  for (auto& thread : threads) thread.join();
  gate.close();
  gate.wait_until_still();  // nobody is left to wait for
}

TEST(VcpuGate, OneThatStartsAtAClosedGateWaits) {
  VcpuGate gate;
  gate.close();
  std::atomic<bool> passed{false};
  std::atomic<bool> here{false};
  std::thread late{[&] {
    const VcpuGate::Visitor visitor{gate};
    here = true;
    visitor.pass();
    passed = true;
  }};
  while (!here) std::this_thread::yield();
  gate.wait_until_still();
  EXPECT_FALSE(passed);
  gate.open();
  late.join();
  EXPECT_TRUE(passed);
}

TEST(VcpuGate, WaitingEndsWhenItIsOpenedAgain) {
  VcpuGate gate;
  const VcpuGate::Visitor busy{gate};  // never passes
  gate.close();
  std::thread waiter{[&] { gate.wait_until_still(); }};
  gate.open();
  waiter.join();
}

}  // namespace
}  // namespace millrace::vmm
