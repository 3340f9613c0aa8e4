// KvmList: the lists that KVM takes and gives: a count, a word, entries.
//
// <linux/kvm.h> declares them with flexible arrays that a C++ compiler puts four bytes further back
// than a C compiler does, which changes the layout and the request numbers; so both are made here.
// Thread: any.
#pragma once

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "base/check.hpp"

namespace millrace::vmm {

template <class Entry>
class KvmList {
 public:
  struct Header {
    std::uint32_t count, word;
  };
  static_assert(sizeof(Header) == 8 && sizeof(Entry) % 8 == 0 && alignof(Entry) <= 8);

  explicit KvmList(std::size_t room) : words_(1 + room * sizeof(Entry) / 8), room_{room} {
    set_count(room);
  }
  explicit KvmList(std::span<const Entry> entries) : KvmList{entries.size()} {
    if (!entries.empty()) std::memcpy(&words_[1], entries.data(), entries.size_bytes());
  }

  // For ioctl(2).
  [[nodiscard]] void* data() { return words_.data(); }
  // What KVM left in it.
  [[nodiscard]] std::vector<Entry> entries() const {
    Header header{};
    std::memcpy(&header, words_.data(), sizeof header);
    CHECK(header.count <= room_);
    std::vector<Entry> entries(header.count);
    if (header.count != 0) std::memcpy(entries.data(), &words_[1], header.count * sizeof(Entry));
    return entries;
  }

 private:
  void set_count(std::size_t count) {
    const Header header{static_cast<std::uint32_t>(count), 0};
    std::memcpy(words_.data(), &header, sizeof header);
  }

  std::vector<std::uint64_t> words_;
  std::size_t room_;
};

using CpuidList = KvmList<kvm_cpuid_entry2>;
using MsrList = KvmList<kvm_msr_entry>;
using RouteList = KvmList<kvm_irq_routing_entry>;

// As KVM_GET_SUPPORTED_CPUID and so on, with the size that KVM itself means.
inline constexpr unsigned long get_supported_cpuid = _IOWR(KVMIO, 0x05, CpuidList::Header),
                               set_cpuid2 = _IOW(KVMIO, 0x90, CpuidList::Header),
                               get_msrs = _IOWR(KVMIO, 0x88, MsrList::Header),
                               set_msrs = _IOW(KVMIO, 0x89, MsrList::Header),
                               set_gsi_routing = _IOW(KVMIO, 0x6a, RouteList::Header);

}  // namespace millrace::vmm
