#include "vfio/group.hpp"

#include <linux/vfio.h>

#include <cerrno>

#include "base/error.hpp"

namespace millrace::vfio {

using base::fail;
using base::fail_errno;
using base::Result;

namespace {

std::string path_of(unsigned number) {
  return "/dev/vfio/" + std::to_string(number);
}

base::Unexpected<base::Error> why_not_opened(unsigned number, int error) {
  const auto path = path_of(number);
  switch (error) {
    case ENOENT:
      return fail(path + " is not there: bind a function of IOMMU group " + std::to_string(number) +
                  " to vfio-pci (driver_override, then drivers_probe)");
    case EBUSY:
      return fail(path + ": another process holds IOMMU group " + std::to_string(number) +
                  ": end it first");
    case EACCES:
    case EPERM:
      return fail(path + ": this user may not open it: give the file to them (chown)");
    default:
      errno = error;
      return fail_errno("cannot open " + path);
  }
}

}  // namespace

Result<Group> Group::open(unsigned number, Kernel& kernel) {
  base::Fd fd{kernel.open(path_of(number).c_str())};
  if (!fd) return why_not_opened(number, errno);
  return take(std::move(fd), number, kernel);
}

Result<Group> Group::take(base::Fd fd, unsigned number, Kernel& kernel) {
  Group group{kernel, std::move(fd), number};
  if (auto ok = group.check_viable(); !ok) return base::Unexpected{ok.error()};
  return group;
}

Result<void> Group::check_viable() const {
  vfio_group_status status{};
  status.argsz = sizeof status;
  if (kernel_->call(fd(), VFIO_GROUP_GET_STATUS, status) != 0) {
    return fail_errno("cannot ask for IOMMU group " + std::to_string(number_));
  }
  if ((status.flags & VFIO_GROUP_FLAGS_VIABLE) != 0) return {};
  return fail("IOMMU group " + std::to_string(number_) +
              " has a function that a driver of the host has: bind all of "
              "/sys/kernel/iommu_groups/" +
              std::to_string(number_) + "/devices to vfio-pci, or to nothing");
}

Result<base::Fd> Group::device(const std::string& address, const std::string& token) const {
  const auto name = token.empty() ? address : address + " vf_token=" + token;
  base::Fd device{kernel_->ioctl(fd(), VFIO_GROUP_GET_DEVICE_FD,
                                 reinterpret_cast<std::uintptr_t>(name.c_str()))};
  if (device) return device;
  if (errno == ENODEV) {
    return fail(address + " is no function of IOMMU group " + std::to_string(number_) +
                " that vfio-pci has: bind it to vfio-pci");
  }
  if (errno == EBUSY) return fail(address + " is in use: its owner has to give it back first");
  if (errno == EACCES) {
    return fail(address +
                ": its physical function is held by vfio-pci with a token: give vf_token");
  }
  return fail_errno("cannot open the function " + address);
}

}  // namespace millrace::vfio
