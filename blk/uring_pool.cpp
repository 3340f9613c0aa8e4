#include "blk/uring_pool.hpp"

#include <memory>
#include <utility>
#include <vector>

#include "blk/uring.hpp"

namespace millrace::blk {

namespace {

class Pool final : public UringPool {
 public:
  Pool(base::ReactorPool& reactors, const UringOptions& options)
      : reactors_{reactors}, options_{options}, rings_(reactors.size()) {}

  base::Result<Uring*> ring(unsigned reactor) override {
    CHECK(reactor < rings_.size());
    auto& slot = rings_[reactor];
    if (slot == nullptr) {
      UringOptions options = options_;
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

  [[nodiscard]] std::string describe() const override {
    std::string out = options_.defer_taskrun  ? "DEFER_TASKRUN, SINGLE_ISSUER"
                      : options_.coop_taskrun ? "COOP_TASKRUN"
                                              : "plain";
    out += options_.registered_files ? ", registered files" : ", plain descriptors";
    return out;
  }

  void close(std::function<void()> done) override {
    auto left = std::make_shared<unsigned>(1);
    auto one_less = [left, done = std::move(done)] {
      if (--*left == 0) done();
    };
    for (unsigned i = 0; i < rings_.size(); ++i) {
      if (rings_[i] == nullptr) continue;
      ++*left;
      Uring* const ring = rings_[i].get();
      reactors_.post(
          i,
          [ring](base::Reactor& owner) noexcept {
            owner.remove(*ring);
            ring->detached(owner);
          },
          [this, i, one_less] {
            rings_[i].reset();
            one_less();
          });
    }
    one_less();
  }

 private:
  base::ReactorPool& reactors_;
  UringOptions options_;
  std::vector<std::unique_ptr<Uring>> rings_;
};

}  // namespace

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
