#include "vmm/profile.hpp"

#include <array>
#include <string>

namespace millrace::vmm {

base::Result<const MachineProfile*> find_profile(std::string_view name) {
  static constexpr std::array profiles{&millrace_1};
  std::string known;
  for (const auto* const profile : profiles) {
    if (profile->name == name) return profile;
    known += (known.empty() ? "" : ", ") + std::string{profile->name};
  }
  return base::fail("there is no machine profile " + std::string{name} + ": this program has " +
                    known);
}

}  // namespace millrace::vmm
