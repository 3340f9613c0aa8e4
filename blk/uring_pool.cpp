#include "blk/uring_pool.hpp"

#include <memory>
#include <utility>
#include <vector>

#include "blk/pinner.hpp"
#include "blk/uring.hpp"

namespace millrace::blk {

namespace {

class Pool final : public UringPool {
 public:
  Pool(base::ReactorPool& reactors, const UringOptions& options)
      : reactors_{reactors}, options_{options}, rings_(reactors.size()), polled_(reactors.size()) {}

  base::Result<Uring*> ring(unsigned reactor) override {
    CHECK(reactor < rings_.size());
    return ring_in(rings_[reactor], reactor, options_);
  }
  base::Result<Uring*> polled_ring(unsigned reactor) override {
    CHECK(reactor < polled_.size());
    UringOptions options = options_;
    options.iopoll = true;
    return ring_in(polled_[reactor], reactor, options);
  }
  [[nodiscard]] bool can_pin() const override { return options_.clone_buffers; }
  [[nodiscard]] Pinner& pinner() override { return pinner_; }
  [[nodiscard]] std::vector<std::string> names() const override { return names_of(options_); }

  [[nodiscard]] std::string describe() const override {
    std::string out = options_.defer_taskrun  ? "DEFER_TASKRUN, SINGLE_ISSUER"
                      : options_.coop_taskrun ? "COOP_TASKRUN"
                                              : "plain";
    out += options_.registered_files ? ", registered files" : ", plain descriptors";
    return out;
  }

  void close(std::function<void()> done) override {
    auto left = std::make_shared<unsigned>(1);
    const auto one_less = [left, done = std::move(done)] {
      if (--*left == 0) done();
    };
    for (auto* const rings : {&polled_, &rings_}) {
      for (unsigned i = 0; i < rings->size(); ++i) {
        if ((*rings)[i] == nullptr) continue;
        ++*left;
        close_ring((*rings)[i], i, one_less);
      }
    }
    one_less();
  }

 private:
  base::Result<Uring*> ring_in(std::unique_ptr<Uring>& slot, unsigned reactor,
                               UringOptions options) {
    if (slot == nullptr) {
      auto made = Uring::make(options);
      if (!made) return base::Unexpected{made.error()};
      slot = std::move(*made);
      Uring* const ring = slot.get();
      reactors_.post(
          reactor,
          [ring](base::Reactor& owner) noexcept {
            ring->attached(owner);
            owner.add(*ring);
          },
          [] {});
    }
    return slot.get();
  }

  void close_ring(std::unique_ptr<Uring>& slot, unsigned reactor, std::function<void()> done) {
    Uring* const ring = slot.get();
    reactors_.post(
        reactor,
        [ring](base::Reactor& owner) noexcept {
          owner.remove(*ring);
          ring->detached(owner);
        },
        [&slot, done = std::move(done)] {
          slot.reset();
          done();
        });
  }

  base::ReactorPool& reactors_;
  UringOptions options_;
  std::vector<std::unique_ptr<Uring>> rings_, polled_;
  Pinner pinner_;
};

}  // namespace

std::vector<std::string> names_of(const UringOptions& options) {
  std::vector<std::string> out;
  const auto add = [&out](bool had, const char* name) {
    if (had) out.emplace_back(name);
  };
  add(options.defer_taskrun, "defer-taskrun");
  add(options.defer_taskrun, "single-issuer");
  add(options.coop_taskrun && !options.defer_taskrun, "coop-taskrun");
  add(options.registered_files, "registered-files");
  add(options.registered_ring, "registered-ring");
  add(options.clone_buffers, "cloned-buffers");
  add(options.vectored_buffers, "vectored-buffers");
  add(options.iopoll, "iopoll");
  return out;
}

base::Result<std::unique_ptr<UringPool>> UringPool::make(base::ReactorPool& pool) {
  return make(pool, UringOptions{});
}

base::Result<std::unique_ptr<UringPool>> UringPool::make(base::ReactorPool& pool,
                                                         const UringOptions& wanted) {
  UringOptions options = wanted;
  const auto probe = Uring::make(options);
  if (!probe) return base::Unexpected{probe.error()};
  return std::unique_ptr<UringPool>{std::make_unique<Pool>(pool, options)};
}

}  // namespace millrace::blk
