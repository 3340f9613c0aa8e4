#include "guest/rng.hpp"

#include <sys/random.h>

#include "guest/rng_worker.hpp"

namespace millrace::guest {

namespace {

class Rng final : public Device {
 public:
  Rng(const std::string& name, const RngSettings& settings, base::ReactorPool& reactors)
      : Device{name, 1, reactors}, allowance_{settings.bytes_per_second, RngWorker::burst} {}

  [[nodiscard]] virtio::DeviceKind kind() const override { return virtio::DeviceKind::rng; }
  [[nodiscard]] std::uint64_t features() const override { return ring_features; }
  [[nodiscard]] std::span<const std::byte> config() const override { return {}; }
  base::Result<void> write_config(std::uint32_t, std::span<const std::byte>) override {
    return base::fail("an entropy device has no configuration");
  }
  [[nodiscard]] std::vector<Figure> figures() const override {
    return {{"requests", counters_.requests.get()},
            {"bytes", counters_.bytes.get()},
            {"throttled", counters_.throttled.get()}};
  }

 protected:
  [[nodiscard]] std::unique_ptr<virtio::QueueWorker> make_worker(
      std::unique_ptr<virtio::Queue> queue) override {
    return std::make_unique<RngWorker>(std::move(queue), allowance_, counters_);
  }

 private:
  // Of the one worker there is at a time: a driver that starts its queue again has not earned more.
  Allowance allowance_;
  RngCounters counters_;
};

}  // namespace

base::Result<std::unique_ptr<Device>> make_rng(const std::string& name, const RngSettings& settings,
                                               const Means& means) {
  std::byte probe{};
  if (::getrandom(&probe, 1, GRND_NONBLOCK) != 1) {
    return base::fail("the host's random numbers are not ready; try again once it has booted");
  }
  return std::unique_ptr<Device>{std::make_unique<Rng>(name, settings, means.pool)};
}

}  // namespace millrace::guest
