// What a function needs of a machine, without KVM: interrupt vectors that count, and doorbells that
// a test rings. Thread: any.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "base/check.hpp"
#include "vmm/doorbells.hpp"
#include "vmm/interrupts.hpp"

namespace millrace::vmm::testing {

[[nodiscard]] inline bool signalled(int eventfd) {
  struct pollfd one {
    .fd = eventfd, .events = POLLIN, .revents = 0
  };
  return ::poll(&one, 1, 0) == 1;
}

class FakeInterrupts final : public Interrupts {
 public:
  class Vector final : public MsiVector {
   public:
    Vector() : event_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)} { CHECK(event_.valid()); }
    [[nodiscard]] int eventfd() const override { return event_.get(); }
    base::Result<void> connect(const MsiMessage& message) override {
      const std::lock_guard lock{mutex_};
      ++connects_;
      if (refuse) return base::fail("no route");
      message_ = message;
      return {};
    }
    void disconnect() override {
      const std::lock_guard lock{mutex_};
      message_.reset();
    }
    [[nodiscard]] bool pending() const override {
      const std::lock_guard lock{mutex_};
      return !message_ && signalled(event_.get());
    }
    // Where its signals go now; none: nowhere.
    [[nodiscard]] std::optional<MsiMessage> message() const {
      const std::lock_guard lock{mutex_};
      return message_;
    }
    [[nodiscard]] unsigned connects() const {
      const std::lock_guard lock{mutex_};
      return connects_;
    }
    // Whether an interrupt came to the guest since the last call.
    [[nodiscard]] bool delivered() {
      const std::lock_guard lock{mutex_};
      eventfd_t count = 0;
      return message_ && ::eventfd_read(event_.get(), &count) == 0;
    }
    bool refuse = false;

   private:
    base::Fd event_;
    mutable std::mutex mutex_;
    std::optional<MsiMessage> message_;
    unsigned connects_ = 0;
  };

  base::Result<std::unique_ptr<MsiVector>> make_vector() override {
    if (vectors.size() == vectors_max) return base::fail("no interrupt route is left");
    auto vector = std::make_unique<Vector>();
    vectors.push_back(vector.get());
    return std::unique_ptr<MsiVector>{std::move(vector)};
  }

  std::size_t vectors_max = 4096;
  std::vector<Vector*> vectors;  // in the order in which they were made
};

class FakeDoorbells final : public Doorbells {
 public:
  base::Result<void> assign(std::uint64_t address, unsigned length, int eventfd) override {
    const std::lock_guard lock{mutex_};
    if (refuse || !bells_.emplace(std::pair{address, length}, eventfd).second) {
      return base::fail("no doorbell is left");
    }
    return {};
  }
  void remove(std::uint64_t address, unsigned length, int eventfd) override {
    const std::lock_guard lock{mutex_};
    const auto found = bells_.find({address, length});
    if (found != bells_.end() && found->second == eventfd) bells_.erase(found);
  }
  // A guest's write there; false: nobody is told.
  bool ring(std::uint64_t address) {
    const std::lock_guard lock{mutex_};
    const auto found = bells_.find({address, 0});
    return found != bells_.end() && ::eventfd_write(found->second, 1) == 0;
  }
  [[nodiscard]] std::size_t count() const {
    const std::lock_guard lock{mutex_};
    return bells_.size();
  }
  bool refuse = false;

 private:
  mutable std::mutex mutex_;
  std::map<std::pair<std::uint64_t, unsigned>, int> bells_;
};

}  // namespace millrace::vmm::testing
