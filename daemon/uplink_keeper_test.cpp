// The keeper over uplinks without devices: what is done, in which order.
#include "daemon/uplink_keeper.hpp"

#include <gmock/gmock.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>

#include "base/reactor_pool.hpp"

namespace millrace::daemon {
namespace {

using namespace std::chrono_literals;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Not;

using Log = std::vector<std::string>;

class FakeUplink final : public vswitch::Uplink {
 public:
  FakeUplink(base::EventLoop& loop, Log& log, std::string name, vswitch::PortId port, bool carries)
      : loop_{loop}, log_{log}, name_{std::move(name)}, port_{port}, carries_{carries} {}

  [[nodiscard]] vswitch::UplinkStatus status() const override { return {}; }
  [[nodiscard]] vswitch::PortId port() const override { return port_; }
  void close(Done done) override {
    carries_ = attached_ = false;
    answer("closed", std::move(done));
  }
  void open_and_close_by(Aside) override {}
  [[nodiscard]] bool attached() const override { return attached_; }
  [[nodiscard]] bool carries() const override { return carries_; }
  void carry(bool carries, Done done) override {
    EXPECT_TRUE(attached_);
    carries_ = carries && !refuses;
    answer(carries_ ? "carries" : carries ? "refused" : "rests", std::move(done));
  }
  void detach(Done done) override {
    EXPECT_FALSE(carries_);
    attached_ = false;
    answer("detached", std::move(done));
  }
  void tie(vswitch::DirectSink&, std::uint16_t) override {}
  [[nodiscard]] unsigned home() const override { return 0; }
  void untie(Elsewhere, std::function<void(const std::string&)>, Done done) override { done(); }
  void set_regions(std::shared_ptr<const vswitch::DmaRegions>, Done done) override { done(); }
  void attach(const std::string&, Attached done) override {
    attached_ = true;
    departure = base::Fd{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};  // nobody wants this one yet
    done({});
  }
  [[nodiscard]] vswitch::LinkState link() const override {
    answers.wait(false);
    return attached_ && up ? vswitch::LinkState{true, 1000} : vswitch::LinkState{};
  }
  void send(std::shared_ptr<const std::vector<vswitch::Packet>> frames, Done done) override {
    ++sends;
    announced += frames->size();
    done();
  }
  [[nodiscard]] int departure_fd() const override { return departure.get(); }
  [[nodiscard]] std::optional<Group> group() const override { return std::nullopt; }
  [[nodiscard]] std::vector<DriverCounter> driver_counters() const override { return {}; }

  void answer_all() {
    answers = true;
    answers.notify_one();
  }
  void ask_back() const {
    const std::uint64_t one = 1;
    ASSERT_EQ(::write(departure.get(), &one, sizeof one), 8);
  }

  void rest() { carries_ = false; }
  void leave_out() { carries_ = attached_ = false; }
  // The device that hangs is closed at last.
  void let_close() {
    hangs = false;
    loop_.defer(std::exchange(closing_, {}));
  }

  bool hangs = false;                    // nothing it begins with a device ends before let_close()
  bool refuses = false;                  // to carry: a bond's driver does not want it
  std::atomic<bool> up = true;           // link() is asked on a thread of its own
  std::atomic<bool> answers = true;      // false: link() waits until it is
  std::size_t sends = 0, announced = 0;  // of how many frames
  base::Fd departure{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};

 private:
  void answer(const char* what, Done done) {
    log_.push_back(name_ + " " + what);
    if (hangs && !attached_) {
      closing_ = std::move(done);
    } else {
      loop_.defer(std::move(done));
    }
  }

  base::EventLoop& loop_;
  Log& log_;
  const std::string name_;
  const vswitch::PortId port_;
  bool attached_ = true, carries_;
  Done closing_;
};

class UplinkKeeperTest : public ::testing::Test {
 protected:
  UplinkKeeperTest() {
    pool = *base::ReactorPool::make(loop, {base::ReactorConfig{}});
    fabric = *vswitch::Fabric::make(*pool, {});
    keeper.use(*fabric);
  }
  ~UplinkKeeperTest() override {
    for (const auto& [name, unit] : units) static_cast<FakeUplink&>(*unit->uplink).answer_all();
    fabric.reset();
  }

  vswitch::PortId add_port(const std::string& name, const std::vector<vswitch::Mac>& macs = {}) {
    vswitch::PortConfig config;
    config.name = name;
    config.static_macs = macs;
    return *fabric->add_port(config, {});
  }
  FakeUplink& add_bond(const std::string& name, const std::vector<std::string>& members) {
    return add(name, {}, [&](UplinkUnit& unit, FakeUplink& uplink) {
      unit.config.members = members;
      uplink.leave_out();
    });
  }
  FakeUplink& add_member(const std::string& name, const std::string& bond) {
    return add(name, {}, [&](UplinkUnit& unit, FakeUplink& uplink) {
      unit.bond = units.at(bond).get();
      uplink.rest();
    });
  }
  FakeUplink& add(const std::string& name, const std::string& standby = {},
                  const std::function<void(UplinkUnit&, FakeUplink&)>& prepare = {}) {
    auto& unit = *units.emplace(name, std::make_unique<UplinkUnit>()).first->second;
    unit.config.uplink.name = name;
    unit.config.uplink.device = "device of " + name;
    unit.config.standby = standby;
    const bool alone = keeper.stands_alone(unit.config);
    const auto port = add_port(name);
    auto uplink = std::make_unique<FakeUplink>(loop, log, name, port, alone);
    auto& out = *uplink;
    unit.uplink = std::move(uplink);
    unit.state = UnitState::running;
    if (prepare) prepare(unit, out);
    keeper.keep(unit);
    return out;
  }
  UplinkUnit& unit(const std::string& name) { return *units.at(name); }
  void until(const std::function<bool()>& ready) {
    const auto end = std::chrono::steady_clock::now() + 20s;
    while (!ready()) {
      ASSERT_LT(std::chrono::steady_clock::now(), end) << ::testing::PrintToString(log);
      loop.step(5ms);
    }
  }
  void until_logged(const std::string& what) {
    until([&] { return std::ranges::find(log, what) != log.end(); });
  }
  void pass(std::chrono::milliseconds time) {
    const auto end = std::chrono::steady_clock::now() + time;
    until([&] { return std::chrono::steady_clock::now() >= end; });
  }

  base::EventLoop loop;
  std::unique_ptr<base::ReactorPool> pool;
  std::unique_ptr<vswitch::Fabric> fabric;
  Log log, events, removed;
  std::optional<bool> guests;  // what all ports are
  bool opens = true, physical_link = false;
  bool opening = false;  // a device that is opened is there after finish_opening()
  std::function<void()> finish_opening;
  UplinkKeeper::Units units;
  UplinkKeeper keeper{loop,
                      units,
                      {.emit = [this](auto event, const auto&) { events.emplace_back(event); },
                       .open =
                           [this](UplinkUnit& lost, auto done) {
                             log.push_back(lost.config.uplink.name + " opened");
                             if (opening) {
                               finish_opening = [&lost, done] { lost.uplink->attach("", done); };
                             } else if (opens) {
                               lost.uplink->attach("", done);
                             } else {
                               done(base::fail("it is broken"));
                             }
                           },
                       .closed =
                           [this](UplinkUnit& lost, auto done) {
                             EXPECT_FALSE(lost.uplink->attached());
                             log.push_back(lost.config.uplink.name + " let go");
                             done();
                           },
                       .remove = [this](const std::string& name) { removed.push_back(name); },
                       .physical_has_link = [this](const auto&) { return physical_link; },
                       .guests = [this](vswitch::PortId) { return guests; },
                       .changed = [] {}},
                      {.beat = 5ms,
                       .members_come = 40ms,
                       .calm_link = 40ms,
                       .dead_link = 40ms,
                       .calm_device = 10s,
                       .bus_reset = 2ms,
                       .pause_first = 1ms,
                       .pause_most = 4ms,
                       .pause_for_host = 4ms}};
};

TEST_F(UplinkKeeperTest, AStandbyCarriesWhileTheFirstHasNoLink) {
  auto& first = add("a", "b");
  auto& second = add("b");
  until([&] { return first.carries(); });
  pass(20ms);
  EXPECT_THAT(log, ElementsAre("a carries"));
  log.clear();
  first.up = false;
  until_logged("b carries");
  EXPECT_THAT(log, ElementsAre("a rests", "b carries"));
  EXPECT_TRUE(keeper.leads_out("a"));
  first.up = true;
  until_logged("a carries");
  EXPECT_THAT(log, ElementsAre("a rests", "b carries", "b rests", "a carries"));
  EXPECT_FALSE(second.carries());
  EXPECT_THAT(events, Contains("UPLINK_LINK").Times(2));
}

TEST_F(UplinkKeeperTest, AStandbyCarriesBeforeALostDeviceIsClosed) {
  auto& first = add("a", "b");
  add("b");
  until([&] { return first.carries(); });
  log.clear();
  keeper.lose(unit("a"), Loss::error, "reported an error");
  keeper.lose(unit("a"), Loss::error, "reported it again");
  EXPECT_TRUE(unit("a").care.lost);
  until_logged("a carries");
  EXPECT_THAT(log, ElementsAre("a rests", "b carries", "a detached", "a let go", "a opened",
                               "b rests", "a carries"));
  EXPECT_EQ(unit("a").care.losses, 1u);
  EXPECT_EQ(unit("a").care.problem, "");
  EXPECT_THAT(events, Contains("UPLINK_RESTORED").Times(1));
  EXPECT_THAT(removed, IsEmpty());
}

TEST_F(UplinkKeeperTest, ABondBeginsWithAllOfItsMembers) {
  auto& bond = add_bond("t", {"a", "b"});
  pass(60ms);
  EXPECT_THAT(log, IsEmpty());
  EXPECT_FALSE(keeper.leads_out("t"));
  add_member("a", "t");
  EXPECT_THAT(log, IsEmpty());
  add_member("b", "t");
  until([&] { return bond.carries(); });
  EXPECT_THAT(log, ElementsAre("t opened", "a carries", "b carries", "t carries"));
  EXPECT_TRUE(keeper.leads_out("t"));
  EXPECT_THAT(events, Not(Contains("UPLINK_RESTORED")));
  log.clear();
  keeper.lose(unit("b"), Loss::host, "the host wants it back");
  until_logged("b carries");
  EXPECT_THAT(log, ElementsAre("b rests", "b detached", "b let go", "b opened", "b carries"));
  EXPECT_THAT(removed, IsEmpty());
}

TEST_F(UplinkKeeperTest, ABondBeginsWithoutAMemberThatDoesNotCome) {
  auto& bond = add_bond("t", {"a", "b"});
  add_member("a", "t");
  pass(10ms);
  EXPECT_THAT(log, IsEmpty());
  until([&] { return bond.carries(); });
  EXPECT_THAT(log, ElementsAre("t opened", "a carries", "t carries"));
  add_member("b", "t");
  until_logged("b carries");
  EXPECT_THAT(log, Not(Contains("t rests")));
}

TEST_F(UplinkKeeperTest, ABondBeginsAnewWithAMemberThatItRefuses) {
  auto& bond = add_bond("t", {"a", "b"});
  add_member("a", "t");
  until([&] { return bond.carries(); });
  log.clear();
  auto& second = add_member("b", "t");
  second.refuses = true;
  until_logged("b refused");
  second.refuses = false;
  until_logged("t opened");
  EXPECT_THAT(log,
              ElementsAre("b refused", "a rests", "t rests", "t detached", "t let go", "t opened"));
  until([&] { return bond.carries() && second.carries(); });
  EXPECT_EQ(unit("t").care.losses, 1u);
  EXPECT_THAT(unit("b").care.losses, 0u);
}

TEST_F(UplinkKeeperTest, ABondClosesAfterItsMembers) {
  auto& bond = add_bond("t", {"a"});
  add_member("a", "t");
  until([&] { return bond.carries(); });
  log.clear();
  for (const auto* name : {"t", "a"}) {
    unit(name).state = UnitState::stopping;
    keeper.close(unit(name), [this, name] { units.erase(name); });
  }
  until([&] { return units.empty(); });
  EXPECT_EQ(log.back(), "t let go");
  EXPECT_THAT(log, Contains("a closed"));
}

TEST_F(UplinkKeeperTest, OneThatStandsAloneComesBackAfterAnError) {
  add("a");
  keeper.lose(unit("a"), Loss::error, "reported an error");
  EXPECT_FALSE(keeper.leads_out("a"));
  until_logged("a carries");
  EXPECT_THAT(log, ElementsAre("a rests", "a detached", "a let go", "a opened", "a carries"));
  EXPECT_TRUE(keeper.leads_out("a"));
}

// No bus is being reset that had to be waited for.
TEST_F(UplinkKeeperTest, OneThatStandsStillIsClosedAtOnce) {
  add("a");
  keeper.lose(unit("a"), Loss::still, "does not send what it was given");
  EXPECT_LE(unit("a").care.try_at, UplinkCare::Clock::now());
  until_logged("a carries");
  EXPECT_THAT(log, ElementsAre("a rests", "a detached", "a let go", "a opened", "a carries"));
}

TEST_F(UplinkKeeperTest, TriesTenTimes) {
  add("a");
  opens = false;
  keeper.lose(unit("a"), Loss::error, "reported an error");
  until([&] { return unit("a").care.failed; });
  pass(50ms);
  EXPECT_THAT(log, Contains("a opened").Times(10));
  EXPECT_EQ(unit("a").care.problem, "it is broken");
  EXPECT_THAT(events, Contains("UPLINK_FAILED").Times(1));
}

TEST_F(UplinkKeeperTest, OneThatBreaksEachTimeIsTriedTenTimes) {
  add("a");
  while (!unit("a").care.failed) {
    keeper.lose(unit("a"), Loss::error, "reported an error");
    until([&] { return !unit("a").care.lost || unit("a").care.failed; });
  }
  pass(50ms);
  EXPECT_THAT(log, Contains("a opened").Times(10));
  EXPECT_EQ(unit("a").care.losses, 11u);
  EXPECT_EQ(unit("a").care.problem, "device of a: reported an error");
  EXPECT_THAT(events, Contains("UPLINK_FAILED").Times(1));
}

TEST_F(UplinkKeeperTest, OneWhosePhysicalFunctionWasResetIsOpenedAnew) {
  auto& uplink = add("a");
  unit("a").config.uplink.pci = true;
  uplink.up = false;
  pass(100ms);  // as the other end of the wire has none, either
  EXPECT_EQ(unit("a").care.losses, 0u);
  physical_link = true;
  until([&] { return unit("a").care.tries == 10; });
  pass(200ms);  // its link is switched off: it stays as it is, and may have it again
  EXPECT_EQ(unit("a").care.losses, 10u);
  EXPECT_TRUE(uplink.attached() && uplink.carries());
  EXPECT_THAT(events, Not(Contains("UPLINK_FAILED")));
}

TEST_F(UplinkKeeperTest, OneWhoseLinkCameBackAfterAResetIsOpenedAnew) {
  auto& uplink = add("a");
  unit("a").config.uplink.pci = true;
  const auto flap = [&] {
    physical_link = uplink.up = false;
    until([&] { return !keeper.leads_out("a"); });
    uplink.up = true;
    until([&] { return keeper.leads_out("a"); });
  };
  flap();
  pass(60ms);
  EXPECT_EQ(unit("a").care.losses, 0u);  // it is no virtual function
  flap();
  physical_link = true;
  until([&] { return unit("a").care.losses == 1; });
  until([&] { return uplink.attached() && uplink.carries(); });
  pass(60ms);
  EXPECT_EQ(unit("a").care.losses, 1u);
  EXPECT_THAT(log, ElementsAre("a rests", "a detached", "a let go", "a opened", "a carries"));
}

TEST_F(UplinkKeeperTest, WhatTheHostTookIsTheHosts) {
  const auto& alone = add("a");
  alone.ask_back();
  until([&] { return !removed.empty(); });
  EXPECT_THAT(removed, ElementsAre("a"));
}

TEST_F(UplinkKeeperTest, WhatTheHostTookOfAPairIsWaitedFor) {
  const auto& first = add("a", "b");
  add("b");
  until([&] { return first.carries(); });
  log.clear();
  opens = false;
  first.ask_back();
  until([&] { return std::ranges::count(log, "a opened") > 15; });
  EXPECT_FALSE(unit("a").care.failed);
  opens = true;
  until_logged("a carries");
  EXPECT_THAT(removed, IsEmpty());
}

TEST_F(UplinkKeeperTest, WhoBeginsToCarryAnnouncesTheGuests) {
  auto& first = add("a", "b");
  auto& second = add("b");
  until([&] { return first.sends != 0; });  // it has announced whom there was: nobody
  const vswitch::Mac mac{2, 0, 0, 0, 0, 1};
  add_port("guest", {mac});
  guests = false;
  const auto before = first.announced;
  first.up = false;
  until([&] { return second.announced != 0; });
  EXPECT_EQ(second.announced, 1u);
  EXPECT_EQ(first.announced, before);
}

TEST_F(UplinkKeeperTest, AnnouncesWhenItsLinkIsThere) {
  const vswitch::Mac mac{2, 0, 0, 0, 0, 1};
  add_port("guest", {mac});
  guests = false;
  auto& uplink = add("a");
  uplink.up = false;
  until([&] { return !keeper.leads_out("a"); });
  const auto before = uplink.announced;
  pass(30ms);
  EXPECT_EQ(uplink.announced, before);
  uplink.up = true;
  until([&] { return uplink.announced == before + 1; });
}

TEST_F(UplinkKeeperTest, NobodyWaitsForADeviceThatDoesNotAnswer) {
  auto& first = add("a", "b");
  add("b");
  until([&] { return first.carries(); });
  log.clear();
  first.answers = false;
  until([&] { return unit("a").care.asked(); });
  keeper.lose(unit("a"), Loss::error, "reported an error");
  until_logged("b carries");
  pass(30ms);  // it is not closed while its driver waits for it
  EXPECT_THAT(log, ElementsAre("a rests", "b carries"));
  first.answer_all();
  until_logged("a carries");
  EXPECT_THAT(log, ElementsAre("a rests", "b carries", "a detached", "a let go", "a opened",
                               "b rests", "a carries"));
}

TEST_F(UplinkKeeperTest, OneThatDoesNotAnswerIsClosedWhenItDoes) {
  auto& uplink = add("a");
  until([&] { return uplink.carries(); });
  uplink.answers = false;
  until([&] { return unit("a").care.asked(); });
  bool closed = false;
  unit("a").state = UnitState::stopping;
  keeper.close(unit("a"), [&closed] { closed = true; });
  pass(30ms);
  EXPECT_FALSE(closed);
  uplink.answer_all();
  until([&] { return closed; });
}

TEST_F(UplinkKeeperTest, ClosesWhatIsUnderWay) {
  auto& first = add("a", "b");
  add("b");
  until([&] { return first.carries(); });
  log.clear();
  first.up = false;
  until_logged("a rests");  // and its flush is not answered yet
  unsigned closed = 0;
  for (const char* name : {"a", "b"}) {
    unit(name).state = UnitState::stopping;
    keeper.close(unit(name), [&closed] { ++closed; });
  }
  until([&] { return closed == 2; });
  EXPECT_THAT(log, ElementsAre("a rests", "a closed", "a let go", "b closed", "b let go"));
}

TEST_F(UplinkKeeperTest, OthersGoOnWhileADeviceIsBeingClosed) {
  auto& first = add("a", "b");
  add("b");
  auto& third = add("c", "d");
  add("d");
  until([&] { return first.carries() && third.carries(); });
  log.clear();
  first.hangs = true;
  keeper.lose(unit("a"), Loss::error, "reported an error");
  until_logged("a detached");
  EXPECT_TRUE(unit("a").care.closing);
  bool free = false;
  keeper.when_free([&free] { free = true; });
  third.up = false;
  until_logged("d carries");
  third.up = true;
  until_logged("c carries");
  keeper.lose(unit("d"), Loss::error, "reported an error");  // its turn comes
  pass(30ms);
  EXPECT_THAT(log, ElementsAre("a rests", "b carries", "a detached", "c rests", "d carries",
                               "d rests", "c carries"));
  EXPECT_FALSE(free);
  log.clear();
  first.let_close();
  until_logged("a carries");
  EXPECT_TRUE(free);
  EXPECT_FALSE(unit("a").care.closing);
  until([&] { return !unit("d").care.lost; });
  EXPECT_EQ(log.front(), "a let go");
  EXPECT_THAT(log, Contains("d detached"));
}

TEST_F(UplinkKeeperTest, ABondKeepsItsMembersWhileADeviceIsBeingClosed) {
  auto& bond = add_bond("t", {"a", "b"});
  auto& member = add_member("a", "t");
  add_member("b", "t");
  auto& other = add("c");
  until([&] { return bond.carries() && member.carries(); });
  log.clear();
  other.hangs = true;
  keeper.lose(unit("c"), Loss::error, "reported an error");
  until_logged("c detached");
  keeper.lose(unit("a"), Loss::error, "reported an error");
  pass(30ms);
  EXPECT_THAT(log, ElementsAre("c rests", "c detached"));
  other.let_close();
  until_logged("a carries");
  EXPECT_THAT(log, Contains("a detached"));
}

TEST_F(UplinkKeeperTest, OneThatIsRemovedWhileItIsOpenedIsClosed) {
  add("a");
  opening = true;
  keeper.lose(unit("a"), Loss::error, "reported an error");
  until_logged("a opened");
  bool closed = false;
  unit("a").state = UnitState::stopping;
  keeper.close(unit("a"), [&closed] { closed = true; });
  pass(20ms);
  EXPECT_FALSE(closed);
  finish_opening();
  until([&] { return closed; });
  EXPECT_THAT(log,
              ElementsAre("a rests", "a detached", "a let go", "a opened", "a closed", "a let go"));
  EXPECT_THAT(events, Not(Contains("UPLINK_RESTORED")));
}

}  // namespace
}  // namespace millrace::daemon
