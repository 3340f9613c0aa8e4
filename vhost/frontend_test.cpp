// The front-end's end against back-ends that do not keep to the protocol.
#include "vhost/frontend.hpp"

#include <gtest/gtest.h>

#include "vhost/testing/harness.hpp"

namespace millrace::vhost {
namespace {

constexpr std::size_t fds_max = 8;

TEST(Frontend, TakesNoMoreDescriptorsThanAMessageMayHave) {
  const auto event = testing::make_event();
  const auto before = testing::open_fds();
  {
    auto [ours, theirs] = testing::make_sockets();
    Frontend frontend{std::move(ours)}, peer{std::move(theirs)};
    const std::vector<int> fds(fds_max, event.get());
    const std::array<std::byte, 1> piece{};
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(peer.send_bytes(piece, fds));
    const auto features = frontend.get_features();
    ASSERT_FALSE(features);
    EXPECT_NE(features.error().message.find("more descriptors"), std::string::npos);
    EXPECT_FALSE(frontend.refused());
  }
  EXPECT_EQ(testing::open_fds(), before);
}

TEST(Frontend, TakesAMessageWithAllTheDescriptorsItMayHave) {
  const auto event = testing::make_event();
  auto [ours, theirs] = testing::make_sockets();
  Frontend frontend{std::move(ours)}, peer{std::move(theirs)};
  const std::vector<int> fds(fds_max, event.get());
  ASSERT_TRUE(peer.send(wire::Request::get_features, bytes_of(std::uint64_t{5}), fds,
                        wire::version | wire::flag_reply));
  const auto features = frontend.get_features();
  ASSERT_TRUE(features) << features.error().message;
  EXPECT_EQ(*features, 5u);
}

}  // namespace
}  // namespace millrace::vhost
