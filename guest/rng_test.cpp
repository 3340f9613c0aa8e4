#include "guest/rng.hpp"

#include <array>
#include <set>

#include "guest/rng_worker.hpp"
#include "guest/testing/host.hpp"

namespace millrace::guest {
namespace {

using testing::Host, testing::Queue;
using virtio::Fault;

// Split and packed.
class Rng : public ::testing::TestWithParam<bool> {
 protected:
  std::unique_ptr<Device> make(std::uint64_t bytes_per_second = 1 << 30) {
    auto made = make_device("r0", RngSettings{bytes_per_second}, host.means());
    EXPECT_TRUE(made) << made.error().message;
    (*made)->set_features((*made)->features());
    return *std::move(made);
  }
  static virtio::testing::DriverConfig ring() { return {.size = 16, .packed = GetParam()}; }
  static std::uint64_t figure(const Device& device, const std::string& name) {
    for (const auto& each : device.figures()) {
      if (each.name == name) return each.value;
    }
    ADD_FAILURE() << "no figure " << name;
    return 0;
  }
  Host host;
};
INSTANTIATE_TEST_SUITE_P(Rings, Rng, ::testing::Bool());

TEST_P(Rng, FillsEveryBufferWithBytesOfItsOwn) {
  const auto device = make();
  Queue queue{host, *device, 0, ring()};
  std::set<std::array<std::byte, 16>> seen;
  for (unsigned i = 0; i < 64; ++i) {
    const auto at = queue.driver.allocate(64);
    queue.driver.add({}, {{at, 64}});
    queue.driver.submit();
    EXPECT_EQ(queue.next().length, 64u);
    for (unsigned part = 0; part < 4; ++part) {
      seen.insert(queue.driver.load<std::array<std::byte, 16>>(at + part * 16));
    }
  }
  EXPECT_EQ(seen.size(), 256u) << "16 random bytes twice";
  EXPECT_EQ(figure(*device, "bytes"), 64u * 64u);
  EXPECT_EQ(figure(*device, "requests"), 64u);
}

TEST_P(Rng, WritesNoMoreThanItSays) {
  const auto device = make();
  Queue queue{host, *device, 0, ring()};
  const std::uint32_t size = 8000;
  const auto at = queue.driver.allocate(size);
  queue.driver.fill(at, size, 0);
  queue.driver.add({}, {{at, 100}, {at + 100, size - 100}});
  queue.driver.submit();
  EXPECT_EQ(queue.next().length, RngWorker::answer_max);
  std::vector<std::byte> bytes(size);
  queue.driver.read(at, bytes);
  const auto zeros = std::count(bytes.begin(), bytes.begin() + RngWorker::answer_max, std::byte{0});
  EXPECT_LT(zeros, 64) << "a part of the answer is not random";
  for (std::size_t i = RngWorker::answer_max; i < size; ++i) ASSERT_EQ(bytes[i], std::byte{0});
}

// 64 KiB at once and then 64 KiB a second: what was drawn over a time says what was allowed.
TEST_P(Rng, OneGuestGetsNoMoreThanItsAllowance) {
  constexpr std::uint64_t rate = 64 << 10;
  const auto device = make(rate);
  Queue queue{host, *device, 0, ring()};
  const auto begun = base::cycles();
  const auto at = queue.driver.allocate(1024);
  for (unsigned i = 0; i < 80; ++i) {
    queue.driver.add({}, {{at, 1024}});
    queue.driver.submit();
    EXPECT_EQ(queue.next().length, 1024u);
  }
  const auto seconds = static_cast<double>(base::cycles() - begun) / base::cycles_per_second();
  // 80 KiB less the burst, less the last answer, which may be a debt.
  EXPECT_GE(seconds, 15.0 * 1024 / rate);
}

TEST_P(Rng, AThrottledQueueStopsAtOnceAndItsBuffersStayTheDrivers) {
  const auto device = make(1);
  Queue queue{host, *device, 0, ring()};
  const auto at = queue.driver.allocate(1024);
  for (unsigned i = 0; i < 65; ++i) {  // the burst, and one on credit
    queue.driver.add({}, {{at, 1024}});
    queue.driver.submit();
    queue.next();
  }
  queue.driver.add({}, {{at, 1024}});
  queue.driver.submit();
  EXPECT_TRUE(host.wait([&] { return figure(*device, "throttled") > 0; }));
  const auto position = queue.stop();
  EXPECT_EQ(position, GetParam() ? 0x8001'8001u : 65u);
  EXPECT_FALSE(queue.driver.poll());
}

TEST_P(Rng, ABufferThatIsNotForWritingPoisonsTheQueue) {
  const auto device = make();
  for (const bool both : {false, true}) {
    Queue queue{host, *device, 0, ring()};
    const auto at = queue.driver.allocate(64);
    both ? queue.driver.add({{at, 32}}, {{at + 32, 32}}) : queue.driver.add({{at, 64}}, {});
    queue.driver.submit();
    EXPECT_TRUE(
        host.wait([&] { return device->queue_status(0).fault == Fault::request_malformed; }));
  }
}

TEST_P(Rng, HasNoConfiguration) {
  const auto device = make();
  const std::array one{std::byte{1}};
  EXPECT_TRUE(device->config().empty());
  EXPECT_FALSE(device->write_config(0, one));
}

}  // namespace
}  // namespace millrace::guest
