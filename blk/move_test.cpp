// A disk's queues go from reactor to reactor under requests: each is answered once, with its data.
#include <gtest/gtest.h>

#include "blk/testing/guest.hpp"
#include "blk/testing/scratch_file.hpp"

namespace millrace::blk {
namespace {

using testing::Bytes;
using testing::Guest;
using testing::Host;
using virtio::wire::BlkStatus;

constexpr unsigned sectors = 4096;

Bytes pattern(unsigned number) {
  Bytes out(4096);
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = static_cast<std::byte>(number * 31 + i * 7 + i / 256);
  }
  return out;
}

struct Kind {
  BackendKind backend;
  bool packed;
};

class DiskMoves : public ::testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    Config config;
    config.name = "disk";
    config.queues = 2;
    config.backend = GetParam().backend;
    if (config.backend == BackendKind::file) {
      file_ = std::make_unique<testing::ScratchFile>(sectors * 512);
      config.path = file_->path();
    } else {
      config.size = sectors * 512;
    }
    auto made = Device::make(config, *host_.pool, *host_.rings);
    ASSERT_TRUE(made) << made.error().message;
    device_ = std::move(*made);
  }
  void move(unsigned queue) {
    ++asked_;
    const unsigned to = 1 - device_->queue_status(queue).reactor;
    device_->move_queue(queue, to, [this](base::Result<void> result) {
      EXPECT_TRUE(result) << (result ? "" : result.error().message);
      ++moved_;
    });
  }

  Host host_{2};
  std::unique_ptr<testing::ScratchFile> file_;
  std::unique_ptr<Device> device_;
  unsigned asked_ = 0, moved_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Backends, DiskMoves,
                         ::testing::Values(Kind{BackendKind::file, false},
                                           Kind{BackendKind::file, true},
                                           Kind{BackendKind::ram, false}),
                         [](const auto& kind) {
                           return std::string{kind.param.backend == BackendKind::file ? "File"
                                                                                      : "Ram"} +
                                  (kind.param.packed ? "Packed" : "Split");
                         });

TEST_P(DiskMoves, EveryRequestIsAnsweredOnceWithItsData) {
  Guest guest{host_, *device_, GetParam().packed, 2};
  std::vector<unsigned> written(sectors / 8, 0);  // by block of 4 KiB: the pattern that lies there
  unsigned number = 0;
  for (unsigned round = 0; round < 60; ++round) {
    struct Sent {
      unsigned handle, block, queue;
      bool read;
    };
    std::vector<Sent> sent;
    for (unsigned i = 0; i < 16; ++i) {
      // Each queue has its own half, and no block twice in a round.
      const unsigned queue = i % 2, half = sectors / 16;
      const unsigned block = queue * half + (round * 8 + i / 2) % half;
      const bool read = i % 4 >= 2 && written[block] != 0;
      const unsigned handle =
          read ? guest.submit(0, block * 8, {}, 4096, {}, queue)
               : guest.submit(1, block * 8, pattern(written[block] = ++number), 0, {}, queue);
      sent.push_back({handle, block, queue, read});
      if (i == 5 || i == 11) move(round % 2 == 0 ? 0 : queue);
    }
    for (const Sent& each : sent) {
      const auto answer = guest.wait(each.handle);
      ASSERT_EQ(answer.status, BlkStatus::ok) << "round " << round;
      if (each.read) {
        ASSERT_EQ(answer.data, pattern(written[each.block]));
      }
    }
    ASSERT_TRUE(host_.wait([&] { return moved_ == asked_; }));
  }
  for (unsigned block = 0; block < written.size(); ++block) {
    if (written[block] == 0) continue;
    const auto answer = guest.read(block * 8, 4096);
    ASSERT_EQ(answer.data, pattern(written[block])) << "block " << block;
  }
  EXPECT_EQ(device_->statistics().write_requests, number);
  EXPECT_EQ(device_->statistics().in_flight, 0u);
}

TEST_P(DiskMoves, EndWithTheirSession) {
  for (unsigned round = 0; round < 20; ++round) {
    Guest guest{host_, *device_, GetParam().packed, 2};
    for (unsigned i = 0; i < 8; ++i) guest.submit(1, i * 8, pattern(i), 0, {}, i % 2);
    move(0), move(1);
    guest.stop(0), guest.stop(1);  // in their turn
    EXPECT_EQ(moved_, asked_);
    EXPECT_EQ(device_->statistics().in_flight, 0u);
  }
}

}  // namespace
}  // namespace millrace::blk
