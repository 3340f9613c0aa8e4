#include "vmm/kvm_system.hpp"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include <array>
#include <cerrno>
#include <fstream>
#include <string>
#include <utility>

#include "base/error.hpp"

namespace millrace::vmm {

using base::fail;
using base::fail_errno;
using base::Result;

namespace {

struct Need {
  unsigned capability;
  const char* name;
};
constexpr std::array needs{
    Need{KVM_CAP_USER_MEMORY, "user memory"},
    Need{KVM_CAP_SPLIT_IRQCHIP, "a split irqchip"},
    Need{KVM_CAP_IRQFD, "irqfd"},
    Need{KVM_CAP_IOEVENTFD, "ioeventfd"},
    Need{KVM_CAP_IRQ_ROUTING, "irq routing"},
    Need{KVM_CAP_SIGNAL_MSI, "message interrupts"},
    Need{KVM_CAP_EXT_CPUID, "extended CPUID"},
    Need{KVM_CAP_IMMEDIATE_EXIT, "immediate exit"},
    Need{KVM_CAP_IOEVENTFD_ANY_LENGTH, "ioeventfd of any length"},
};

base::Unexpected<base::Error> cannot_open(const std::string& path) {
  switch (errno) {
    case ENOENT:
      return fail(path +
                  " does not exist: load the module kvm_intel or kvm_amd, and see that the "
                  "firmware leaves virtualization on");
    case EACCES:
    case EPERM:
      return fail("no permission to open " + path +
                  ": add this user to the group that owns it "
                  "(usually kvm)");
    default:
      return fail_errno("cannot open " + path);
  }
}

}  // namespace

bool has_virtualization_flag(std::string_view cpuinfo) {
  while (!cpuinfo.empty()) {
    const auto line = cpuinfo.substr(0, cpuinfo.find('\n'));
    cpuinfo.remove_prefix(std::min(line.size() + 1, cpuinfo.size()));
    if (!line.starts_with("flags")) continue;
    const auto flags = std::string{line} + " ";
    return flags.find(" vmx ") != std::string::npos || flags.find(" svm ") != std::string::npos;
  }
  return false;
}

Result<KvmSystem> KvmSystem::open(const char* path) {
  KvmSystem system;
  system.fd_ = base::Fd{::open(path, O_RDWR | O_CLOEXEC)};
  if (!system.fd_) return cannot_open(path);
  const int version = ::ioctl(system.fd(), KVM_GET_API_VERSION, 0);
  if (version != KVM_API_VERSION) return fail(std::string{path} + " is no KVM of this time");
  for (const auto& need : needs) {
    if (system.extension(need.capability) > 0) continue;
    return fail(std::string{path} + " lacks " + need.name + ": Linux 4.12 or newer is needed");
  }
  const int size = ::ioctl(system.fd(), KVM_GET_VCPU_MMAP_SIZE, 0);
  if (size <= 0) return fail_errno("KVM does not say how large a vCPU's page is");
  system.run_size_ = static_cast<std::size_t>(size);
  system.vcpus_max_ = static_cast<unsigned>(std::max(1, system.extension(KVM_CAP_MAX_VCPUS)));
  std::ifstream file{"/proc/cpuinfo"};
  std::string text;
  std::getline(file, text, '\0');
  system.hardware_ = has_virtualization_flag(text);
  return system;
}

int KvmSystem::extension(unsigned capability) const {
  const int value = ::ioctl(fd(), KVM_CHECK_EXTENSION, static_cast<unsigned long>(capability));
  return value < 0 ? 0 : value;
}

Result<void> KvmSystem::can_run_stock_kernels() const {
  if (hardware_) return {};
  return fail(
      "/dev/kvm is there, but this machine's processor has neither VMX nor SVM, and without "
      "them KVM cannot run a stock kernel: use a machine with virtualization (nested, if "
      "this one is virtual)");
}

}  // namespace millrace::vmm
