#include "vmm/cpu_model.hpp"

#include <algorithm>
#include <array>

namespace millrace::vmm {

using base::fail;
using base::Result;
using std::string_view_literals::operator""sv;

namespace {

using enum CpuRegister;

constexpr std::uint32_t kvm = 0x4000'0001, extended = 0x8000'0001;

// Intel SDM volume 2 "CPUID", AMD APM volume 3 appendix E; KVM's: cpuid.rst of Linux.
constexpr std::array all_features{
    CpuFeature{"pni", 1, 0, ecx, 0},
    CpuFeature{"pclmulqdq", 1, 0, ecx, 1},
    CpuFeature{"ssse3", 1, 0, ecx, 9},
    CpuFeature{"fma", 1, 0, ecx, 12},
    CpuFeature{"cx16", 1, 0, ecx, 13},
    CpuFeature{"sse4_1", 1, 0, ecx, 19},
    CpuFeature{"sse4_2", 1, 0, ecx, 20},
    CpuFeature{"x2apic", 1, 0, ecx, 21},
    CpuFeature{"movbe", 1, 0, ecx, 22},
    CpuFeature{"popcnt", 1, 0, ecx, 23},
    CpuFeature{"tsc_deadline_timer", 1, 0, ecx, 24},
    CpuFeature{"aes", 1, 0, ecx, 25},
    CpuFeature{"xsave", 1, 0, ecx, 26},
    CpuFeature{"avx", 1, 0, ecx, 28},
    CpuFeature{"f16c", 1, 0, ecx, 29},
    CpuFeature{"rdrand", 1, 0, ecx, 30},
    CpuFeature{"fpu", 1, 0, edx, 0},
    CpuFeature{"vme", 1, 0, edx, 1},
    CpuFeature{"de", 1, 0, edx, 2},
    CpuFeature{"pse", 1, 0, edx, 3},
    CpuFeature{"tsc", 1, 0, edx, 4},
    CpuFeature{"msr", 1, 0, edx, 5},
    CpuFeature{"pae", 1, 0, edx, 6},
    CpuFeature{"mce", 1, 0, edx, 7},
    CpuFeature{"cx8", 1, 0, edx, 8},
    CpuFeature{"apic", 1, 0, edx, 9},
    CpuFeature{"sep", 1, 0, edx, 11},
    CpuFeature{"mtrr", 1, 0, edx, 12},
    CpuFeature{"pge", 1, 0, edx, 13},
    CpuFeature{"mca", 1, 0, edx, 14},
    CpuFeature{"cmov", 1, 0, edx, 15},
    CpuFeature{"pat", 1, 0, edx, 16},
    CpuFeature{"pse36", 1, 0, edx, 17},
    CpuFeature{"clflush", 1, 0, edx, 19},
    CpuFeature{"mmx", 1, 0, edx, 23},
    CpuFeature{"fxsr", 1, 0, edx, 24},
    CpuFeature{"sse", 1, 0, edx, 25},
    CpuFeature{"sse2", 1, 0, edx, 26},
    CpuFeature{"arat", 6, 0, eax, 2},
    CpuFeature{"fsgsbase", 7, 0, ebx, 0},
    CpuFeature{"tsc_adjust", 7, 0, ebx, 1},
    CpuFeature{"bmi1", 7, 0, ebx, 3},
    CpuFeature{"avx2", 7, 0, ebx, 5},
    CpuFeature{"smep", 7, 0, ebx, 7},
    CpuFeature{"bmi2", 7, 0, ebx, 8},
    CpuFeature{"erms", 7, 0, ebx, 9},
    CpuFeature{"avx512f", 7, 0, ebx, 16},
    CpuFeature{"avx512dq", 7, 0, ebx, 17},
    CpuFeature{"rdseed", 7, 0, ebx, 18},
    CpuFeature{"adx", 7, 0, ebx, 19},
    CpuFeature{"smap", 7, 0, ebx, 20},
    CpuFeature{"clflushopt", 7, 0, ebx, 23},
    CpuFeature{"avx512cd", 7, 0, ebx, 28},
    CpuFeature{"sha_ni", 7, 0, ebx, 29},
    CpuFeature{"avx512bw", 7, 0, ebx, 30},
    CpuFeature{"avx512vl", 7, 0, ebx, 31},
    CpuFeature{"xsaveopt", 0xd, 1, eax, 0},
    CpuFeature{"xsavec", 0xd, 1, eax, 1},
    CpuFeature{"xgetbv1", 0xd, 1, eax, 2},
    CpuFeature{"lahf_lm", extended, 0, ecx, 0},
    CpuFeature{"cr8_legacy", extended, 0, ecx, 4},
    CpuFeature{"abm", extended, 0, ecx, 5},
    CpuFeature{"sse4a", extended, 0, ecx, 6},
    CpuFeature{"misalignsse", extended, 0, ecx, 7},
    CpuFeature{"3dnowprefetch", extended, 0, ecx, 8},
    CpuFeature{"topoext", extended, 0, ecx, 22},
    CpuFeature{"syscall", extended, 0, edx, 11},
    CpuFeature{"nx", extended, 0, edx, 20},
    CpuFeature{"mmxext", extended, 0, edx, 22},
    CpuFeature{"fxsr_opt", extended, 0, edx, 25},
    CpuFeature{"pdpe1gb", extended, 0, edx, 26},
    CpuFeature{"rdtscp", extended, 0, edx, 27},
    CpuFeature{"lm", extended, 0, edx, 29},
    CpuFeature{"ibpb", 0x8000'0008, 0, ebx, 12},
    CpuFeature{"kvm_nopiodelay", kvm, 0, eax, 1},
    CpuFeature{"kvm_clock", kvm, 0, eax, 3},
    CpuFeature{"kvm_asyncpf", kvm, 0, eax, 4},
    CpuFeature{"kvm_steal_time", kvm, 0, eax, 5},
    CpuFeature{"kvm_pv_eoi", kvm, 0, eax, 6},
    CpuFeature{"kvm_pv_unhalt", kvm, 0, eax, 7},
    CpuFeature{"kvm_pv_tlb_flush", kvm, 0, eax, 9},
    CpuFeature{"kvm_pv_ipi", kvm, 0, eax, 11},
    CpuFeature{"kvm_poll_control", kvm, 0, eax, 12},
    CpuFeature{"kvm_pv_sched_yield", kvm, 0, eax, 13},
    CpuFeature{"kvm_asyncpf_int", kvm, 0, eax, 14},
    CpuFeature{"kvm_clock_stable", kvm, 0, eax, 24},
};

constexpr std::array v2_features{
    "fpu"sv,
    "de"sv,
    "pse"sv,
    "tsc"sv,
    "msr"sv,
    "pae"sv,
    "mce"sv,
    "cx8"sv,
    "apic"sv,
    "sep"sv,
    "mtrr"sv,
    "pge"sv,
    "mca"sv,
    "cmov"sv,
    "pat"sv,
    "pse36"sv,
    "clflush"sv,
    "mmx"sv,
    "fxsr"sv,
    "sse"sv,
    "sse2"sv,
    "syscall"sv,
    "nx"sv,
    "rdtscp"sv,
    "lm"sv,
    "pni"sv,
    "ssse3"sv,
    "cx16"sv,
    "sse4_1"sv,
    "sse4_2"sv,
    "popcnt"sv,
    "lahf_lm"sv,
    "x2apic"sv,
    "tsc_deadline_timer"sv,
    "tsc_adjust"sv,
    "arat"sv,
    "kvm_clock"sv,
    "kvm_nopiodelay"sv,
    "kvm_asyncpf"sv,
    "kvm_asyncpf_int"sv,
    "kvm_pv_eoi"sv,
    "kvm_pv_unhalt"sv,
    "kvm_pv_ipi"sv,
    "kvm_pv_tlb_flush"sv,
    "kvm_clock_stable"sv,
    "kvm_steal_time"sv,
    "kvm_poll_control"sv,
    "kvm_pv_sched_yield"sv,
};
constexpr std::array v3_features{
    "avx"sv,   "avx2"sv,  "bmi1"sv,   "bmi2"sv, "f16c"sv,     "fma"sv,  "abm"sv,
    "movbe"sv, "xsave"sv, "rdrand"sv, "smep"sv, "fsgsbase"sv, "erms"sv, "xsaveopt"sv,
};
constexpr std::array v4_features{
    "avx512f"sv, "avx512bw"sv, "avx512cd"sv, "avx512dq"sv, "avx512vl"sv, "smap"sv, "xsavec"sv,
};
// The first generation, with the microcode's IBPB.
constexpr std::array epyc_features{
    "vme"sv,         "pclmulqdq"sv,  "aes"sv,     "movbe"sv,         "xsave"sv,  "avx"sv,
    "f16c"sv,        "fma"sv,        "rdrand"sv,  "fsgsbase"sv,      "bmi1"sv,   "avx2"sv,
    "smep"sv,        "bmi2"sv,       "rdseed"sv,  "adx"sv,           "smap"sv,   "clflushopt"sv,
    "sha_ni"sv,      "xsaveopt"sv,   "xsavec"sv,  "xgetbv1"sv,       "abm"sv,    "sse4a"sv,
    "misalignsse"sv, "cr8_legacy"sv, "topoext"sv, "3dnowprefetch"sv, "mmxext"sv, "fxsr_opt"sv,
    "pdpe1gb"sv,     "ibpb"sv,
};

// 39 bits: what the smallest processors with virtualization have, and an IOMMU under another
// hypervisor.
constexpr unsigned generic_bits = 39, epyc_bits = 48;
constexpr CpuModel v2{"x86-64-v2", nullptr, v2_features, false, generic_bits};
constexpr CpuModel v3{"x86-64-v3", &v2, v3_features, false, generic_bits};
constexpr CpuModel v4{"x86-64-v4", &v3, v4_features, false, generic_bits};
constexpr CpuModel epyc{"epyc", &v2, epyc_features, true, epyc_bits};
constexpr std::array models{&v2, &v3, &v4, &epyc};

}  // namespace

std::span<const CpuFeature> cpu_features() {
  return all_features;
}

const CpuFeature* find_cpu_feature(std::string_view name) {
  const auto found = std::ranges::find(all_features, name, &CpuFeature::name);
  return found == all_features.end() ? nullptr : &*found;
}

bool CpuModel::has(std::string_view feature) const {
  return std::ranges::find(features, feature) != features.end() ||
         (before != nullptr && before->has(feature));
}

std::span<const CpuModel* const> cpu_models() {
  return models;
}

Result<const CpuModel*> find_cpu_model(std::string_view name) {
  if (name == "host") return nullptr;
  std::string known = "host";
  for (const auto* const model : models) {
    if (model->name == name) return model;
    known += ", " + std::string{model->name};
  }
  return fail("there is no processor model " + std::string{name} + ": choose one of " + known);
}

}  // namespace millrace::vmm
