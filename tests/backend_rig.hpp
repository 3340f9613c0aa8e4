// Backend: what millraced is made of, in the process of a test: a control thread with its loop, two
// reactors, the switch, and devices behind real vhost-user sockets in a temporary folder.
// Thread: every member is for the test's own; what control owns is asked for over there.
#pragma once

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.hpp"
#include "base/event_loop.hpp"
#include "base/fd.hpp"
#include "base/mapping.hpp"
#include "base/reactor_pool.hpp"
#include "blk/disk.hpp"
#include "blk/uring_pool.hpp"
#include "net/device.hpp"
#include "switch/fabric.hpp"
#include "vhost/server.hpp"

namespace millrace::tests {

// A disk of 1 MiB in memory.
[[nodiscard]] inline blk::Config ram_disk(const std::string& name, unsigned queues = 1) {
  blk::Config config;
  config.name = name;
  config.backend = blk::BackendKind::ram;
  config.size = 1 << 20;
  config.queues = queues;
  return config;
}

class Backend {
 public:
  static constexpr unsigned reactors = 2;
  using Done = std::function<void()>;

  // A reactor without work sleeps after `spin`.
  explicit Backend(std::chrono::nanoseconds spin = std::chrono::microseconds{50}) {
    auto folder = (std::filesystem::temp_directory_path() / "millrace-backend-XXXXXX").string();
    CHECK(::mkdtemp(folder.data()) != nullptr);
    folder_ = folder;
    base::install_memory_fault_handler();
    thread_ = std::thread{[this] { loop_.run(); }};
    await([&](const Done& done) {
      std::vector<base::ReactorConfig> configs(reactors);
      for (unsigned i = 0; i < reactors; ++i) {
        configs[i].index = i;
        configs[i].spin_ns = static_cast<std::uint64_t>(spin.count());
      }
      pool_ = must(base::ReactorPool::make(loop_, configs));
      fabric_ = must(vswitch::Fabric::make(*pool_, {}));
      rings_ = must(blk::UringPool::make(*pool_));
      done();
    });
  }

  // The order of the daemon: sessions, devices, rings, reactors.
  ~Backend() {
    await([this](const Done& done) {
      each_unit([](Unit& unit, const Done& next) { unit.server->close(next); }, done);
    });
    await([this](const Done& done) {
      each_unit(
          [](Unit& unit, const Done& next) {
            unit.server.reset();
            unit.nic != nullptr ? unit.nic->close(next) : next();
          },
          done);
    });
    await([this](const Done& done) {
      units_.clear();
      rings_->close(done);
    });
    await([this](const Done& done) {
      rings_.reset();
      fabric_.reset();
      pool_.reset();
      loop_.stop();
      done();
    });
    thread_.join();
    std::filesystem::remove_all(folder_);
  }
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  // Each answers the path of the new device's socket.
  std::string add_disk(const blk::Config& config) {
    await([&](const Done& done) {
      serve(config.name, must(blk::Device::make(config, *pool_, *rings_)));
      done();
    });
    return socket(config.name);
  }
  std::string add_disk(const blk::Config& config, std::unique_ptr<blk::Backend> backend) {
    await([&](const Done& done) {
      serve(config.name, must(blk::Disk::make(config, *pool_, std::move(backend))));
      done();
    });
    return socket(config.name);
  }
  std::string add_nic(const net::Config& config) {
    auto wanted = config;
    wanted.port.name = config.name;
    std::unique_ptr<net::Device> nic;
    await([&](const Done& done) { nic = must(net::Device::make(wanted, *pool_, *fabric_, done)); });
    await([&](const Done& done) {
      auto* const seen = nic.get();
      serve(config.name, std::move(nic)).nic = seen;
      done();
    });
    return socket(config.name);
  }

  [[nodiscard]] std::string socket(const std::string& name) const {
    return (folder_ / name).string();
  }
  [[nodiscard]] std::filesystem::path folder() const { return folder_; }
  [[nodiscard]] virtio::DeviceBase::QueueStatus queue(const std::string& name, unsigned index) {
    virtio::DeviceBase::QueueStatus out;
    await([&](const Done& done) {
      out = units_.at(name).device->queue_status(index);
      done();
    });
    return out;
  }
  // Waits until the queue is poisoned; none: it was not, within far longer than anything takes.
  [[nodiscard]] virtio::Fault fault_of(const std::string& name, unsigned index) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds{20};
    for (;;) {
      const auto fault = queue(name, index).fault;
      if (fault != virtio::Fault::none || std::chrono::steady_clock::now() > deadline) return fault;
      std::this_thread::sleep_for(std::chrono::microseconds{200});
    }
  }
  [[nodiscard]] vhost::SessionStatus session(const std::string& name) {
    vhost::SessionStatus out;
    await([&](const Done& done) {
      out = units_.at(name).server->status();
      done();
    });
    return out;
  }

  // Runs `work` on control and waits until it has called what it is given.
  void await(const std::function<void(const Done&)>& work) {
    const auto promise = std::make_shared<std::promise<void>>();
    inbox_.post([work, promise] { work([promise] { promise->set_value(); }); });
    promise->get_future().wait();
  }

 private:
  struct Unit {
    std::unique_ptr<virtio::DeviceBase> device;
    std::unique_ptr<vhost::Server> server;
    net::Device* nic = nullptr;
  };

  // Work from the test's threads for control.
  class Inbox {
   public:
    explicit Inbox(base::EventLoop& loop)
        : event_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)},
          watch_{must(loop.watch(event_.get(), EPOLLIN, [this](std::uint32_t) { run(); }))} {}
    void post(Done work) {
      const std::lock_guard lock{mutex_};
      work_.push_back(std::move(work));
      CHECK(::eventfd_write(event_.get(), 1) == 0);
    }

   private:
    void run() {
      eventfd_t count = 0;
      ::eventfd_read(event_.get(), &count);
      std::deque<Done> todo;
      {
        const std::lock_guard lock{mutex_};
        todo.swap(work_);
      }
      for (const auto& work : todo) work();
    }
    std::mutex mutex_;
    std::deque<Done> work_;
    base::Fd event_;
    base::EventLoop::Watch watch_;
  };

  template <class T>
  static T must(base::Result<T> result) {
    if (!result) std::fprintf(stderr, "%s\n", result.error().message.c_str());
    CHECK(result.has_value());
    return std::move(result).value();
  }
  Unit& serve(const std::string& name, std::unique_ptr<virtio::DeviceBase> device) {
    Unit& unit = units_[name];
    unit.device = std::move(device);
    unit.server = must(vhost::Server::make(loop_, *unit.device, {.socket = socket(name)}));
    return unit;
  }
  void each_unit(const std::function<void(Unit&, const Done&)>& step, const Done& done) {
    auto left = std::make_shared<std::size_t>(units_.size() + 1);
    const Done one_less = [left, done] {
      if (--*left == 0) done();
    };
    for (auto& [name, unit] : units_) step(unit, one_less);
    one_less();
  }

  std::filesystem::path folder_;
  base::EventLoop loop_;
  Inbox inbox_{loop_};
  std::unique_ptr<base::ReactorPool> pool_;
  std::unique_ptr<vswitch::Fabric> fabric_;
  std::unique_ptr<blk::UringPool> rings_;
  std::map<std::string, Unit> units_;
  std::thread thread_;
};

}  // namespace millrace::tests
