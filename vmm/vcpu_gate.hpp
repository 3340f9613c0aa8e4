// VcpuGate: where a machine's vCPU threads wait while the guest is paused.
//
// Thread: any. A vCPU's thread is a Visitor as long as it lives.
#pragma once

#include <condition_variable>
#include <mutex>

namespace millrace::vmm {

class VcpuGate {
 public:
  class Visitor {
   public:
    explicit Visitor(VcpuGate& gate) : gate_{gate} {
      const std::lock_guard lock{gate_.mutex_};
      ++gate_.visitors_;
    }
    ~Visitor() {
      const std::lock_guard lock{gate_.mutex_};
      --gate_.visitors_;
      gate_.changed_.notify_all();
    }
    Visitor(const Visitor&) = delete;
    Visitor& operator=(const Visitor&) = delete;

    // Waits while the gate is closed. To be called before the guest is entered for the first time,
    // and whenever it was left because somebody asked.
    void pass() const {
      std::unique_lock lock{gate_.mutex_};
      ++gate_.waiting_;
      gate_.changed_.notify_all();
      gate_.changed_.wait(lock, [this] { return !gate_.closed_; });
      --gate_.waiting_;
    }

   private:
    VcpuGate& gate_;
  };

  // From now on a visitor that comes to pass() stays there.
  void close() {
    const std::lock_guard lock{mutex_};
    closed_ = true;
  }
  // Until every visitor waits, or the gate is open again. Who comes later waits, too.
  void wait_until_still() {
    std::unique_lock lock{mutex_};
    changed_.wait(lock, [this] { return !closed_ || waiting_ == visitors_; });
  }
  void open() {
    const std::lock_guard lock{mutex_};
    closed_ = false;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  unsigned visitors_ = 0, waiting_ = 0;
  bool closed_ = false;
};

}  // namespace millrace::vmm
