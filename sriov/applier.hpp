// Applier: makes a physical function what it shall be, as one transaction: all of it, or nothing.
//
// What is not so already is done in order (see plan.hpp), read back and compared; where a step is
// refused or does not hold, everything is brought back to what it was, and the error says which
// function, which value and what the kernel said. A second apply() of the same wish does nothing.
// Thread: control. It waits for the link of a physical function that came up or got functions, no
// longer than `settle`; otherwise as long as the kernel's driver needs.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "sriov/plan.hpp"
#include "sriov/privileged.hpp"
#include "sriov/sysfs.hpp"
#include "sriov/wish.hpp"

namespace millrace::sriov {

class Applier {
 public:
  struct Settings {
    std::chrono::milliseconds settle{8000}, look_every{20};
  };
  // What was done, one line each, in order; none: everything was as wished.
  using Done = std::vector<std::string>;

  // What may be done to a function that another process holds.
  enum class Mode {
    change,   // nothing: the wish is new, and its values may be other ones than he was given
    restore,  // its values may be set: they were lost, and he is to have them again
    rewrite,  // the same, and values that are as wished are written, too, after the interface went
              // down and up: the NIC was reset and its driver did not notice
  };

  // Both must outlive it.
  Applier(const Sysfs& sysfs, Privileged& privileged, Settings settings)
      : sysfs_{sysfs}, privileged_{privileged}, settings_{settings} {}

  base::Result<Done> apply(const PfWish& wish, Mode mode = Mode::change);
  // The physical function as it is.
  [[nodiscard]] base::Result<Current> read(const PciAddress& address) const;

 private:
  struct Work {
    Mode mode = Mode::change;
    Done done;
    bool touched = false;  // something was tried, so there may be something to bring back
    bool no_link = false;  // it was waited for in vain, which is enough
    // Until then the link may be unsettled, whatever its carrier tells.
    std::chrono::steady_clock::time_point unsettled_until{};
  };
  base::Result<void> change(const Current& before, const PfWish& wish, Work& work);
  base::Result<void> carry_out(const Current& now, const Plan& plan, Work& work);
  base::Result<void> carry_out(const Current& now, const Step& step, Work& work);
  base::Result<std::vector<base::Fd>> claim(const Current& now, const Plan& plan,
                                            const Holders& holders);
  base::Result<void> set(const std::string& netdev, const SetValue& step, const Work& work);
  void settle(const std::string& netdev, Work& work) const;
  std::string go_back(const Current& before);

  const Sysfs& sysfs_;
  Privileged& privileged_;
  Settings settings_;
};

}  // namespace millrace::sriov
