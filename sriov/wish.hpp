// PfWish: what a physical function and its virtual functions shall be, as the operator says it.
// Thread: any; plain values.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "sriov/pci_address.hpp"
#include "sriov/values.hpp"

namespace millrace::sriov {

struct VfWish {
  unsigned index = 0;
  VfValues values{};                    // absent ones are left as they are
  std::optional<std::string> driver{};  // empty: none; nullopt: as PfWish says
};

struct PfWish {
  PciAddress address;
  bool up = true;                     // its network interface
  std::optional<unsigned> vfs;        // nullopt: the functions that are there are adopted
  std::optional<bool> autoprobe;      // of functions that are created; nullopt: off
  std::optional<std::string> driver;  // of every function; empty: none; nullopt: left as it is
  std::vector<VfWish> functions;      // each index at most once
};

}  // namespace millrace::sriov
