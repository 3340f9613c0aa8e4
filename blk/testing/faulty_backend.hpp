// FaultyBackend: a backend that fails where it is told to, around one that works.
#pragma once

#include <cerrno>
#include <memory>
#include <utility>

#include "blk/backend.hpp"

namespace millrace::blk::testing {

struct FaultPlan {
  std::uint64_t from = 0, to = 0;  // bytes; operations that begin there fail
  int why = EIO;
  bool flushes = false;  // every flush fails too
};

class FaultyBackend final : public Backend {
 public:
  FaultyBackend(std::unique_ptr<Backend> inner, FaultPlan plan)
      : inner_{std::move(inner)}, plan_{plan} {}
  [[nodiscard]] const Geometry& geometry() const override { return inner_->geometry(); }
  [[nodiscard]] BackendStatus status() const override { return inner_->status(); }
  [[nodiscard]] std::unique_ptr<Channel> make_channel(unsigned depth,
                                                      QueueStatistics& statistics) override {
    return std::make_unique<Faulty>(inner_->make_channel(depth, statistics), plan_);
  }
  base::Result<std::uint64_t> resize(std::uint64_t bytes) override { return inner_->resize(bytes); }

 private:
  class Faulty final : public Channel {
   public:
    Faulty(std::unique_ptr<Channel> inner, FaultPlan plan)
        : inner_{std::move(inner)}, plan_{plan} {}
    void attached(base::Reactor& reactor) noexcept override { inner_->attached(reactor); }
    void detached(base::Reactor& reactor) noexcept override { inner_->detached(reactor); }
    void submit(IoList& burst) noexcept override {
      IoList good;
      while (Io* const io = burst.pop()) {
        const bool flush = io->operation == Operation::flush;
        const bool hit = flush ? plan_.flushes : io->offset >= plan_.from && io->offset < plan_.to;
        if (hit) io->result = -plan_.why;
        (hit ? failed_ : good).push(*io);
      }
      inner_->submit(good);
    }
    bool poll(IoList& done) noexcept override {
      const bool any = !failed_.empty();
      done.append(failed_);
      return inner_->poll(done) || any;
    }
    [[nodiscard]] bool pending() const noexcept override {
      return !failed_.empty() || inner_->pending();
    }

   private:
    std::unique_ptr<Channel> inner_;
    FaultPlan plan_;
    IoList failed_;
  };

  std::unique_ptr<Backend> inner_;
  FaultPlan plan_;
};

}  // namespace millrace::blk::testing
