// KvmSystem: /dev/kvm, opened and probed: what it lacks is one line that says so.
//
// Thread: any, after open().
#pragma once

#include <string_view>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace millrace::vmm {

class KvmSystem {
 public:
  // Fails with the reason why no guest can run here, and what to do.
  static base::Result<KvmSystem> open(const char* path = "/dev/kvm");

  [[nodiscard]] int fd() const { return fd_.get(); }
  // Bytes of a vCPU's shared page(s), for mmap(2).
  [[nodiscard]] std::size_t run_size() const { return run_size_; }
  [[nodiscard]] unsigned vcpus_max() const { return vcpus_max_; }
  // Ok where the processor runs guest code by itself. Where it does not, KVM interprets integer
  // instructions one by one: a small test guest runs, a stock kernel does not.
  [[nodiscard]] base::Result<void> can_run_stock_kernels() const;
  // The value of KVM_CHECK_EXTENSION; 0: not there.
  [[nodiscard]] int extension(unsigned capability) const;

 private:
  KvmSystem() = default;

  base::Fd fd_;
  std::size_t run_size_ = 0;
  unsigned vcpus_max_ = 0;
  bool hardware_ = false;
};

// Whether /proc/cpuinfo's text has the flag vmx or svm.
[[nodiscard]] bool has_virtualization_flag(std::string_view cpuinfo);

}  // namespace millrace::vmm
