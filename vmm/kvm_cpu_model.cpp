#include "vmm/kvm_cpu_model.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.hpp"
#include "vmm/kvm_cpuid.hpp"

namespace millrace::vmm {

using base::fail;
using base::Result;

namespace {

using Leaves = std::vector<kvm_cpuid_entry2>;

constexpr std::uint32_t extended_features = 0x8000'0001, address_sizes = 0x8000'0008,
                        core_topology = 0x8000'001e, kvm_signature = 0x4000'0000,
                        kvm_features = 0x4000'0001;
constexpr std::uint32_t hypervisor = 1u << 31;    // leaf 1, ECX
constexpr std::uint32_t invariant_tsc = 1u << 8;  // leaf 0x80000007, EDX
constexpr std::uint32_t mirrored = 0x0183'f3ff;   // of leaf 1, EDX: in AMD's 0x80000001 as well
constexpr std::uint32_t line_bytes = 64, linear_bits = 48;
constexpr unsigned usual_bits = 36;  // of an address, where a processor says nothing

enum class Vendor { intel, amd, other };

const kvm_cpuid_entry2* find(const Leaves& leaves, std::uint32_t function,
                             std::uint32_t index = 0) {
  for (const auto& leaf : leaves) {
    if (leaf.function == function && leaf.index == index) return &leaf;
  }
  return nullptr;
}

std::uint32_t& part(kvm_cpuid_entry2& leaf, CpuRegister where) {
  switch (where) {
    case CpuRegister::eax:
      return leaf.eax;
    case CpuRegister::ebx:
      return leaf.ebx;
    case CpuRegister::ecx:
      return leaf.ecx;
    case CpuRegister::edx:
      break;
  }
  return leaf.edx;
}

bool supports(const Leaves& leaves, const CpuFeature& feature) {
  const auto* const found = find(leaves, feature.function, feature.index);
  if (found == nullptr) return false;
  auto leaf = *found;
  return (part(leaf, feature.where) >> feature.bit & 1) != 0;
}

Vendor vendor_of(const Leaves& leaves) {
  const auto* const leaf = find(leaves, 0);
  if (leaf == nullptr) return Vendor::other;
  const std::array<std::uint32_t, 3> words{leaf->ebx, leaf->edx, leaf->ecx};
  std::array<char, 12> text{};
  std::memcpy(text.data(), words.data(), text.size());
  const std::string_view name{text.data(), text.size()};
  if (name == "GenuineIntel") return Vendor::intel;
  return name == "AuthenticAMD" ? Vendor::amd : Vendor::other;
}

kvm_cpuid_entry2& add(Leaves& leaves, std::uint32_t function, std::uint32_t index = 0,
                      bool indexed = false) {
  auto& leaf = leaves.emplace_back();
  leaf.function = function;
  leaf.index = index;
  leaf.flags = indexed ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0;
  return leaf;
}

void add_name(Leaves& leaves, std::uint32_t function, Vendor vendor, std::uint32_t highest) {
  const std::string_view name = vendor == Vendor::amd ? "AuthenticAMD" : "GenuineIntel";
  auto& leaf = add(leaves, function);
  leaf.eax = highest;
  std::memcpy(&leaf.ebx, name.data(), 4);
  std::memcpy(&leaf.edx, name.data() + 4, 4);
  std::memcpy(&leaf.ecx, name.data() + 8, 4);
}

// Family, model and stepping: the first EPYC; or the first of Intel's with that level.
std::uint32_t signature(const CpuModel& model, Vendor vendor) {
  if (vendor == Vendor::amd) return 0x0080'0f12;
  if (model.has("avx512f")) return 0x0005'0654;
  return model.has("avx2") ? 0x0003'06c4 : 0x0002'06c1;
}

// Intel's leaf 4 and AMD's 0x8000001D have the same form. 32 KiB of instructions and of data, 512
// KiB and 8 MiB of both; guest_cpuid() adds who shares them.
void add_caches(Leaves& leaves, std::uint32_t function) {
  struct Cache {
    unsigned type, level, ways, sets;
  };
  constexpr std::array caches{Cache{1, 1, 8, 64}, Cache{2, 1, 8, 64}, Cache{3, 2, 8, 1024},
                              Cache{3, 3, 16, 8192}, Cache{0, 0, 0, 0}};
  constexpr std::uint32_t self_initializing = 1 << 8;
  for (std::uint32_t i = 0; i < caches.size(); ++i) {
    const auto& cache = caches[i];
    auto& leaf = add(leaves, function, i, true);
    if (cache.type == 0) continue;
    leaf.eax = cache.type | cache.level << 5 | self_initializing;
    leaf.ebx = (cache.ways - 1) << 22 | (line_bytes - 1);
    leaf.ecx = cache.sets - 1;
  }
}

// AMD's older leaves, the same caches: sizes in KiB, ways as they are or by AMD's code for them.
void add_amd_caches(Leaves& leaves) {
  auto& first = add(leaves, 0x8000'0005);
  first.ecx = first.edx = 32u << 24 | 8u << 16 | 1u << 8 | line_bytes;
  auto& other = add(leaves, 0x8000'0006);
  constexpr std::uint32_t ways_8 = 6, ways_16 = 8;
  other.ecx = 512u << 16 | ways_8 << 12 | 1u << 8 | line_bytes;
  other.edx = (8192u / 512) << 18 | ways_16 << 12 | 1u << 8 | line_bytes;  // in units of 512 KiB
}

// State components of XCR0: x87 and SSE have their place in the legacy area, the others where this
// host's processor puts them.
Result<void> add_xsave(Leaves& leaves, const CpuModel& model, const Leaves& supported) {
  if (!model.has("xsave")) return {};
  std::uint32_t components = 3;
  if (model.has("avx")) components |= 1 << 2;
  if (model.has("avx512f")) components |= 7 << 5;
  const auto* const offered = find(supported, 0xd);
  if (offered == nullptr || (offered->eax & components) != components) {
    return fail("this host's KVM saves less of a processor's state than the model has");
  }
  constexpr std::uint32_t legacy_bytes = 512 + 64;
  std::uint32_t size = legacy_bytes;
  Leaves parts;
  for (std::uint32_t i = 2; i < 32; ++i) {
    if ((components >> i & 1) == 0) continue;
    const auto* const from = find(supported, 0xd, i);
    if (from == nullptr) return fail("KVM does not say where a processor's state is saved");
    auto& leaf = add(parts, 0xd, i, true);
    leaf.eax = from->eax;
    leaf.ebx = from->ebx;
    leaf.ecx = from->ecx & 2;  // aligned to 64 bytes in the compacted form
    size = std::max(size, leaf.ebx + leaf.eax);
  }
  auto& first = add(leaves, 0xd, 0, true);
  first.eax = components;
  first.ebx = legacy_bytes;  // of what is enabled, which KVM keeps true
  first.ecx = size;
  add(leaves, 0xd, 1, true);
  leaves.insert(leaves.end(), parts.begin(), parts.end());
  return {};
}

void add_brand(Leaves& leaves, const CpuModel& model) {
  std::array<char, 48> text{};
  const auto brand = "millrace " + std::string{model.name};
  CHECK(brand.size() < text.size());
  std::memcpy(text.data(), brand.data(), brand.size());
  for (std::uint32_t i = 0; i < 3; ++i) {
    auto& leaf = add(leaves, 0x8000'0002 + i);
    const auto* const from = text.data() + std::size_t{16} * i;
    std::memcpy(&leaf.eax, from, 4);
    std::memcpy(&leaf.ebx, from + 4, 4);
    std::memcpy(&leaf.ecx, from + 8, 4);
    std::memcpy(&leaf.edx, from + 12, 4);
  }
}

void set_features(Leaves& leaves, const CpuModel& model) {
  for (const auto& feature : cpu_features()) {
    if (!model.has(feature.name)) continue;
    const auto found = std::ranges::find_if(leaves, [&](const auto& leaf) {
      return leaf.function == feature.function && leaf.index == feature.index;
    });
    CHECK(found != leaves.end());
    part(*found, feature.where) |= 1u << feature.bit;
  }
}

Result<Leaves> make_leaves(const CpuModel& model, Vendor vendor, const Leaves& supported) {
  const bool amd = vendor == Vendor::amd, topology = model.has("topoext");
  Leaves leaves;
  add_name(leaves, 0, vendor, model.has("xsave") ? 0xd : 0xb);
  auto& first = add(leaves, 1);
  first.eax = signature(model, vendor);
  first.ebx = line_bytes / 8 << 8;  // what CLFLUSH flushes
  first.ecx = hypervisor;
  if (!amd) {
    auto& caches = add(leaves, 2);
    caches.eax = 0xff01;  // all is in leaf 4
    add_caches(leaves, 4);
  }
  add(leaves, 6);
  add(leaves, 7, 0, true);
  if (auto ok = add_xsave(leaves, model, supported); !ok) return base::Unexpected{ok.error()};
  const auto* const signed_by = find(supported, kvm_signature);
  if (signed_by != nullptr) {
    leaves.push_back(*signed_by);
    leaves.back().eax = kvm_features;
    add(leaves, kvm_features);
  }
  add_name(leaves, 0x8000'0000, vendor, amd && topology ? core_topology : address_sizes);
  add(leaves, extended_features).eax = amd ? signature(model, vendor) : 0;
  add_brand(leaves, model);
  if (amd) {
    add_amd_caches(leaves);
  } else {
    add(leaves, 0x8000'0006).ecx = 512u << 16 | 6u << 12 | line_bytes;
  }
  const auto* const clock = find(supported, 0x8000'0007);
  add(leaves, 0x8000'0007).edx = clock == nullptr ? 0 : clock->edx & invariant_tsc;
  add(leaves, address_sizes).eax = linear_bits << 8 | model.physical_bits;
  if (amd && topology) {
    add_caches(leaves, 0x8000'001d);
    add(leaves, core_topology);
  }
  set_features(leaves, model);
  if (amd) {
    const auto low = find(leaves, 1)->edx & mirrored;
    std::ranges::find(leaves, extended_features, &kvm_cpuid_entry2::function)->edx |= low;
  }
  return leaves;
}

std::string choices(const CpuModel& model, const Leaves& supported, bool tsc_deadline) {
  std::string text;
  for (const auto* const other : cpu_models()) {
    if (other == &model || other->amd) continue;
    if (missing_features(*other, supported, tsc_deadline).empty()) {
      text = std::string{other->name} + " or ";  // the highest is the last
    }
  }
  return ": choose " + text + "host";
}

}  // namespace

std::vector<std::string> missing_features(const CpuModel& model, const Leaves& supported,
                                          bool tsc_deadline) {
  std::vector<std::string> missing;
  for (const auto& feature : cpu_features()) {
    if (!model.has(feature.name)) continue;
    const bool there =
        feature.name == "tsc_deadline_timer" ? tsc_deadline : supports(supported, feature);
    if (!there) missing.emplace_back(feature.name);
  }
  return missing;
}

Result<Leaves> model_cpuid(const CpuModel& model, const Leaves& supported, bool tsc_deadline) {
  const auto name = "--cpu " + std::string{model.name} + ": ";
  const auto instead = [&] { return choices(model, supported, tsc_deadline); };
  const auto missing = missing_features(model, supported, tsc_deadline);
  if (!missing.empty()) {
    std::string list;
    for (const auto& feature : missing) list += (list.empty() ? "" : ", ") + feature;
    return fail(name + "this host has no " + list + instead());
  }
  const auto host = vendor_of(supported);
  if (host == Vendor::other || (model.amd && host != Vendor::amd)) {
    return fail(name + "not on a processor of this host's vendor: choose host");
  }
  const auto* const sizes = find(supported, address_sizes);
  const auto bits = sizes == nullptr ? usual_bits : sizes->eax & 0xff;
  if (bits < model.physical_bits) {
    return fail(name + "this host's processor has addresses of " + std::to_string(bits) +
                " bits, the model of " + std::to_string(model.physical_bits) + instead());
  }
  auto leaves = make_leaves(model, host, supported);
  if (!leaves) return fail(name + leaves.error().message + instead());
  return leaves;
}

Result<Leaves> processor_cpuid(const KvmSystem& system, const CpuModel* model) {
  auto supported = supported_cpuid(system);
  if (!supported || model == nullptr) return supported;
  return model_cpuid(*model, *supported, system.extension(KVM_CAP_TSC_DEADLINE_TIMER) > 0);
}

}  // namespace millrace::vmm
