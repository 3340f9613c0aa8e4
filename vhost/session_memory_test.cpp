// The memory table and the dirty log.
#include <gtest/gtest.h>

#include "vhost/testing/harness.hpp"
#include "virtio/limits.hpp"

namespace millrace::vhost {
namespace {

using testing::Harness;
using testing::make_memory;
using testing::ring_at;
using wire::Request;
namespace f = virtio::feature;
constexpr std::uint64_t page = 4096;

Frontend::Region region(std::uint64_t guest, std::uint64_t size, std::uint64_t user, int fd,
                        std::uint64_t offset = 0) {
  return {
      .guest_address = guest, .size = size, .user_address = user, .file_offset = offset, .fd = fd};
}

TEST(SessionMemory, ATableReplacesTheOneBefore) {
  Harness h;
  h.negotiate();
  const auto fd = make_memory(8 * page);
  const std::array two{region(0, 4 * page, 0x1000000, fd.get()),
                       region(0x100000, 4 * page, 0x2000000, fd.get(), 4 * page)};
  ASSERT_TRUE(h.frontend.set_mem_table(two));
  EXPECT_EQ(h.session->memory().count(), 2u);
  EXPECT_EQ(h.session->memory().bytes(), 8 * page);
  ASSERT_TRUE(h.frontend.set_mem_table(std::span{two}.first(1)));
  EXPECT_EQ(h.session->memory().count(), 1u);
}

TEST(SessionMemory, GuestAndUserAddressesMayBeEqual) {
  Harness h;
  h.negotiate();
  const auto fd = make_memory(4 * page);
  const std::array one{region(0x7f0000000000, 4 * page, 0x7f0000000000, fd.get())};
  ASSERT_TRUE(h.frontend.set_mem_table(one));
  EXPECT_NE(h.session->memory().snapshot()->from_user(0x7f0000000000, 4 * page), nullptr);
}

TEST(SessionMemory, RefusesWhatIsNotMemoryOrDoesNotFit) {
  Harness h;
  h.negotiate();
  const auto fd = make_memory(4 * page);
  const base::Fd zero{::open("/dev/zero", O_RDWR | O_CLOEXEC)};
  const Frontend::Region bad[] = {
      region(0, 5 * page, 0x1000000, fd.get()),             // longer than the file
      region(0, 4 * page, 0x1000000, fd.get(), page),       // ends behind the file
      region(0, page, 0x1000000, fd.get(), ~0ull - page),   // offset wraps
      region(~0ull - page + 2, page, 0x1000000, fd.get()),  // guest address wraps
      region(0, page, ~0ull - page + 2, fd.get()),          // user address wraps
      region(0, ~0ull, 0, fd.get()),
      region(0, 0, 0x1000000, fd.get()),
      region(0, page, 0x1000000, h.kick.get()),
      region(0, page, 0x1000000, zero.get()),
  };
  for (const auto& one : bad) {
    EXPECT_FALSE(h.frontend.set_mem_table({&one, 1}));
    EXPECT_FALSE(h.frontend.add_mem_reg(one));
  }
  const std::array overlap{region(0, 2 * page, 0x1000000, fd.get()),
                           region(page, 2 * page, 0x2000000, fd.get())};
  EXPECT_FALSE(h.frontend.set_mem_table(overlap));
  const std::array overlap_user{region(0, 2 * page, 0x1000000, fd.get()),
                                region(4 * page, 2 * page, 0x1000000 + page, fd.get())};
  EXPECT_FALSE(h.frontend.set_mem_table(overlap_user));
  EXPECT_EQ(h.session->memory().count(), 0u);
  EXPECT_FALSE(h.ended);
}

TEST(SessionMemory, AFailedTableLeavesTheOldOne) {
  Harness h;
  h.negotiate();
  h.give_memory();
  const auto before = h.session->memory().snapshot();
  const auto bad = region(0, ~0ull, 0, h.memory.get());
  EXPECT_FALSE(h.frontend.set_mem_table({&bad, 1}));
  EXPECT_EQ(h.session->memory().snapshot(), before);
}

TEST(SessionMemory, RegionsAndDescriptorsMustMatch) {
  Harness h;
  h.negotiate();
  const auto fd = make_memory(page);
  const std::array<int, 2> fds{fd.get(), fd.get()};
  std::array<std::byte, sizeof(wire::MemoryHeader) + sizeof(wire::MemoryRegion)> payload{};
  const wire::MemoryRegion one{
      .guest_address = 0, .size = page, .user_address = page, .file_offset = 0};
  std::memcpy(payload.data() + sizeof(wire::MemoryHeader), &one, sizeof one);
  for (const std::uint32_t count : {0u, 2u, 254u, 0x08000001u, ~0u}) {
    std::memcpy(payload.data(), &count, sizeof count);
    EXPECT_FALSE(h.frontend.request(Request::set_mem_table, payload, std::span{fds}.first(1)));
  }
  const std::uint32_t count = 1;
  std::memcpy(payload.data(), &count, sizeof count);
  EXPECT_FALSE(h.frontend.request(Request::set_mem_table, payload, fds));
  EXPECT_FALSE(h.frontend.request(Request::set_mem_table, payload));
  EXPECT_TRUE(h.frontend.request(Request::set_mem_table, payload, std::span{fds}.first(1)));
}

TEST(SessionMemory, AddsAndRemovesUpToAllSlots) {
  Harness h;
  h.negotiate();
  const auto slots = *h.frontend.get_max_mem_slots();
  ASSERT_EQ(slots, virtio::limits::memory_slots_max);
  const auto fd = make_memory(page);
  const auto slot = [&](std::uint64_t i) {
    return region(i * 2 * page, page, 0x10000000 + i * 2 * page, fd.get());
  };
  const auto before = testing::open_fds();
  for (std::uint64_t i = 0; i < slots; ++i) ASSERT_TRUE(h.frontend.add_mem_reg(slot(i))) << i;
  EXPECT_FALSE(h.frontend.add_mem_reg(slot(slots)));
  EXPECT_TRUE(h.frontend.add_mem_reg(slot(3)));  // the same again replaces it
  EXPECT_EQ(h.session->memory().count(), slots);
  EXPECT_EQ(testing::open_fds(), before);
  for (std::uint64_t i = 0; i < slots; ++i) ASSERT_TRUE(h.frontend.rem_mem_reg(slot(i))) << i;
  EXPECT_FALSE(h.frontend.rem_mem_reg(slot(0)));
  EXPECT_EQ(h.session->memory().count(), 0u);
}

TEST(SessionMemory, ARemovalIsNamedByAddressesAndSize) {
  Harness h;
  h.negotiate();
  const auto fd = make_memory(4 * page);
  ASSERT_TRUE(h.frontend.add_mem_reg(region(0, 4 * page, 0x1000000, fd.get())));
  EXPECT_FALSE(h.frontend.rem_mem_reg(region(0, 2 * page, 0x1000000, -1)));
  EXPECT_FALSE(h.frontend.rem_mem_reg(region(page, 4 * page, 0x1000000, -1)));
  EXPECT_FALSE(h.frontend.rem_mem_reg(region(0, 4 * page, 0x2000000, -1)));
  EXPECT_TRUE(h.frontend.rem_mem_reg(region(0, 4 * page, 0x1000000, -1, 99)));  // offset ignored
}

TEST(SessionMemory, ARemovalsDescriptorIsClosed) {
  Harness h;
  h.negotiate();
  const auto fd = make_memory(page);
  ASSERT_TRUE(h.frontend.add_mem_reg(region(0, page, 0x1000000, fd.get())));
  const auto before = testing::open_fds();
  const wire::SingleRegion single{
      .padding = 0,
      .region = {.guest_address = 0, .size = page, .user_address = 0x1000000, .file_offset = 0}};
  const std::array<int, 1> fds{fd.get()};
  EXPECT_TRUE(h.frontend.request(Request::rem_mem_reg, bytes_of(single), fds));
  EXPECT_EQ(testing::open_fds(), before);
}

TEST(SessionMemory, UnderRunningRingsTheOldTableLivesUntilTheDeviceLetsGo) {
  Harness h;
  h.negotiate();
  h.give_memory();
  h.start_ring(0);
  const std::weak_ptr<const virtio::GuestMemory> old = h.session->memory().snapshot();
  const auto fd = make_memory(page);
  h.device.hold = true;
  const wire::SingleRegion single{
      .padding = 0,
      .region = {
          .guest_address = 0x40000000, .size = page, .user_address = 0x50000000, .file_offset = 0}};
  const std::array<int, 1> fds{fd.get()};
  ASSERT_TRUE(h.frontend.send(Request::add_mem_reg, bytes_of(single), fds,
                              wire::version | wire::flag_need_reply));
  h.settle();
  EXPECT_TRUE(h.called("memory"));
  EXPECT_FALSE(old.expired());
  h.device.hold = false;
  ASSERT_TRUE(h.device.answer_one());
  const auto ack = h.frontend.receive();
  ASSERT_TRUE(ack);
  EXPECT_EQ(ack->as<std::uint64_t>(), 0u);
  EXPECT_TRUE(old.expired());
  EXPECT_EQ(h.device.started[0].start.memory, h.session->memory().snapshot());
}

TEST(SessionMemory, TheLogIsAnsweredAlwaysAndUsedWhileLogAllIsOn) {
  Harness h;
  h.negotiate();
  h.give_memory();
  h.start_ring(0);
  const auto bitmap = make_memory(page);
  h.frontend.set_acknowledged(false);  // its reply comes all the same
  ASSERT_TRUE(h.frontend.set_log_base(page, 0, bitmap.get()));
  h.frontend.set_acknowledged(true);
  EXPECT_EQ(h.device.log, nullptr);
  ASSERT_TRUE(h.frontend.set_features(h.features | f::log_all));
  ASSERT_NE(h.device.log, nullptr);
  const auto first = h.device.log;
  ASSERT_TRUE(h.frontend.set_log_base(page, 0, bitmap.get()));  // resized by QEMU: a new one
  EXPECT_NE(h.device.log, first);
  h.start_ring(1);
  EXPECT_EQ(h.device.started[1].start.log, h.device.log);
  ASSERT_TRUE(h.frontend.set_features(h.features));
  EXPECT_EQ(h.device.log, nullptr);
}

TEST(SessionMemory, ALogMustCoverTheMemory) {
  Harness h;
  h.negotiate();
  const auto fd = make_memory(page);
  // Bits for pages below 128 MiB in a page; the region ends above.
  ASSERT_TRUE(h.frontend.add_mem_reg(region(0x8000000, page, 0x1000000, fd.get())));
  const auto bitmap = make_memory(2 * page);
  EXPECT_FALSE(h.frontend.set_log_base(page, 0, bitmap.get()));
  EXPECT_TRUE(h.frontend.set_log_base(2 * page, 0, bitmap.get()));
  ASSERT_TRUE(h.frontend.set_features(h.features | f::log_all));
  const auto before = h.session->memory().snapshot();
  EXPECT_FALSE(h.frontend.add_mem_reg(region(0x100000000, page, 0x2000000, fd.get())));
  EXPECT_EQ(h.session->memory().snapshot(), before);
}

TEST(SessionMemory, RefusesABadLog) {
  Harness h;
  h.negotiate();
  const auto bitmap = make_memory(page);
  EXPECT_FALSE(h.frontend.set_log_base(2 * page, 0, bitmap.get()));
  EXPECT_FALSE(h.frontend.set_log_base(page, page, bitmap.get()));
  EXPECT_FALSE(h.frontend.set_log_base(page, ~0ull, bitmap.get()));
  EXPECT_FALSE(h.frontend.set_log_base(0, 0, bitmap.get()));
  EXPECT_FALSE(h.frontend.set_log_base(page, 0, h.kick.get()));
}

TEST(SessionMemory, TheLogAtAnOffset) {
  Harness h;
  h.negotiate();
  h.give_memory();
  const auto bitmap = make_memory(2 * page);
  ASSERT_TRUE(h.frontend.set_log_base(page, page, bitmap.get()));
  ASSERT_TRUE(h.frontend.set_features(h.features | f::log_all));
  h.start_ring(0);
  h.device.started[0].start.log->mark(page * 9, 1);
  std::array<unsigned char, 2> bytes{};
  ASSERT_EQ(::pread(bitmap.get(), bytes.data(), bytes.size(), page), 2);
  EXPECT_EQ(bytes[1], 2);
}

}  // namespace
}  // namespace millrace::vhost
