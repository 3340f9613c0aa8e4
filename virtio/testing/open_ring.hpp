// A ring over a FakeDriver's memory, and what most of them negotiate.
#pragma once

#include <gtest/gtest.h>

#include <utility>

#include "virtio/features.hpp"
#include "virtio/ring.hpp"
#include "virtio/testing/fake_driver.hpp"

namespace millrace::virtio::testing {

inline constexpr std::uint64_t plain = feature::version_1 | feature::indirect_desc;

template <class R>
R open_ring(const FakeDriver& driver) {
  auto ring = R::open(driver.setup(), *driver.memory(), nullptr);
  EXPECT_TRUE(ring.has_value()) << name_of(ring.has_value() ? Fault::none : ring.error());
  return *std::move(ring);
}

}  // namespace millrace::virtio::testing
