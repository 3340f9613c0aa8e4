// Named processor models: what a guest's processor is, whatever the host's is, so that the same
// guest may run on another host. A model is a list of features and fixed numbers; nothing of it is
// taken away in silence, and nothing of the host's gets in but what a model says.
//
// The generic levels are those of the x86-64 psABI ("microarchitecture levels"), each with what a
// kernel under KVM wants besides: the x2APIC and its deadline timer, TSC_ADJUST, ARAT, RDTSCP and
// NX from the first on; RDRAND, SMEP, FSGSBASE, ERMS and XSAVEOPT from the third on; SMAP and
// XSAVEC in the fourth. They hand on no bits for the control of speculation, which differ by
// vendor: `host` and `epyc` do.
// Thread: any.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/result.hpp"

namespace millrace::vmm {

enum class CpuRegister { eax, ebx, ecx, edx };

// One bit of a CPUID leaf, by the name that Linux has for it.
struct CpuFeature {
  std::string_view name;
  std::uint32_t function = 0, index = 0;
  CpuRegister where = CpuRegister::eax;
  unsigned bit = 0;
};
// Every feature that a model has. KVM's own ones, of leaf 0x4000'0001, are called kvm_....
[[nodiscard]] std::span<const CpuFeature> cpu_features();
[[nodiscard]] const CpuFeature* find_cpu_feature(std::string_view name);

struct CpuModel {
  std::string_view name;
  // Each level has the features of the one before it.
  const CpuModel* before = nullptr;
  std::span<const std::string_view> features{};
  bool amd = false;            // of that vendor; else of the host's
  unsigned physical_bits = 0;  // of an address
  // Whether it has this feature, itself or from a level before.
  [[nodiscard]] bool has(std::string_view feature) const;
};

// All but `host`, the lowest first.
[[nodiscard]] std::span<const CpuModel* const> cpu_models();
// nullptr: `host`, which is what KVM supports here. Fails on a name that is none, with a list.
[[nodiscard]] base::Result<const CpuModel*> find_cpu_model(std::string_view name);

}  // namespace millrace::vmm
