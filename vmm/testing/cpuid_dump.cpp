#include "vmm/testing/cpuid_dump.hpp"

#include <array>
#include <cstdio>
#include <cstring>

#include "base/check.hpp"
#include "vmm/kvm_cpu_model.hpp"
#include "vmm/kvm_cpuid.hpp"

namespace millrace::vmm::testing {

namespace {

kvm_cpuid_entry2 leaf(std::uint32_t function, std::uint32_t index,
                      const std::array<std::uint32_t, 4>& values) {
  kvm_cpuid_entry2 entry{};
  entry.function = function;
  entry.index = index;
  entry.eax = values[0];
  entry.ebx = values[1];
  entry.ecx = values[2];
  entry.edx = values[3];
  return entry;
}

constexpr std::uint32_t all = 0xffff'ffff;
constexpr std::uint32_t tsc_khz = 2'000'000;

std::string dump(const CpuModel& model, bool amd, unsigned count) {
  const auto made = model_cpuid(model, full_host(amd), true);
  CHECK(made.has_value());
  std::array<char, 120> text{};
  std::snprintf(text.data(), text.size(), "== CPUID of %s on %s, vCPU %u of %u\n",
                std::string{model.name}.c_str(), amd ? "AMD" : "Intel", count - 1, count);
  std::string lines = text.data();
  for (const auto& entry : guest_cpuid(*made, {count - 1, count, true, tsc_khz})) {
    std::snprintf(text.data(), text.size(), "%08x.%x %08x %08x %08x %08x\n", entry.function,
                  entry.index, entry.eax, entry.ebx, entry.ecx, entry.edx);
    lines += text.data();
  }
  return lines;
}

}  // namespace

std::vector<kvm_cpuid_entry2> full_host(bool amd) {
  const std::string name = amd ? "AuthenticAMD" : "GenuineIntel";
  std::array<std::uint32_t, 3> words{};
  std::memcpy(words.data(), name.data(), name.size());
  std::vector<kvm_cpuid_entry2> leaves{
      leaf(0, 0, {0x20, words[0], words[2], words[1]}),
      leaf(0x8000'0000, 0, {0x8000'0021, words[0], words[2], words[1]}),
      leaf(0x8000'0008, 0, {0x3030, all, all, all}),
      leaf(0x4000'0000, 0, {0x4000'0001, 0x4b4d'564b, 0x564b'4d56, 0x4d}),
      // The state of AVX, of MPX and of AVX-512, where each vendor has it.
      leaf(0xd, 0, {0x2ff, 0x240, 0xa88, 0}),
      leaf(0xd, 2, {0x100, 0x240, 0, 0}),
      leaf(0xd, 3, {0x40, 0x3c0, 0, 0}),
      leaf(0xd, 5, {0x40, amd ? 0x340u : 0x440u, 0, 0}),
      leaf(0xd, 6, {0x200, amd ? 0x380u : 0x480u, 0, 0}),
      leaf(0xd, 7, {0x400, amd ? 0x580u : 0x680u, 0, 0}),
      leaf(0xd, 9, {0x8, 0xa80, 0, 0}),
      leaf(0xd, 1, {all, all, all, all}),
  };
  // What no model may let through is there, too: a brand, performance counters, SGX, monitor.
  for (const std::uint32_t function :
       {1u,           2u,           4u,           5u,           6u,           7u,
        0xau,         0x12u,        0x14u,        0x15u,        0x16u,        0x4000'0001u,
        0x8000'0001u, 0x8000'0002u, 0x8000'0003u, 0x8000'0004u, 0x8000'0005u, 0x8000'0006u,
        0x8000'0007u, 0x8000'000au, 0x8000'0019u, 0x8000'001du, 0x8000'001eu, 0x8000'0021u}) {
    leaves.push_back(leaf(function, 0, {all, all, all, all}));
  }
  return leaves;
}

std::string dump_processors() {
  std::string text;
  for (const auto* const model : cpu_models()) {
    for (const bool amd : {false, true}) {
      if (model->amd && !amd) continue;
      for (const unsigned count : {1u, 4u}) text += dump(*model, amd, count);
    }
  }
  return text;
}

}  // namespace millrace::vmm::testing
