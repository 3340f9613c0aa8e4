#include "vmm/kvm_cpuid.hpp"

#include <asm/kvm_para.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <bit>
#include <cerrno>

#include "base/error.hpp"
#include "vmm/kvm_list.hpp"

namespace millrace::vmm {

using base::fail_errno;
using base::Result;

namespace {

using Leaves = std::vector<kvm_cpuid_entry2>;

constexpr std::uint32_t bit(unsigned n) {
  return 1u << n;
}

// Leaf 1, ECX.
constexpr auto monitor = bit(3), vmx = bit(5), pdcm = bit(15), tsc_deadline = bit(24),
               hypervisor = bit(31);
constexpr auto htt = bit(28);     // leaf 1, EDX: more than one logical processor in the package
constexpr auto waitpkg = bit(5);  // leaf 7, ECX
constexpr auto svm = bit(2), topology_extension = bit(22);  // leaf 0x80000001, ECX
constexpr std::uint32_t topology_leaves[] = {0xb, 0x1f};
constexpr std::uint32_t kvm_signature = 0x4000'0000, kvm_features = 0x4000'0001,
                        kvm_timing = 0x4000'0010;
constexpr std::uint32_t apic_bus_khz = 1'000'000;  // KVM's local APICs count at 1 GHz

kvm_cpuid_entry2* find(Leaves& leaves, std::uint32_t function) {
  const auto found = std::ranges::find(leaves, function, &kvm_cpuid_entry2::function);
  return found == leaves.end() ? nullptr : &*found;
}

// Bits of an APIC id that number the cores of the package.
unsigned core_bits(unsigned count) {
  return static_cast<unsigned>(std::bit_width(count - 1));
}

void set_features(kvm_cpuid_entry2& leaf, const CpuidConfig& config) {
  leaf.ebx = (leaf.ebx & 0x0000'ffff) | config.index << 24;
  leaf.ebx |= std::min(1u << core_bits(config.count), 255u) << 16;
  leaf.ecx &= ~(vmx | pdcm | monitor | tsc_deadline);
  leaf.ecx |= hypervisor | (config.tsc_deadline ? tsc_deadline : 0);
  leaf.edx = config.count > 1 ? leaf.edx | htt : leaf.edx & ~htt;
}

// Intel's deterministic cache leaf and AMD's: caches of level 3 belong to the package, others to a
// core.
void set_cache(kvm_cpuid_entry2& leaf, const CpuidConfig& config) {
  if ((leaf.eax & 0x1f) == 0) return;  // no cache
  const auto level = leaf.eax >> 5 & 7;
  const auto last_core = (1u << core_bits(config.count)) - 1;
  leaf.eax &= 0x3fff;
  leaf.eax |= (level >= 3 ? last_core : 0) << 14;
  if (leaf.function == 4) leaf.eax |= std::min(last_core, 63u) << 26;
}

// Intel SDM volume 2, CPUID leaves 0xB and 0x1F: a level of threads (one a core), one of cores.
void add_topology(Leaves& leaves, std::uint32_t function, const CpuidConfig& config) {
  std::erase_if(leaves, [=](const auto& leaf) { return leaf.function == function; });
  for (unsigned level = 0; level < 3; ++level) {
    kvm_cpuid_entry2 leaf{};
    leaf.function = function;
    leaf.index = level;
    leaf.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    leaf.ecx = level;
    leaf.edx = config.index;
    if (level == 0) leaf.ebx = 1;
    if (level == 1) {
      leaf.eax = core_bits(config.count);
      leaf.ebx = config.count;
    }
    if (level < 2) leaf.ecx |= (level + 1) << 8;
    leaves.push_back(leaf);
  }
}

void set_amd_topology(kvm_cpuid_entry2& leaf, const CpuidConfig& config) {
  leaf.eax = config.index;  // the extended APIC id
  leaf.ebx = config.index & 0xff;
  leaf.ecx = 0;
}

void set_amd_size(kvm_cpuid_entry2& leaf, const CpuidConfig& config) {
  leaf.ecx = (leaf.ecx & ~0xf0ffu) | (config.count - 1) | core_bits(config.count) << 12;
}

void add_timing(Leaves& leaves, const CpuidConfig& config) {
  auto* const signature = find(leaves, kvm_signature);
  if (signature == nullptr || config.tsc_khz == 0) return;
  signature->eax = std::max(signature->eax, kvm_timing);
  std::erase_if(leaves, [](const auto& leaf) { return leaf.function == kvm_timing; });
  kvm_cpuid_entry2 leaf{};
  leaf.function = kvm_timing;
  leaf.eax = config.tsc_khz;
  leaf.ebx = apic_bus_khz;
  leaves.push_back(leaf);
}

}  // namespace

Result<Leaves> supported_cpuid(const KvmSystem& system) {
  for (std::uint32_t room = 128; room <= 4096; room *= 2) {
    CpuidList list{room};
    if (::ioctl(system.fd(), get_supported_cpuid, list.data()) == 0) return list.entries();
    if (errno != E2BIG) break;
  }
  return fail_errno("KVM does not say which CPUID leaves it supports");
}

Leaves guest_cpuid(Leaves leaves, const CpuidConfig& config) {
  for (auto& leaf : leaves) {
    switch (leaf.function) {
      case 0:
        leaf.eax = std::max(leaf.eax, topology_leaves[0]);
        break;
      case 1:
        set_features(leaf, config);
        break;
      case 4:
      case 0x8000'001d:
        set_cache(leaf, config);
        break;
      case 7:
        if (leaf.index == 0) leaf.ecx &= ~waitpkg;
        break;
      case kvm_features:
        leaf.eax &= ~bit(KVM_FEATURE_MSI_EXT_DEST_ID);  // for more than 255 vCPUs
        break;
      case 0x8000'0001:
        leaf.ecx &= ~svm;
        break;
      case 0x8000'0008:
        set_amd_size(leaf, config);
        break;
      case 0x8000'000a:
        leaf.eax = leaf.ebx = leaf.ecx = leaf.edx = 0;  // nested virtualization
        break;
      case 0x8000'001e:
        set_amd_topology(leaf, config);
        break;
      default:
        break;
    }
  }
  const auto* const first = find(leaves, 0);
  const auto highest = first == nullptr ? 0 : first->eax;
  for (const auto function : topology_leaves) {
    if (function <= highest) add_topology(leaves, function, config);
  }
  auto* const extended = find(leaves, 0x8000'0001);
  if (extended != nullptr && find(leaves, 0x8000'001e) == nullptr) {
    extended->ecx &= ~topology_extension;
  }
  add_timing(leaves, config);
  return leaves;
}

}  // namespace millrace::vmm
