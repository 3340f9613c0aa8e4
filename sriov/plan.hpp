// What is to be done to bring a physical function from what it is to what it shall be.
//
// Two plans, because functions that are yet to be made have no values to compare: one for the
// functions themselves, and, once they are there, one for their values. Equal values give no step:
// many drivers reset a function at each change of its values, even at one that changes nothing.
// Pure: nothing here touches the machine. Thread: any.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/result.hpp"
#include "sriov/functions.hpp"
#include "sriov/privileged.hpp"
#include "sriov/wish.hpp"

namespace millrace::sriov {

// A physical function as it is.
struct Current {
  PhysicalFunction function;
  std::optional<Link> link;  // nullopt: it has no network interface
};

struct SetUp {
  bool up;
};
struct Settle {};  // until the link is there again: creating functions takes it away for a while
struct SetAutoprobe {
  bool on;
};
struct SetCount {
  unsigned count;
};
struct SetValue {
  unsigned vf;
  Setting to;
  std::optional<Setting> from;  // nullopt: the driver did not tell
};
struct Bind {
  unsigned vf;
  PciAddress function;
  std::string to, from;  // drivers; empty: none
};
using Step = std::variant<SetUp, Settle, SetAutoprobe, SetCount, SetValue, Bind>;
using Plan = std::vector<Step>;

// "VF 1: MAC 52:54:00:00:00:01 (was 00:00:00:00:00:00)": for the log and for a refusal.
[[nodiscard]] std::string format(const Step& step);

// Whether this physical function can be so. Errors: what it cannot have, and addresses that would
// be there twice.
[[nodiscard]] base::Result<void> check_wish(const Current& now, const PfWish& wish);
// Whether a step takes that function away or changes it.
[[nodiscard]] bool touches(const Step& step, unsigned vf);

// The interface, autoprobe and how many functions there are.
[[nodiscard]] Plan plan_functions(const Current& now, const PfWish& wish);
// Values and drivers, of the functions that are there. `all`: equal values, too (after a reset that
// lost them in the hardware alone).
[[nodiscard]] Plan plan_values(const Current& now, const PfWish& wish, bool all);

// Who uses a function, and how he is stopped; empty: nobody. `except`: a process that does not
// count.
[[nodiscard]] std::string use_of(const VirtualFunction& function, const Holders& holders,
                                 pid_t except = 0);
// Whether nothing in the plan takes a function from somebody who uses it, or changes it below him:
// a process that has its group open, or the host's network. `self` may have the values of its own
// functions changed. Errors: who holds what, and what to do.
[[nodiscard]] base::Result<void> check_free(const Current& now, const Plan& plan,
                                            const Holders& holders, pid_t self);

// The wish that leads back to `before`.
[[nodiscard]] PfWish wish_of(const Current& before);
// What of the wish is not so; empty: nothing. A value that the driver does not tell is believed.
[[nodiscard]] std::string difference(const Current& now, const PfWish& wish);

}  // namespace millrace::sriov
