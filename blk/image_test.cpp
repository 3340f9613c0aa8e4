// open_image: what is refused, who holds the lock, what the file says about itself.
#include "blk/image.hpp"

#include <gmock/gmock.h>
#include <sys/wait.h>

#include "blk/file_backend.hpp"
#include "blk/testing/scratch_file.hpp"

namespace millrace::blk {
namespace {

using ::testing::HasSubstr;
using testing::ScratchFile;

Config config_for(const ScratchFile& file, bool readonly = false) {
  Config out;
  out.name = "test";
  out.path = file.path();
  out.readonly = readonly;
  return out;
}

TEST(Image, RefusesWhatIsNoDisk) {
  Config config;
  config.path = "/nonexistent/disk.img";
  EXPECT_THAT(open_image(config).error().message, HasSubstr("No such file"));
  config.path = "/tmp";
  config.readonly = true;
  EXPECT_THAT(open_image(config).error().message, HasSubstr("neither a file nor a block device"));
  const ScratchFile odd{1000}, empty{0};
  EXPECT_THAT(open_image(config_for(odd)).error().message, HasSubstr("not a multiple of 512"));
  EXPECT_THAT(open_image(config_for(empty)).error().message, HasSubstr("is empty"));
}

TEST(Image, APipeHoldsNobodyUp) {
  const std::string path =
      std::string{::testing::TempDir()} + "millrace-blk-pipe-" + std::to_string(::getpid());
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  Config config;
  config.path = path;
  EXPECT_THAT(open_image(config).error().message, HasSubstr("neither a file nor a block device"));
  ::unlink(path.c_str());
}

TEST(Image, AWritableImageHasOneUser) {
  const ScratchFile file{65536};
  auto first = open_image(config_for(file));
  ASSERT_TRUE(first) << first.error().message;
  EXPECT_THAT(open_image(config_for(file)).error().message,
              HasSubstr("in use by another process or disk"));
  EXPECT_THAT(open_image(config_for(file, true)).error().message, HasSubstr("in use"));
  first->buffered.reset();
  EXPECT_TRUE(open_image(config_for(file)));
}

TEST(Image, ReadersShare) {
  const ScratchFile file{65536};
  const auto one = open_image(config_for(file, true)), two = open_image(config_for(file, true));
  ASSERT_TRUE(one);
  ASSERT_TRUE(two);
  EXPECT_THAT(open_image(config_for(file)).error().message, HasSubstr("in use"));
}

TEST(Image, IsHeldWhileAnOpenFileLocksIt) {
  const ScratchFile file{65536};
  EXPECT_FALSE(image_held(config_for(file)));
  auto first = open_image(config_for(file));
  ASSERT_TRUE(first);
  EXPECT_TRUE(image_held(config_for(file)));
  EXPECT_TRUE(image_held(config_for(file, true)));
  first->buffered.reset();
  EXPECT_FALSE(image_held(config_for(file)));
  auto reader = open_image(config_for(file, true));
  ASSERT_TRUE(reader);
  EXPECT_FALSE(image_held(config_for(file, true)));
  EXPECT_TRUE(image_held(config_for(file)));

  Config other = config_for(file);
  other.backend = BackendKind::null;
  EXPECT_FALSE(image_held(other));
  other = config_for(file);
  other.path = "/nonexistent/disk.img";
  EXPECT_FALSE(image_held(other));
}

TEST(Image, NamesTheProcessThatHoldsIt) {
  const ScratchFile file{65536};
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    struct flock lock {};
    lock.l_type = F_WRLCK;
    const int mine = ::open(file.path().c_str(), O_RDWR);
    const bool locked = ::fcntl(mine, F_SETLK, &lock) == 0;
    static_cast<void>(::write(ready[1], locked ? "y" : "n", 1));
    ::pause();
    ::_exit(0);
  }
  char answer = 0;
  ASSERT_EQ(::read(ready[0], &answer, 1), 1);
  EXPECT_EQ(answer, 'y');
  EXPECT_THAT(open_image(config_for(file)).error().message,
              HasSubstr("process " + std::to_string(child)));
  EXPECT_FALSE(image_held(config_for(file)));  // nobody waits for that one
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST(Image, DirectModesDoWhatTheySay) {
  const ScratchFile file{65536};
  Config config = config_for(file);
  config.direct = DirectMode::off;
  {
    const auto image = open_image(config);
    ASSERT_TRUE(image);
    EXPECT_FALSE(image->direct.valid());
  }
  // A file system without O_DIRECT: automatic goes on without, `on` says so.
  config.direct = DirectMode::automatic;
  {
    const auto image = open_image(config, true);
    ASSERT_TRUE(image);
    EXPECT_FALSE(image->direct.valid());
  }
  config.direct = DirectMode::on;
  EXPECT_THAT(open_image(config, true).error().message, HasSubstr("O_DIRECT"));
  config.direct = DirectMode::automatic;
  const auto image = open_image(config);
  ASSERT_TRUE(image);
  if (!image->direct.valid()) GTEST_SKIP() << "no O_DIRECT here";
  EXPECT_GE(image->offset_alignment, 1u);
  EXPECT_LE(image->memory_alignment, 4096u);
  EXPECT_NE(::fcntl(image->direct.get(), F_GETFL) & O_DIRECT, 0);
}

TEST(Image, MeasuresAFile) {
  const ScratchFile file{1 << 20};
  const auto image = open_image(config_for(file));
  ASSERT_TRUE(image);
  EXPECT_EQ(image->geometry.bytes, 1u << 20);
  EXPECT_EQ(image->geometry.logical_block, 512u);
  EXPECT_GE(image->geometry.physical_block, 512u);
  EXPECT_EQ(image->geometry.discard_granularity % 512, 0u);
  EXPECT_EQ(file.bytes(), 1u << 20);  // measuring changes nothing
}

}  // namespace
}  // namespace millrace::blk
