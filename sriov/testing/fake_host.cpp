#include "sriov/testing/fake_host.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>

#include "base/check.hpp"

namespace millrace::sriov::testing {

namespace fs = std::filesystem;

namespace {

std::string make_root() {
  std::string name = (fs::temp_directory_path() / "fake-host-XXXXXX").string();
  CHECK(::mkdtemp(name.data()) != nullptr);
  return name + "/";
}

VfValues fresh_values() {
  VfValues values;
  values.mac = Mac{};
  values.vlan = Vlan{};
  values.rate = Rate{};
  values.spoof_check = SpoofCheck{true};
  values.trust = Trust{false};
  values.link = LinkState::automatic;
  return values;
}

std::string folder_of(const PciAddress& address) {
  return "sys/bus/pci/devices/" + format(address) + "/";
}

}  // namespace

PciAddress FakeHost::vf(unsigned index) {
  return {0, 1, static_cast<std::uint8_t>(16 + index / 4),
          static_cast<std::uint8_t>(2 * (index % 4))};
}

FakeHost::FakeHost(unsigned vfs, const std::string& driver) : root_{make_root()}, sysfs_{root_} {
  const auto folder = folder_of(pf);
  file(folder + "class", "0x020000\n");
  file(folder + "sriov_totalvfs", std::to_string(vfs_max) + "\n");
  file(folder + "sriov_numvfs", "0\n");
  file(folder + "sriov_drivers_autoprobe", "1\n");
  file(folder + "numa_node", "-1\n");
  file(folder + "net/eth7/flags", "0x1002\n");
  link_to(folder + "driver", "../../../../bus/pci/drivers/nicdriver");
  for (unsigned index = 0; index < vfs; ++index) make_function(index, driver);
  if (vfs != 0) up_ = true;
  acts.clear();
}

FakeHost::~FakeHost() {
  std::error_code ignored;
  fs::remove_all(root_, ignored);
}

void FakeHost::file(const std::string& path, const std::string& text) {
  fs::create_directories(fs::path{root_ + path}.parent_path());
  std::ofstream{root_ + path} << text;
}

void FakeHost::link_to(const std::string& path, const std::string& target) {
  remove(path);
  fs::create_directories(fs::path{root_ + path}.parent_path());
  fs::create_symlink(target, root_ + path);
}

void FakeHost::remove(const std::string& path) {
  fs::remove_all(root_ + path);
}

void FakeHost::hold(unsigned index, int pid, const std::string& name) {
  const auto folder = "proc/" + std::to_string(pid) + "/";
  file(folder + "comm", name + "\n");
  link_to(folder + "fd/3", "/dev/vfio/vfio");
  link_to(folder + "fd/4", "/dev/vfio/" + std::to_string(group(index)));
}

void FakeHost::netdev_up(unsigned index, const std::string& name) {
  file(folder_of(vf(index)) + "net/" + name + "/flags", "0x1003\n");
}

std::string FakeHost::driver(unsigned index) const {
  return sysfs_.link_name(sysfs_.folder(vf(index)) + "driver");
}

void FakeHost::lose_values() {
  for (auto& each : functions_) each = fresh_values();
}

void FakeHost::make_function(unsigned index, const std::string& driver) {
  const auto folder = folder_of(vf(index));
  file(folder + "class", "0x020000\n");
  file(folder + "numa_node", std::to_string(index % 2) + "\n");
  link_to(folder + "iommu_group", "../../../kernel/iommu_groups/" + std::to_string(group(index)));
  if (!driver.empty()) link_to(folder + "driver", "../../../../bus/pci/drivers/" + driver);
  link_to(folder_of(pf) + "virtfn" + std::to_string(index), "../" + format(vf(index)));
  functions_.push_back(fresh_values());
  file(folder_of(pf) + "sriov_numvfs", std::to_string(functions_.size()) + "\n");
}

base::Result<void> FakeHost::act(const std::string& line) {
  for (auto each = refusals_.begin(); each != refusals_.end(); ++each) {
    if (!line.starts_with(each->first)) continue;
    const auto reason = each->second;
    refusals_.erase(each);
    return base::fail(reason);
  }
  acts.push_back(line);
  return {};
}

base::Result<Link> FakeHost::link(const std::string& netdev) {
  CHECK(netdev == "eth7");
  Link out;
  out.mac = {0x52, 0x54, 0, 0, 0, 0x77};
  out.up = up_;
  out.carrier = up_ && !no_carrier;
  out.functions = functions_;
  if (hides_trust) {
    for (auto& each : out.functions) each.trust.reset();
  }
  return out;
}

base::Result<void> FakeHost::set_up(const std::string&, bool up) {
  auto done = act(up ? "up" : "down");
  if (done) up_ = up;
  return done;
}

base::Result<void> FakeHost::set(const std::string&, unsigned vf, const Setting& setting) {
  auto done = act("vf " + std::to_string(vf) + " " + format(setting));
  if (!done) return done;
  if (forgets_rates && std::holds_alternative<Rate>(setting)) return done;
  functions_.at(vf).set(setting);
  return done;
}

base::Result<void> FakeHost::set_autoprobe(const PciAddress&, bool on) {
  auto done = act(on ? "autoprobe on" : "autoprobe off");
  if (done) file(folder_of(pf) + "sriov_drivers_autoprobe", on ? "1\n" : "0\n");
  return done;
}

base::Result<void> FakeHost::set_vf_count(const PciAddress&, unsigned count) {
  if (count != 0 && !functions_.empty()) return base::fail("Device or resource busy");
  auto done = act("count " + std::to_string(count));
  if (!done) return done;
  const bool probed = sysfs_.number(sysfs_.folder(pf) + "sriov_drivers_autoprobe") == 1;
  for (unsigned index = 0; index < functions_.size(); ++index) {
    remove(folder_of(pf) + "virtfn" + std::to_string(index));
    remove(folder_of(vf(index)).substr(0, folder_of(vf(index)).size() - 1));
  }
  functions_.clear();
  file(folder_of(pf) + "sriov_numvfs", "0\n");
  for (unsigned index = 0; index < count; ++index) {
    make_function(index, probed ? "vfdriver" : "");
  }
  return done;
}

base::Result<void> FakeHost::bind(const PciAddress& function, const std::string& driver) {
  auto done = act("bind " + format(function) + " " + driver);
  if (!done) return done;
  const auto path = folder_of(function) + "driver";
  remove(path);
  if (!driver.empty()) link_to(path, "../../../../bus/pci/drivers/" + driver);
  return done;
}

base::Result<void> FakeHost::reset(const PciAddress& function) {
  return act("reset " + format(function));
}

base::Result<base::Fd> FakeHost::claim_group(unsigned group) {
  if (unseen_.contains(group)) return base::fail("Device or resource busy");
  return base::Fd{::open("/dev/null", O_RDONLY | O_CLOEXEC)};
}

}  // namespace millrace::sriov::testing
