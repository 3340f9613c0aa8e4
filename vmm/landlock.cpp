#include "vmm/landlock.hpp"

#include <fcntl.h>
#include <linux/landlock.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>

#include "base/error.hpp"
#include "base/fd.hpp"

namespace millrace::vmm {

using base::fail_errno;
using base::Result;

namespace {

// As the newest kernel knows it; the system's header may be older.
struct RulesetAttributes {
  std::uint64_t files = 0;    // ABI 1
  std::uint64_t network = 0;  // ABI 4
  std::uint64_t scopes = 0;   // ABI 6
};

// Which rights came with which ABI: [0] with the first.
constexpr std::uint64_t first_rights = (1ull << 13) - 1, refer = 1ull << 13, truncate = 1ull << 14,
                        device_ioctl = 1ull << 15;
constexpr std::uint64_t bind_tcp = 1, connect_tcp = 2, abstract_sockets = 1, signals = 2;

RulesetAttributes all_rights(long abi) {
  RulesetAttributes all;
  all.files = first_rights;
  if (abi >= 2) all.files |= refer;
  if (abi >= 3) all.files |= truncate;
  if (abi >= 4) all.network = bind_tcp | connect_tcp;
  if (abi >= 5) all.files |= device_ioctl;
  if (abi >= 6) all.scopes = abstract_sockets | signals;
  return all;
}

std::size_t size_of(long abi) {
  if (abi >= 6) return sizeof(RulesetAttributes);
  return abi >= 4 ? offsetof(RulesetAttributes, scopes) : offsetof(RulesetAttributes, network);
}

Result<void> allow_removing(const base::Fd& ruleset, const std::string& folder) {
  const base::Fd parent{::open(folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)};
  if (!parent) return fail_errno("cannot open the folder " + folder);
  landlock_path_beneath_attr rule{};
  rule.allowed_access = LANDLOCK_ACCESS_FS_REMOVE_FILE;
  rule.parent_fd = parent.get();
  if (::syscall(SYS_landlock_add_rule, ruleset.get(), LANDLOCK_RULE_PATH_BENEATH, &rule, 0) == 0) {
    return {};
  }
  return fail_errno("Landlock refuses a rule for the folder " + folder);
}

}  // namespace

Result<bool> give_up_files(std::span<const std::string> folders) {
  const long abi =
      ::syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
  // EPERM: a container's own list of system calls does not know it.
  if (abi < 0 && (errno == ENOSYS || errno == EOPNOTSUPP || errno == EPERM)) return false;
  if (abi < 0) return fail_errno("Landlock does not say what it can");
  const auto all = all_rights(abi);
  const base::Fd ruleset{
      static_cast<int>(::syscall(SYS_landlock_create_ruleset, &all, size_of(abi), 0))};
  if (!ruleset) return fail_errno("Landlock makes no rules");
  for (const auto& folder : folders) {
    if (auto ok = allow_removing(ruleset, folder); !ok) return base::Unexpected{ok.error()};
  }
  if (::syscall(SYS_landlock_restrict_self, ruleset.get(), 0) != 0) {
    return fail_errno("Landlock does not take the file system away");
  }
  return true;
}

}  // namespace millrace::vmm
