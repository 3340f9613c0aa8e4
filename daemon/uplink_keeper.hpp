// UplinkKeeper: keeps uplinks at work: looks at their links, hears of errors and of the host that
// wants a function back, gives such devices up, has them or others again, and says which of an
// uplink and its standby carries frames.
//
// A device that is given up carries nothing any more before its standby does, and the standby does
// before the device is closed, which takes long. Who begins to carry, or has its link again,
// announces the guests behind it. A bond has a device while a member has one, and a member is
// started by being taken into that; one that the bond's driver refuses, because it can less than
// the bond was opened with, has the bond closed and opened anew with all. One thing is done at a
// time, for all uplinks: settle() does the next one that is due, until none is. Beside that, one
// device at a time is closed or opened again, by whoever does it elsewhere, since a device that
// does not answer may take minutes: meanwhile uplinks stop and start carrying, but for members of
// bonds, whose driver makes and unmakes things then. Thread: control, but each device is asked for
// its link on a thread of its own: a driver may wait for minutes for one that does not answer,
// whose device is closed when it has given up.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/event_loop.hpp"
#include "daemon/uplink_announce.hpp"
#include "daemon/uplink_choice.hpp"
#include "daemon/uplink_unit.hpp"
#include "switch/fabric.hpp"

namespace millrace::daemon {

struct UplinkTimes {
  using Time = std::chrono::milliseconds;
  // As often as bonding's miimon: a link that went is noticed within that.
  Time beat{100};
  // A bond begins when all its members are there, or so long after the last one that came.
  Time members_come{500};
  // A link that came carries in place of a standby that works when it was there for so long.
  Time calm_link{1'000};
  // A function without a link while its physical function has one for so long was reset; one whose
  // link came back is opened anew when its physical function's comes within that.
  Time dead_link{2'000};
  // A device that worked for so long begins with short pauses again, and with its first try.
  Time calm_device{5'000};
  // After an error, before the device is closed: the kernel may reset its bus meanwhile, which
  // takes it a second, and a device cannot be closed in order without its registers.
  Time bus_reset{1'500};
  Time pause_first{500}, pause_most{30'000};
  Time pause_for_host{2'000};  // the longest while the host has the function
};

// Why an uplink's device is given up.
enum class Loss {
  error,    // it does not work any more
  still,    // it keeps what guests lent it, and moves nothing
  host,     // the host wants it
  no_link,  // it has none, or had none, and its physical function has: that was reset
};

class UplinkKeeper {
 public:
  using Units = std::map<std::string, std::unique_ptr<UplinkUnit>, std::less<>>;
  // What of the daemon it needs.
  struct Ties {
    std::function<void(std::string_view event, const nlohmann::json& data)> emit;
    // Opens a device for an uplink that has none, its own or another; it carries nothing yet.
    using Opened = std::function<void(const base::Result<void>& result)>;
    std::function<void(UplinkUnit& unit, Opened done)> open;
    // The device of an uplink was closed: what was for that device goes. `done` runs when it did.
    std::function<void(UplinkUnit& unit, std::function<void()> done)> closed;
    // Takes an uplink out whose function the host has taken for good.
    std::function<void(const std::string& name)> remove;
    // Whether the physical function of this virtual one has a link; of other devices: no.
    std::function<bool(const std::string& device)> physical_has_link;
    GuestPorts guests;
    // Something changed of what leads_out() says.
    std::function<void()> changed;
  };

  // All must outlive it.
  UplinkKeeper(base::EventLoop& loop, Units& units, Ties ties, const UplinkTimes& times = {});
  UplinkKeeper(const UplinkKeeper&) = delete;
  UplinkKeeper& operator=(const UplinkKeeper&) = delete;

  // `fabric` must outlive it. Before the first keep().
  void use(vswitch::Fabric& fabric) { fabric_ = &fabric; }
  // The unit runs from now on, until close().
  void keep(UplinkUnit& unit);
  // Takes it off the switch and closes it; `done` runs when it may be destroyed.
  void close(UplinkUnit& unit, std::function<void()> done);
  // Runs `work`, which may open and close devices at once, while no device is opened or closed
  // elsewhere: now, or when that is done.
  void when_free(std::function<void()> work);
  // Gives its device up; `why` is for a person.
  void lose(UplinkUnit& unit, Loss loss, const std::string& why);

  // Whether what follows this uplink has a link: the uplink's own, or its standby's.
  [[nodiscard]] bool leads_out(const std::string& name) const;
  // Whether an uplink of that entry may carry frames as soon as it is there: no other shall in its
  // place, or it in another's.
  [[nodiscard]] bool stands_alone(const UplinkEntry& entry) const;

 private:
  using Clock = UplinkCare::Clock;

  void look();
  void ask(UplinkUnit& unit);
  void hear(UplinkUnit& unit, const vswitch::LinkState& link);
  bool replace_if_reset(UplinkUnit& unit, Clock::time_point now);
  [[nodiscard]] bool was_reset(const UplinkUnit& unit, Clock::time_point now) const;
  void watch(UplinkUnit& unit);
  void begin_bond(UplinkUnit& bond);
  [[nodiscard]] bool any_member(const UplinkUnit& bond, bool with_device) const;
  void started(UplinkUnit& unit);
  [[nodiscard]] bool comes_back(const UplinkUnit& unit) const;
  [[nodiscard]] std::vector<UplinkView> views() const;

  void settle();
  // Each begins one thing, if one is due, and says so.
  bool stop_one(const std::set<std::string>& chosen);
  bool start_one(const std::set<std::string>& chosen);
  bool announce_one();
  bool close_one();
  bool give_up_one();
  bool bring_back_one();
  void begin_change(UplinkUnit& unit, bool closes);
  void end_change();
  void is_back(UplinkUnit& unit);
  void not_back(UplinkUnit& unit, const std::string& why);
  // It is not tried any more.
  void fail(UplinkUnit& unit, const std::string& why);
  // What was begun is done: the next one.
  void go_on();
  void settle_later();

  base::EventLoop& loop_;
  Units& units_;
  const Ties ties_;
  const UplinkTimes times_;
  vswitch::Fabric* fabric_ = nullptr;
  bool busy_ = false;
  UplinkUnit* changing_ = nullptr;  // its device is being closed or opened
  std::vector<std::function<void()>> when_free_;
  base::EventLoop::Timer beat_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // for deferred work
};

}  // namespace millrace::daemon
