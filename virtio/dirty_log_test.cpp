#include "virtio/dirty_log.hpp"

#include <gtest/gtest.h>

namespace millrace::virtio {
namespace {

class DirtyLogTest : public ::testing::Test {
 protected:
  // `pages` that the log says are dirty, of the 64 that it covers.
  std::vector<unsigned> dirty() const {
    std::vector<unsigned> out;
    for (unsigned page = 0; page < 64; ++page) {
      if ((std::to_integer<unsigned>(bitmap_->data()[page / 8]) >> (page % 8) & 1) != 0) {
        out.push_back(page);
      }
    }
    return out;
  }
  std::shared_ptr<const base::Mapping> bitmap_ = *base::Mapping::anonymous(8);
  DirtyLog log_{bitmap_};
};

using Pages = std::vector<unsigned>;

TEST_F(DirtyLogTest, MarksEveryPageTouched) {
  log_.mark(4095, 2);
  log_.mark(7 * 4096, 4096 * 2);
  EXPECT_EQ(dirty(), (Pages{0, 1, 7, 8}));
}

TEST_F(DirtyLogTest, KeepsWhatIsSet) {
  log_.mark(3 * 4096, 1);
  log_.mark(4 * 4096, 1);
  EXPECT_EQ(dirty(), (Pages{3, 4}));
}

TEST_F(DirtyLogTest, IgnoresWhatLiesPastTheBitmap) {
  log_.mark(64 * 4096, 4096);
  log_.mark(~0ull, ~0ull);
  log_.mark(1ull << 63, ~0ull);
  EXPECT_EQ(dirty(), Pages{});
  log_.mark(62 * 4096, ~0ull);
  EXPECT_EQ(dirty(), (Pages{62, 63}));
  log_.mark(0, 0);
  EXPECT_EQ(dirty(), (Pages{62, 63}));
}

TEST_F(DirtyLogTest, KnowsWhatItCovers) {
  EXPECT_TRUE(log_.covers(64 * 4096));
  EXPECT_FALSE(log_.covers(64 * 4096 + 1));
}

}  // namespace
}  // namespace millrace::virtio
