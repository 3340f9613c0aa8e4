// TwoGuests: two devices on a real switch and running reactors.
#pragma once

#include <gtest/gtest.h>

#include <chrono>

#include "base/event_loop.hpp"
#include "net/device.hpp"
#include "net/offload.hpp"
#include "net/testing/guest_ring.hpp"
#include "virtio/wire/net.hpp"

namespace millrace::net::testing {

namespace nf = virtio::wire::net_feature;
using virtio::wire::NetHeader;

struct Guest {
  Guest(const char* name, std::uint8_t address, std::uint64_t bits)
      : mac{0x52, 0x54, 0, 0, 0, address},
        features{bits | virtio::feature::version_1 | nf::mrg_rxbuf},
        rx{features, 256},
        tx{features, 256} {
    config.name = config.port.name = name;
  }
  Config config;
  Bytes mac;
  std::uint64_t features;
  GuestRing rx, tx;
  std::unique_ptr<Device> device;
};

class TwoGuests : public ::testing::TestWithParam<unsigned> {  // reactors
 protected:
  TwoGuests() {
    std::vector<base::ReactorConfig> configs(GetParam());
    for (unsigned i = 0; i < configs.size(); ++i) configs[i].index = i;
    pool_ = std::move(base::ReactorPool::make(loop_, configs).value());
    fabric_ = std::move(vswitch::Fabric::make(*pool_, {}).value());
  }
  template <class Condition>
  [[nodiscard]] bool until(Condition condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds{20};
    while (!condition()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      loop_.step(std::chrono::milliseconds{1});
    }
    return true;
  }
  // Runs `ask(done)` and waits until `done` was called.
  template <class Ask>
  void wait(Ask ask) {
    bool done = false;
    ask([&done] { done = true; });
    ASSERT_TRUE(until([&] { return done; }));
  }
  void plug(Guest& guest) {
    wait([&](auto done) {
      guest.device = std::move(Device::make(guest.config, *pool_, *fabric_, done).value());
    });
    guest.device->set_features(guest.features);
    for (unsigned i = 0; i < 2; ++i) {
      wait([&](auto done) {
        guest.device->start_queue((i == 0 ? guest.rx : guest.tx).start(i, true),
                                  [done](base::Result<void> result) {
                                    EXPECT_TRUE(result);
                                    done();
                                  });
      });
    }
    for (int i = 0; i < 100; ++i) guest.rx.post({1526});
  }
  void unplug(Guest& guest) {
    for (unsigned i = 0; i < 2; ++i) {
      wait([&](auto done) { guest.device->stop_queue(i, [done](std::uint32_t) { done(); }); });
    }
    wait([&](auto done) { guest.device->close(done); });
    guest.device.reset();
  }
  static void send(Guest& from, const Bytes& to, Bytes frame, const FrameSpec& spec) {
    std::copy(to.begin(), to.end(), frame.begin());
    std::copy(from.mac.begin(), from.mac.end(), frame.begin() + 6);
    const NetHeader header = describe(offload_of(spec), {true, true, true, true, true, true});
    Bytes raw(sizeof(header));
    std::memcpy(raw.data(), &header, sizeof(header));
    from.tx.send({raw, frame});
    from.tx.kick();
  }
  // The next frame; empty where none comes.
  Bytes receive(Guest& guest) {
    std::optional<GuestRing::Done> part;
    if (!until([&] { return (part = guest.rx.take_used()).has_value(); })) return {};
    NetHeader header{};
    std::memcpy(&header, part->bytes.data(), sizeof(header));
    Bytes out(part->bytes.begin() + sizeof(header), part->bytes.end());
    for (unsigned i = 1; i < header.num_buffers.host(); ++i) {
      part = guest.rx.take_used();
      EXPECT_TRUE(part);
      if (!part) break;
      out.insert(out.end(), part->bytes.begin(), part->bytes.end());
    }
    return out;
  }

  base::EventLoop loop_;
  std::unique_ptr<base::ReactorPool> pool_;
  std::unique_ptr<vswitch::Fabric> fabric_;
};

}  // namespace millrace::net::testing
