#include "vmm/kvm_cpu_model.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "vmm/kvm_cpuid.hpp"
#include "vmm/testing/cpuid_dump.hpp"

namespace millrace::vmm {

namespace {

using Leaves = std::vector<kvm_cpuid_entry2>;

const kvm_cpuid_entry2* find(const Leaves& leaves, std::uint32_t function,
                             std::uint32_t index = 0) {
  for (const auto& leaf : leaves) {
    if (leaf.function == function && leaf.index == index) return &leaf;
  }
  return nullptr;
}

// Takes bits away from what a full host has.
void clear(Leaves& leaves, std::string_view name) {
  const auto* const feature = find_cpu_feature(name);
  ASSERT_NE(feature, nullptr);
  for (auto& leaf : leaves) {
    if (leaf.function != feature->function || leaf.index != feature->index) continue;
    std::uint32_t* const parts[] = {&leaf.eax, &leaf.ebx, &leaf.ecx, &leaf.edx};
    *parts[static_cast<unsigned>(feature->where)] &= ~(1u << feature->bit);
  }
}

const CpuModel& model(std::string_view name) {
  return **find_cpu_model(name);
}

std::string refusal(std::string_view name, const Leaves& host, bool tsc_deadline = true) {
  const auto made = model_cpuid(model(name), host, tsc_deadline);
  return made ? "none" : made.error().message;
}

TEST(CpuModel, EveryFeatureOfAModelIsInTheTableOnce) {
  for (const auto* const each : cpu_models()) {
    for (const auto& feature : each->features) {
      EXPECT_NE(find_cpu_feature(feature), nullptr) << feature;
      EXPECT_TRUE(each->before == nullptr || !each->before->has(feature)) << feature;
    }
  }
  for (const auto& feature : cpu_features()) {
    EXPECT_EQ(std::ranges::count_if(
                  cpu_features(),
                  [&](const CpuFeature& other) {
                    return other.name == feature.name ||
                           (other.function == feature.function && other.index == feature.index &&
                            other.where == feature.where && other.bit == feature.bit);
                  }),
              1)
        << feature.name;
    EXPECT_TRUE(std::ranges::any_of(cpu_models(), [&](const CpuModel* each) {
      return each->has(feature.name);
    })) << feature.name;
  }
}

TEST(CpuModel, HasTheLevelsOfThePsabi) {
  for (const auto* const name : {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}) {
    EXPECT_TRUE(model("x86-64-v2").has(name)) << name;
  }
  for (const auto* const name :
       {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}) {
    EXPECT_TRUE(model("x86-64-v3").has(name)) << name;
    EXPECT_FALSE(model("x86-64-v2").has(name)) << name;
  }
  for (const auto* const name : {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}) {
    EXPECT_TRUE(model("x86-64-v4").has(name)) << name;
    EXPECT_FALSE(model("x86-64-v3").has(name)) << name;
  }
}

TEST(CpuModel, UnknownNamesAreRefusedWithTheKnownOnes) {
  EXPECT_EQ(*find_cpu_model("host"), nullptr);
  const auto other = find_cpu_model("Skylake");
  ASSERT_FALSE(other);
  EXPECT_NE(other.error().message.find("host, x86-64-v2, x86-64-v3, x86-64-v4, epyc"),
            std::string::npos);
}

TEST(CpuModel, NothingOfAModelIsTakenAwayInSilence) {
  auto host = testing::full_host(true);
  EXPECT_EQ(refusal("x86-64-v4", host), "none");
  for (const auto& feature : cpu_features()) {
    if (feature.name == "tsc_deadline_timer") continue;
    auto poor = testing::full_host(true);
    clear(poor, feature.name);
    for (const auto* const each : cpu_models()) {
      const auto said = refusal(each->name, poor);
      EXPECT_EQ(said != "none", each->has(feature.name)) << each->name << ": " << said;
      EXPECT_EQ(said.find(feature.name) != std::string::npos, said != "none") << said;
    }
  }
  EXPECT_EQ(refusal("x86-64-v2", host, false),
            "--cpu x86-64-v2: this host has no tsc_deadline_timer: choose host");
  clear(host, "avx512f");
  EXPECT_EQ(refusal("x86-64-v4", host),
            "--cpu x86-64-v4: this host has no avx512f: choose x86-64-v3 or host");
  clear(host, "avx2");
  clear(host, "bmi2");
  EXPECT_EQ(refusal("x86-64-v3", host),
            "--cpu x86-64-v3: this host has no avx2, bmi2: choose x86-64-v2 or host");
}

TEST(CpuModel, NeedsAVendorThatItKnowsAndAddressesWideEnough) {
  EXPECT_NE(refusal("epyc", testing::full_host(false)).find("vendor"), std::string::npos);
  auto host = testing::full_host(false);
  for (auto& leaf : host) {
    if (leaf.function == 0x8000'0008) leaf.eax = 0x3027;  // 39 bits
  }
  EXPECT_EQ(refusal("x86-64-v3", host), "none");
  host = testing::full_host(true);
  for (auto& leaf : host) {
    if (leaf.function == 0x8000'0008) leaf.eax = 0x302b;
  }
  EXPECT_NE(refusal("epyc", host).find("addresses of 43 bits, the model of 48"), std::string::npos);
  for (auto& leaf : host) {
    if (leaf.function == 0) leaf.ebx = 0;
  }
  EXPECT_NE(refusal("x86-64-v2", host).find("vendor"), std::string::npos);
}

// A host has what no model says: none of it gets through.
TEST(CpuModel, NothingElseOfTheHostIsSeen) {
  for (const auto* const each : cpu_models()) {
    for (const bool amd : {false, true}) {
      if (each->amd && !amd) continue;
      const auto made = model_cpuid(*each, testing::full_host(amd), true);
      ASSERT_TRUE(made);
      for (const std::uint32_t function :
           {3u, 5u, 0xau, 0x12u, 0x14u, 0x15u, 0x16u, 0x8000'000au, 0x8000'0021u}) {
        EXPECT_EQ(find(*made, function), nullptr) << function;
      }
      std::uint32_t known = 1u << 31;  // the hypervisor
      for (const auto& feature : cpu_features()) {
        if (feature.function == 1 && feature.where == CpuRegister::ecx && each->has(feature.name)) {
          known |= 1u << feature.bit;
        }
      }
      EXPECT_EQ(find(*made, 1)->ecx, known) << each->name;
      std::string brand;
      for (std::uint32_t i = 2; i < 5; ++i) {
        const auto* const leaf = find(*made, 0x8000'0000 + i);
        for (const auto word : {leaf->eax, leaf->ebx, leaf->ecx, leaf->edx}) {
          for (unsigned byte = 0; byte < 4; ++byte) {
            brand += static_cast<char>(word >> (8 * byte) & 0xff);
          }
        }
      }
      EXPECT_STREQ(brand.c_str(), ("millrace " + std::string{each->name}).c_str());
      EXPECT_GE(find(*made, 0)->eax, each->has("xsave") ? 0xdu : 0xbu);
    }
  }
}

TEST(CpuModel, SavesTheStateThatItHasAndNoMore) {
  const auto host = testing::full_host(false);
  EXPECT_EQ(find(*model_cpuid(model("x86-64-v2"), host, true), 0xd), nullptr);
  const auto three = *model_cpuid(model("x86-64-v3"), host, true);
  EXPECT_EQ(find(three, 0xd)->eax, 7u);
  EXPECT_EQ(find(three, 0xd)->ecx, 0x340u);
  EXPECT_EQ(find(three, 0xd, 1)->eax, 1u);  // XSAVEOPT
  EXPECT_EQ(find(three, 0xd, 5), nullptr);
  const auto four = *model_cpuid(model("x86-64-v4"), host, true);
  EXPECT_EQ(find(four, 0xd)->eax, 0xe7u);
  EXPECT_EQ(find(four, 0xd)->ecx, 0xa80u);
  EXPECT_EQ(find(four, 0xd, 9), nullptr);
  const auto amd = *model_cpuid(model("x86-64-v4"), testing::full_host(true), true);
  EXPECT_EQ(find(amd, 0xd)->ecx, 0x980u);
}

// The clock is the host's: what KVM says of it is handed on, and no more.
TEST(CpuModel, TheClockIsInvariantWhereTheHostsIs) {
  auto host = testing::full_host(true);
  EXPECT_EQ(find(*model_cpuid(model("x86-64-v2"), host, true), 0x8000'0007)->edx, 1u << 8);
  for (auto& leaf : host) {
    if (leaf.function == 0x8000'0007) leaf.edx = 0;
  }
  EXPECT_EQ(find(*model_cpuid(model("x86-64-v2"), host, true), 0x8000'0007)->edx, 0u);
  // A guest of the model `host` sees it, too, and how fast it is.
  for (const bool invariant : {false, true}) {
    for (auto& leaf : host) {
      if (leaf.function == 0x8000'0007) leaf.edx = invariant ? 1u << 8 : 0;
    }
    const auto seen = guest_cpuid(host, {0, 2, true, 1'900'000});
    EXPECT_EQ(find(seen, 0x8000'0007)->edx >> 8 & 1, invariant ? 1u : 0u);
    EXPECT_EQ(find(seen, 0x4000'0010)->eax, 1'900'000u);
  }
}

// What KVM offers to help a guest is offered on, by `host` all of it but what needs 256 vCPUs.
TEST(CpuModel, TheHelpOfKvmIsHandedOn) {
  auto host = testing::full_host(true);
  const auto seen = guest_cpuid(host, {0, 2, true, 0});
  EXPECT_EQ(find(seen, 0x4000'0001)->eax, ~(1u << 15));
  const auto level = *model_cpuid(model("x86-64-v2"), host, true);
  // clock, asynchronous page faults, stolen time, end of interrupt, unhalt, TLB, IPI, polling,
  // yield
  EXPECT_EQ(find(level, 0x4000'0001)->eax, 0x0100'7afau);
}

}  // namespace

}  // namespace millrace::vmm
