// Random requests, right and wrong, against a model of the disk: statuses, lengths and bytes agree.
#include <random>

#include "blk/device.hpp"
#include "blk/testing/guest.hpp"
#include "blk/testing/scratch_file.hpp"

namespace millrace::blk {
namespace {

using testing::Bytes;
using testing::Guest;
using testing::Host;
using testing::Layout;
using testing::ScratchFile;
using virtio::wire::BlkStatus;

constexpr std::uint64_t disk_bytes = 1 << 20, sectors = disk_bytes / 512;

class Model : public ::testing::TestWithParam<std::tuple<BackendKind, bool>> {
 protected:
  std::uint64_t below(std::uint64_t bound) { return random() % bound; }
  Layout layout() {
    Layout out;
    out.indirect = below(2) == 0;
    for (auto* cuts : {&out.readable, &out.writable}) {
      for (std::uint64_t i = below(6); i > 0; --i) {
        cuts->push_back(static_cast<std::uint32_t>(1 + below(3000)));
      }
      if (!cuts->empty()) cuts->push_back(0);
    }
    return out;
  }
  std::mt19937_64 random{20240607};
};
INSTANTIATE_TEST_SUITE_P(Backends, Model,
                         ::testing::Combine(::testing::Values(BackendKind::file, BackendKind::ram),
                                            ::testing::Bool()));

TEST_P(Model, AgreesWithAReferenceDisk) {
  Host host;
  ScratchFile file{disk_bytes};
  Config config;
  config.name = "model";
  config.backend = std::get<0>(GetParam());
  config.path = file.path();
  config.size = disk_bytes;
  auto made = Device::make(config, *host.pool, *host.rings);
  ASSERT_TRUE(made) << made.error().message;
  Guest guest{host, **made, std::get<1>(GetParam())};
  Bytes disk(disk_bytes);
  for (unsigned step = 0; step < 1500; ++step) {
    SCOPED_TRACE(step);
    guest.skew = below(4) == 0 ? below(600) : 0;
    const std::uint64_t sector = below(sectors + 8);
    const std::uint64_t count = below(64);
    const bool fits = sector + count <= sectors;
    const auto expected = fits ? BlkStatus::ok : BlkStatus::io_error;
    const std::uint64_t at = sector * 512, bytes = count * 512;
    switch (below(5)) {
      case 0: {
        Bytes data(bytes);
        for (auto& byte : data) byte = static_cast<std::byte>(random());
        EXPECT_EQ(guest.write(sector, data, layout()).status, expected);
        if (fits) std::copy(data.begin(), data.end(), disk.begin() + static_cast<long>(at));
        break;
      }
      case 1: {
        const bool unmap = below(2) == 0;
        const auto range = Guest::range(sector, static_cast<std::uint32_t>(count), unmap ? 1 : 0);
        EXPECT_EQ(guest.ranges(13, {range}, layout()).status, expected);
        if (fits) std::fill_n(disk.begin() + static_cast<long>(at), bytes, std::byte{0});
        break;
      }
      case 2:
        EXPECT_EQ(guest.flush().status, BlkStatus::ok);
        break;
      default: {
        const auto got = guest.read(sector, bytes, layout());
        EXPECT_EQ(got.status, expected);
        EXPECT_EQ(got.used, fits ? bytes + 1 : 1);
        if (fits) {
          const auto from = disk.begin() + static_cast<long>(at);
          EXPECT_EQ(got.data, Bytes(from, from + static_cast<long>(bytes)));
        }
      }
    }
    if (HasFailure()) return;
  }
  if (config.backend == BackendKind::file) {
    EXPECT_EQ(file.read(0, disk_bytes), disk);
  }
}

}  // namespace
}  // namespace millrace::blk
