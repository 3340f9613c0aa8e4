#include "vmm/seccomp.hpp"

#include <linux/audit.h>
#include <linux/seccomp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>

#include "base/check.hpp"
#include "base/error.hpp"

namespace millrace::vmm {

namespace {

constexpr std::uint32_t x32_calls = 0x4000'0000;

sock_filter statement(unsigned code, std::uint32_t value) {
  return {static_cast<std::uint16_t>(code), 0, 0, value};
}

// Skips as many instructions as told, by the outcome.
sock_filter jump(unsigned comparison, std::uint32_t value, std::size_t if_true,
                 std::size_t if_false) {
  CHECK(if_true < 256 && if_false < 256);
  return {static_cast<std::uint16_t>(BPF_JMP | comparison | BPF_K),
          static_cast<std::uint8_t>(if_true), static_cast<std::uint8_t>(if_false), value};
}

sock_filter load(std::size_t offset) {
  return statement(BPF_LD | BPF_W | BPF_ABS, static_cast<std::uint32_t>(offset));
}

sock_filter verdict(int refusal) {
  const auto errno_bits = static_cast<std::uint32_t>(refusal) & SECCOMP_RET_DATA;
  return statement(BPF_RET | BPF_K, refusal == 0 ? std::uint32_t{SECCOMP_RET_ALLOW}
                                                 : SECCOMP_RET_ERRNO | errno_bits);
}

const sock_filter kill = statement(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);

// What is done once the call is known to be the rule's. Always ends the filter.
std::vector<sock_filter> body_of(const CallRule& rule) {
  if (rule.choices.empty()) return {verdict(rule.refusal)};
  const auto argument = load(offsetof(seccomp_data, args) + rule.argument * sizeof(std::uint64_t));
  std::vector<sock_filter> body;
  for (const auto& choice : rule.choices) {
    body.push_back(argument);
    body.push_back(statement(BPF_ALU | BPF_AND | BPF_K, choice.mask));
    body.push_back(jump(BPF_JEQ, choice.value, 0, 1));
    body.push_back(verdict(rule.refusal));
  }
  body.push_back(kill);
  return body;
}

}  // namespace

std::vector<sock_filter> compile(std::span<const CallRule> rules) {
  std::vector<sock_filter> filter{
      load(offsetof(seccomp_data, arch)), jump(BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0), kill,
      load(offsetof(seccomp_data, nr)),   jump(BPF_JGE, x32_calls, 0, 1),         kill};
  for (const auto& rule : rules) {
    const auto body = body_of(rule);
    filter.push_back(jump(BPF_JEQ, static_cast<std::uint32_t>(rule.call), 0, body.size()));
    filter.insert(filter.end(), body.begin(), body.end());
  }
  filter.push_back(kill);
  return filter;
}

base::Result<void> apply(std::span<const sock_filter> filter) {
  CHECK(!filter.empty() && filter.size() <= BPF_MAXINSNS);
  const sock_fprog program{static_cast<unsigned short>(filter.size()),
                           const_cast<sock_filter*>(filter.data())};
  if (::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0) return {};
  return base::fail_errno("the kernel takes no filter of system calls (seccomp)");
}

}  // namespace millrace::vmm
