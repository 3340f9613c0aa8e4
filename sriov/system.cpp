#include "sriov/system.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.hpp"

namespace millrace::sriov {

namespace {

// A driver's name becomes part of a path.
bool is_driver_name(std::string_view name) {
  return std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
  });
}

}  // namespace

base::Result<Netlink*> System::netlink() {
  if (!netlink_) {
    auto opened = Netlink::open();
    if (!opened) return base::Unexpected{opened.error()};
    netlink_.emplace(*std::move(opened));
  }
  return &*netlink_;
}

base::Result<void> System::write(const std::string& path, std::string_view text) const {
  const base::Fd file{::open(path.c_str(), O_WRONLY | O_CLOEXEC)};
  if (!file) return base::fail_errno("cannot open " + path);
  const auto wrote = ::write(file.get(), text.data(), text.size());
  if (wrote < 0) return base::fail_errno(path);
  return {};
}

base::Result<Link> System::link(const std::string& netdev) {
  auto to = netlink();
  if (!to) return base::Unexpected{to.error()};
  return (*to)->link(netdev);
}

base::Result<void> System::set_up(const std::string& netdev, bool up) {
  auto to = netlink();
  if (!to) return base::Unexpected{to.error()};
  return (*to)->set_up(netdev, up);
}

base::Result<void> System::set(const std::string& netdev, unsigned vf, const Setting& setting) {
  auto to = netlink();
  if (!to) return base::Unexpected{to.error()};
  return (*to)->set(netdev, vf, setting);
}

base::Result<void> System::set_autoprobe(const PciAddress& physical, bool on) {
  return write(sysfs_.folder(physical) + "sriov_drivers_autoprobe", on ? "1" : "0");
}

base::Result<void> System::set_vf_count(const PciAddress& physical, unsigned count) {
  return write(sysfs_.folder(physical) + "sriov_numvfs", std::to_string(count));
}

base::Result<void> System::bind(const PciAddress& function, const std::string& driver) {
  if (!is_driver_name(driver)) return base::fail("'" + driver + "' is no driver's name");
  const auto name = format(function), folder = sysfs_.folder(function);
  if (!driver.empty() &&
      ::access(sysfs_.path("sys/bus/pci/drivers/" + driver).c_str(), F_OK) != 0) {
    return base::fail("there is no driver " + driver + " in the kernel; load it: modprobe " +
                      driver);
  }
  const auto bound = rebind(name, folder, driver);
  // a driver that did not take it is not waited for
  if (!bound) (void)write(folder + "driver_override", "\n");
  return bound;
}

base::Result<void> System::rebind(const std::string& name, const std::string& folder,
                                  const std::string& driver) const {
  // an empty line takes the override away
  auto done = write(folder + "driver_override", driver + "\n");
  if (!done) return done;
  if (const auto now = sysfs_.link_name(folder + "driver"); !now.empty() && now != driver) {
    done = write(folder + "driver/unbind", name);
    if (!done) return done;
  }
  if (driver.empty()) return {};
  done = write(sysfs_.path("sys/bus/pci/drivers_probe"), name);
  if (!done) return done;
  if (sysfs_.link_name(folder + "driver") == driver) return {};
  return base::fail("driver " + driver + " did not take it; the kernel's log says why (dmesg)");
}

base::Result<void> System::reset(const PciAddress& function) {
  return write(sysfs_.folder(function) + "reset", "1");
}

base::Result<base::Fd> System::claim_group(unsigned group) {
  const auto path = sysfs_.path("dev/vfio/" + std::to_string(group));
  base::Fd file{::open(path.c_str(), O_RDWR | O_CLOEXEC)};
  if (!file) return base::fail_errno(path);
  return file;
}

}  // namespace millrace::sriov
