// BackendLink against back-ends that behave, that refuse, and that talk nonsense.
#include "vmm/backend_link.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>

#include "virtio/wire/ring.hpp"
#include "vmm/testing/fake_machine.hpp"
#include "vmm/testing/pci_driver.hpp"
#include "vmm/testing/scripted_backend.hpp"

namespace millrace::vmm {
namespace {

namespace protocol = vhost::wire::protocol;
namespace vf = virtio::feature;
using testing::ScriptedBackend, testing::signalled;
using vhost::Frontend, vhost::Message, vhost::bytes_of;
using virtio::wire::BlkConfig;
using Request = vhost::wire::Request;
using namespace std::chrono_literals;

constexpr auto patience = 20s;
constexpr std::uint64_t features = vf::version_1 | vf::ring_reset;

bool until(const std::function<bool()>& done) {
  return testing::PciDriver::until(patience, done);
}

struct Listener final : VirtioBackend::Listener {
  void config_changed(std::span<const std::byte> bytes) override {
    const std::lock_guard lock{mutex};
    config.assign(bytes.begin(), bytes.end());
    ++configs;
  }
  void needs_reset() override { ++resets_needed; }
  void stopped() override { ++stops; }
  void queue_stopped(unsigned index) override {
    last_queue = index;
    ++queue_stops;
  }
  [[nodiscard]] std::uint8_t config_byte(std::size_t at) {
    const std::lock_guard lock{mutex};
    return at < config.size() ? std::to_integer<std::uint8_t>(config[at]) : std::uint8_t{0};
  }
  std::mutex mutex;
  std::vector<std::byte> config;
  std::atomic<unsigned> configs = 0, resets_needed = 0, stops = 0, queue_stops = 0, last_queue = 99;
};

struct Link : ::testing::Test {
  Link() {
    auto made = GuestRam::make({.bytes = 64ull << 20});
    CHECK(made.has_value());
    ram = std::make_unique<GuestRam>(std::move(made).value());
    for (auto& fd : events) fd = base::Fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  }
  ~Link() override {
    if (link) link->close();
  }
  base::Result<void> make(BackendLinkConfig config = {}) {
    config.socket = backend.path();
    config.timeouts = {.reply = timeout, .stop = timeout};
    config.on_change = [this](bool up, const std::string& why) {
      const std::lock_guard lock{listener.mutex};
      changes.push_back(up ? "up" : why);
    };
    auto made = BackendLink::make(std::move(config), *ram);
    if (!made) return base::Unexpected{made.error()};
    link = std::move(made).value();
    link->open(listener);
    return {};
  }
  VirtQueue queue(unsigned index) {
    const std::uint64_t at = 0x10000 * (index + 1);
    return {.index = index,
            .size = 64,
            .descriptors = at,
            .driver = at + 0x4000,
            .device = at + 0x8000,
            .kick = events[2 * index].get(),
            .call = events[2 * index + 1].get()};
  }
  void activate(std::uint64_t negotiated = features) {
    const std::array queues{queue(0), queue(1)};
    link->activate(negotiated, queues);
  }
  bool enabled(std::size_t times) {
    return until([&] { return backend.count(Request::set_vring_enable) == times; });
  }
  [[nodiscard]] std::string last_change() {
    const std::lock_guard lock{listener.mutex};
    return changes.empty() ? "" : changes.back();
  }
  // The device, whole and running, after a back-end did what it did.
  void expect_recovered(unsigned connections = 2) {
    EXPECT_TRUE(until([&] { return backend.connections() >= connections && link->connected(); }));
    EXPECT_TRUE(until([&] {
      const auto all = backend.noted();
      return !all.empty() && all.back().request == Request::set_status && all.back().first == 15;
    }));
    EXPECT_EQ(listener.resets_needed, 0u);
  }

  ScriptedBackend backend;
  std::unique_ptr<GuestRam> ram;
  std::array<base::Fd, 4> events;
  Listener listener;
  std::vector<std::string> changes;
  std::chrono::milliseconds timeout{10'000};
  std::unique_ptr<BackendLink> link;
};

TEST_F(Link, StartsAndStopsInGoodOrder) {
  ASSERT_TRUE(make());
  EXPECT_EQ(link->queues(), 2u);
  activate();
  ASSERT_TRUE(enabled(2));
  link->stop();
  ASSERT_TRUE(until([&] { return listener.stops == 1; }));
  std::vector<Request> order;
  for (const auto& one : backend.noted()) order.push_back(one.request);
  using enum Request;
  const std::vector<Request> ring{set_vring_num,  set_vring_base, set_vring_addr,  set_vring_err,
                                  set_vring_call, set_vring_kick, set_vring_enable};
  std::vector<Request> expected{get_features,          set_owner,       get_protocol_features,
                                set_protocol_features, get_queue_num,   get_max_mem_slots,
                                set_backend_req_fd,    get_config,      set_features,
                                add_mem_reg,           get_inflight_fd, set_inflight_fd};
  expected.insert(expected.end(), ring.begin(), ring.end());
  expected.insert(expected.end(), ring.begin(), ring.end());
  expected.insert(expected.end(), {set_status, get_vring_base, get_vring_base, set_status});
  EXPECT_EQ(order, expected);
}

TEST_F(Link, RestoresWhereASplitRingStood) {
  ASSERT_TRUE(make());
  activate();
  ASSERT_TRUE(enabled(2));
  auto* used = reinterpret_cast<virtio::wire::Used*>(ram->at(queue(1).device, 4).data());
  used->index = base::le16{0xfff7};
  backend.hang_up();
  ASSERT_TRUE(enabled(4));
  std::vector<std::pair<unsigned, std::uint32_t>> bases;
  for (const auto& one : backend.noted()) {
    if (one.request == Request::set_vring_base) bases.emplace_back(one.first, one.second);
  }
  EXPECT_EQ(bases,
            (std::vector<std::pair<unsigned, std::uint32_t>>{{0, 0}, {1, 0}, {0, 0}, {1, 0xfff7}}));
  EXPECT_EQ(backend.count(Request::get_inflight_fd), 1u) << "the region is kept";
  EXPECT_EQ(backend.count(Request::set_inflight_fd), 2u);
  EXPECT_TRUE(until([&] { return signalled(events[0].get()) && signalled(events[3].get()); }))
      << "kicks and calls that may have been lost";
  EXPECT_TRUE(until([&] { return last_change() == "up"; }));
}

TEST_F(Link, RestoresAPackedRingByItsRegionOnly) {
  ASSERT_TRUE(make());
  activate(features | vf::ring_packed);
  ASSERT_TRUE(enabled(2));
  backend.hang_up();
  ASSERT_TRUE(enabled(4));
  EXPECT_EQ(listener.resets_needed, 0u);
  backend.change([](ScriptedBackend& b) { b.protocol &= ~protocol::inflight_shmfd; });
  link->stop();
  ASSERT_TRUE(until([&] { return listener.stops == 1; }));
  backend.hang_up();
  ASSERT_TRUE(until([&] { return backend.connections() == 3 && link->connected(); }));
  activate(features | vf::ring_packed);
  ASSERT_TRUE(enabled(6));
  backend.hang_up();
  EXPECT_TRUE(until([&] { return listener.resets_needed == 1; }));
}

TEST_F(Link, AsksForANewRegionAfterAReset) {
  ASSERT_TRUE(make());
  for (unsigned round = 1; round <= 3; ++round) {
    activate();
    ASSERT_TRUE(enabled(2 * round));
    link->stop();
    ASSERT_TRUE(until([&] { return listener.stops == round; }));
    EXPECT_EQ(backend.count(Request::get_inflight_fd), round);
  }
  EXPECT_EQ(backend.count(Request::add_mem_reg), 1u) << "memory is shared once";
}

TEST_F(Link, StopsOneQueue) {
  ASSERT_TRUE(make());
  activate();
  ASSERT_TRUE(enabled(2));
  link->stop_queue(1);
  ASSERT_TRUE(until([&] { return listener.queue_stops == 1; }));
  EXPECT_EQ(listener.last_queue, 1u);
  EXPECT_EQ(backend.count(Request::get_vring_base), 1u);
  link->start_queue(queue(1));
  EXPECT_TRUE(enabled(3));
  const auto calls = backend.count(Request::set_vring_call);
  link->set_call(1, -1);
  EXPECT_TRUE(until([&] { return backend.count(Request::set_vring_call) == calls + 1; }));
}

TEST_F(Link, SendsATableWhereSlotsAreNotOffered) {
  backend.change([](ScriptedBackend& b) { b.protocol &= ~protocol::configure_mem_slots; });
  ASSERT_TRUE(make());
  activate();
  ASSERT_TRUE(enabled(2));
  EXPECT_EQ(backend.count(Request::set_mem_table), 1u);
  EXPECT_EQ(backend.count(Request::add_mem_reg), 0u);
}

TEST_F(Link, NeedsAResetAfterARefusal) {
  for (const auto request : {Request::set_features, Request::add_mem_reg, Request::set_vring_addr,
                             Request::set_vring_enable}) {
    if (link) link->close();
    listener.resets_needed = 0;
    ASSERT_TRUE(make());
    const auto before = backend.connections();
    backend.refuse(request);
    activate();
    EXPECT_TRUE(until([&] { return listener.resets_needed == 1; }));
    EXPECT_TRUE(link->connected());
    listener.stops = 0;
    link->stop();
    EXPECT_TRUE(until([&] { return listener.stops == 1; }));
    EXPECT_EQ(backend.connections(), before) << "it is no reason to hang up";
  }
}

TEST_F(Link, NeedsAResetForARingThatIsNone) {
  ASSERT_TRUE(make());
  auto outside = queue(0), crooked = queue(0), wrapped = queue(0);
  outside.device = 64ull << 20;
  crooked.descriptors += 8;
  wrapped.driver = ~0ull - 8;
  unsigned round = 0;
  for (const auto& bad : {outside, crooked, wrapped}) {
    ++round;
    link->activate(features, std::array{bad});
    EXPECT_TRUE(until([&] { return listener.resets_needed == round; }));
    EXPECT_EQ(backend.count(Request::set_vring_addr), 0u);
    link->stop();
    ASSERT_TRUE(until([&] { return listener.stops == round; }));
  }
  EXPECT_EQ(backend.connections(), 1u);
}

TEST_F(Link, NeedsAResetWhenTheBackendStopsAQueue) {
  ASSERT_TRUE(make());
  activate();
  ASSERT_TRUE(enabled(2));
  backend.signal_error(1);
  EXPECT_TRUE(until([&] { return listener.resets_needed == 1; }));
}

TEST_F(Link, TakesConfigurationChanges) {
  ASSERT_TRUE(make());
  backend.change([](ScriptedBackend& b) { b.config.capacity = base::le64{0x77}; });
  backend.request(2, vhost::wire::version | vhost::wire::flag_need_reply);
  EXPECT_TRUE(until([&] { return listener.config_byte(0) == 0x77; }));
  auto answer = backend.answer();
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->as<std::uint64_t>(), 0u);
  backend.request(77, vhost::wire::version | vhost::wire::flag_need_reply);
  answer = backend.answer();
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->as<std::uint64_t>(), 1u) << "unknown";
  EXPECT_TRUE(link->connected());
  backend.request(2, 3);
  EXPECT_TRUE(until([&] { return backend.connections() == 2; })) << "no version that we speak";
}

TEST_F(Link, RestoresTheDriversWritebackMode) {
  backend.change([](ScriptedBackend& b) { b.config.writeback = 1; });
  ASSERT_TRUE(make());
  activate(features | virtio::wire::blk_feature::config_wce);
  ASSERT_TRUE(enabled(2));
  constexpr auto field = static_cast<std::uint32_t>(offsetof(BlkConfig, writeback));
  const std::array off{std::byte{0}};
  EXPECT_TRUE(link->write_config(field, off));
  EXPECT_EQ(backend.count(Request::set_config), 1u) << "in effect on return";
  EXPECT_FALSE(link->write_config(0, off)) << "no field of the driver's";
  EXPECT_FALSE(link->write_config(field, std::array<std::byte, 2>{}));
  backend.hang_up();
  EXPECT_TRUE(until([&] { return backend.count(Request::set_config) == 2; }));
  backend.refuse(Request::set_config);
  EXPECT_FALSE(link->write_config(field, std::array{std::byte{9}}));
}

TEST_F(Link, WaitsForABackendThatHasWhatTheGuestUses) {
  ASSERT_TRUE(make());
  activate(features | virtio::wire::blk_feature::mq);
  ASSERT_TRUE(enabled(2));
  backend.change([](ScriptedBackend& b) { b.features &= ~vf::ring_reset; });
  backend.hang_up();
  ASSERT_TRUE(until([&] { return backend.connections() >= 3; })) << "tried again";
  EXPECT_FALSE(link->connected());
  backend.change([](ScriptedBackend& b) {
    b.features |= vf::ring_reset;
    b.config.num_queues = base::le16{1};
  });
  const auto before = backend.connections();
  ASSERT_TRUE(until([&] { return backend.connections() >= before + 2; })) << "too few queues";
  EXPECT_FALSE(link->connected());
  backend.change([](ScriptedBackend& b) { b.config.num_queues = base::le16{2}; });
  EXPECT_TRUE(enabled(4));
  EXPECT_EQ(listener.resets_needed, 0u);
}

TEST_F(Link, ShowsWhatAnotherBackendOffersToAnIdleGuest) {
  ASSERT_TRUE(make());
  EXPECT_NE(link->features() & vf::ring_packed, 0u);
  backend.change([](ScriptedBackend& b) { b.features &= ~vf::ring_packed; });
  backend.hang_up();
  EXPECT_TRUE(until([&] { return (link->features() & vf::ring_packed) == 0; }));
}

TEST_F(Link, StopsWithNobodyThere) {
  ASSERT_TRUE(make());
  activate();
  ASSERT_TRUE(enabled(2));
  backend.script(Request::get_features, 0, [](auto&, auto&) { return false; });
  backend.hang_up();
  ASSERT_TRUE(until([&] { return !link->connected(); }));
  link->stop_queue(0);
  EXPECT_TRUE(until([&] { return listener.queue_stops == 1; }));
  link->stop();
  EXPECT_TRUE(until([&] { return listener.stops == 1; }));
}

// A back-end that does not answer may be at work in the guest's memory all the same.
TEST_F(Link, AResetWaitsForABackendThatIsSilent) {
  timeout = 100ms;
  ASSERT_TRUE(make());
  activate();
  ASSERT_TRUE(enabled(2));
  backend.script(Request::get_vring_base, 1, [&](Frontend&, const Message&) {
    EXPECT_TRUE(until([&] { return !link->connected(); }));
    EXPECT_EQ(listener.stops, 0u);
    return true;
  });
  link->stop();
  EXPECT_TRUE(until([&] { return listener.stops == 1; }));
  EXPECT_EQ(backend.connections(), 2u) << "the next connection says that it has let go";
}

TEST_F(Link, ClosesWhileABackendIsSilent) {
  ASSERT_TRUE(make());
  std::atomic<bool> asked = false;
  backend.script(Request::set_features, 0, [&](Frontend&, const Message&) { return asked = true; });
  activate();
  ASSERT_TRUE(until([&] { return asked.load(); }));
  const auto before = std::chrono::steady_clock::now();
  link->close();
  EXPECT_LT(std::chrono::steady_clock::now() - before, timeout) << "not held up by it";
}

// Each is one connection lost and another one made.
using Nonsense = std::pair<const char*, std::function<void(ScriptedBackend&)>>;
struct LinkNonsense : Link, ::testing::WithParamInterface<Nonsense> {};

TEST_P(LinkNonsense, IsAConnectionLost) {
  timeout = 2'000ms;
  ASSERT_TRUE(make());
  GetParam().second(backend);
  activate();
  expect_recovered();
}

auto short_reply(Request request) {
  return [request](ScriptedBackend& backend) {
    backend.script(request, 1, [](Frontend& peer, const Message& message) {
      return ScriptedBackend::reply(peer, message, bytes_of(std::uint16_t{0}));
    });
  };
}

bool inflight_reply(Frontend& peer, const Message& message, int fd, std::uint64_t size) {
  auto shape = message.as<vhost::wire::Inflight>();
  shape.size = size;
  const std::array fds{fd};
  return ScriptedBackend::reply(peer, message, bytes_of(shape),
                                std::span{fds}.first(fd < 0 ? 0 : 1));
}

auto bad_inflight(std::uint64_t size, bool memory) {
  return [size, memory](ScriptedBackend& backend) {
    backend.script(Request::get_inflight_fd, 1, [=](Frontend& peer, const Message& message) {
      const base::Fd fd{memory ? ::memfd_create("small", MFD_CLOEXEC) : ::eventfd(0, EFD_CLOEXEC)};
      CHECK(!memory || ::ftruncate(fd.get(), 4096) == 0);
      return inflight_reply(peer, message, fd.get(), size);
    });
  };
}

INSTANTIATE_TEST_SUITE_P(
    Backends, LinkNonsense,
    ::testing::Values(
        Nonsense{"ShortAcknowledgement", short_reply(Request::set_features)},
        Nonsense{"ShortSlots",  // asked for once a connection, so of the one after
                 [](ScriptedBackend& backend) {
                   short_reply(Request::get_max_mem_slots)(backend);
                   backend.script(Request::set_vring_kick, 1, [](auto&, auto&) { return false; });
                 }},
        Nonsense{"ShortInflight", short_reply(Request::get_inflight_fd)},
        Nonsense{"HangsUp",
                 [](ScriptedBackend& backend) {
                   backend.script(Request::set_vring_kick, 1, [](auto&, auto&) { return false; });
                 }},
        Nonsense{"HangsUpInAMessage",
                 [](ScriptedBackend& backend) {
                   backend.script(Request::set_vring_num, 1, [](Frontend& peer, const Message&) {
                     static_cast<void>(peer.send_bytes(bytes_of(std::uint32_t{8})));
                     return false;
                   });
                 }},
        Nonsense{"IsSilent",
                 [](ScriptedBackend& backend) {
                   backend.script(Request::set_vring_addr, 1, [](auto&, auto&) { return true; });
                 }},
        Nonsense{"AnswersAnother",
                 [](ScriptedBackend& backend) {
                   backend.script(
                       Request::set_vring_base, 1, [](Frontend& peer, const Message& message) {
                         auto other = Message{};
                         other.header = message.header;
                         ++other.header.request;
                         return ScriptedBackend::reply(peer, other, bytes_of(std::uint64_t{0}));
                       });
                 }},
        Nonsense{"AnswersTooMuch",
                 [](ScriptedBackend& backend) {
                   backend.script(Request::set_vring_base, 1, [](Frontend& peer, const Message&) {
                     const vhost::wire::Header header{10, 5, 0xffff'ffff};
                     return peer.send_bytes(bytes_of(header)).has_value();
                   });
                 }},
        Nonsense{"AnswersTwice",
                 [](ScriptedBackend& backend) {
                   backend.script(Request::set_status, 1,
                                  [](Frontend& peer, const Message& message) {
                                    ScriptedBackend::acknowledge(peer, message, 0);
                                    return ScriptedBackend::acknowledge(peer, message, 0);
                                  });
                 }},
        Nonsense{"InflightWithoutDescriptor",
                 [](ScriptedBackend& backend) {
                   backend.script(Request::get_inflight_fd, 1,
                                  [](Frontend& peer, const Message& message) {
                                    return inflight_reply(peer, message, -1, 4096);
                                  });
                 }},
        Nonsense{"InflightIsNoMemory", bad_inflight(4096, false)},
        Nonsense{"InflightIsSmaller", bad_inflight(8192, true)},
        Nonsense{"InflightIsHuge", bad_inflight(~0ull, true)}),
    [](const auto& one) { return std::string{one.param.first}; });

TEST_F(Link, SaysWhyItCannotStart) {
  backend.script(Request::get_features, 1, [](auto&, auto&) { return false; });
  BackendLinkConfig config;
  config.wait = false;
  auto made = make(config);
  ASSERT_FALSE(made.has_value());
  EXPECT_EQ(made.error().message, backend.path() + ": GET_FEATURES: the back-end hung up");
  backend.script(Request::get_config, 1, [](Frontend& peer, const Message& message) {
    return ScriptedBackend::reply(peer, message, {});
  });
  made = make(config);
  ASSERT_FALSE(made.has_value());
  EXPECT_EQ(made.error().message,
            backend.path() + ": GET_CONFIG: the back-end's reply is malformed");
  backend.script(Request::get_features, 3, [](auto&, auto&) { return false; });
  EXPECT_TRUE(make()) << "waiting tries again";
  EXPECT_GE(backend.connections(), 6u);
}

}  // namespace
}  // namespace millrace::vmm
