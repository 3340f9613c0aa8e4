// Privileged: every act of this folder that needs rights, one verb each, so that a test can stand
// in for the kernel, and a broker for this process. What it does is all that it can be asked for:
// no paths, no text that goes to the kernel as it is.
//
// Each act answers with the kernel's own reason where it is refused ("Operation not supported").
// None waits for another process; the caller has made sure that nobody holds what is taken away.
// Thread: control, but for reset().
#pragma once

#include <string>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "sriov/pci_address.hpp"
#include "sriov/values.hpp"

namespace millrace::sriov {

// A physical function's network interface as rtnetlink shows it.
struct Link {
  Mac mac{};
  bool up = false;                  // by its administrator
  bool carrier = false;             // its link is there
  std::vector<VfValues> functions;  // by index
};

class Privileged {
 public:
  virtual ~Privileged() = default;

  // Reading needs no rights, and belongs to what is set below.
  virtual base::Result<Link> link(const std::string& netdev) = 0;
  virtual base::Result<void> set_up(const std::string& netdev, bool up) = 0;
  virtual base::Result<void> set(const std::string& netdev, unsigned vf,
                                 const Setting& setting) = 0;

  // Whether new virtual functions get a driver by themselves.
  virtual base::Result<void> set_autoprobe(const PciAddress& physical, bool on) = 0;
  // From 0 to `count`, or to 0. The kernel holds a lock of the whole host's meanwhile, and waits in
  // it for whoever has a function in use: nobody may.
  virtual base::Result<void> set_vf_count(const PciAddress& physical, unsigned count) = 0;

  // Takes the function from the driver that it has, and gives it to `driver`; empty: to none.
  virtual base::Result<void> bind(const PciAddress& function, const std::string& driver) = 0;
  // A function-level reset. Any thread: the kernel waits a minute for one that does not come back.
  virtual base::Result<void> reset(const PciAddress& function) = 0;
  // Opens a group of the IOMMU for as long as the descriptor lives: nobody else can meanwhile.
  // Fails where somebody has it open, and where it has no file (no driver of VFIO's holds a
  // member).
  virtual base::Result<base::Fd> claim_group(unsigned group) = 0;
};

}  // namespace millrace::sriov
