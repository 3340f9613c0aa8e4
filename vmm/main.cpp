// millrace-vmm: runs one guest. From here: program.cpp runs machines, machine.cpp names every part
// of one and how they are put together, kvm_vcpu.cpp is the loop in and out of the guest.
#include "base/log.hpp"
#include "vmm/options.hpp"
#include "vmm/program.hpp"

int main(int argc, char** argv) {
  int status = 0;
  const auto options = millrace::vmm::parse_options(argc, argv, status);
  if (!options) return status;
  millrace::base::set_up_log(options->log_level.c_str(), options->name);
  return millrace::vmm::Program{*options}.run();
}
