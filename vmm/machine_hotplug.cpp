// What is added to a machine that runs. See machine.hpp.
#include "vmm/machine.hpp"

namespace millrace::vmm {

using base::fail;
using base::Result;

Result<void> Machine::add_cpus(unsigned count) {
  if (threads_.empty() || stopping_.load()) return fail("the guest does not run");
  if (count == 0) return fail("give a number of vCPUs to add, 1 at least");
  const auto room = processors_.most - cpus();
  if (count > room) {
    return fail("the guest has " + std::to_string(cpus()) + " vCPUs and room for " +
                std::to_string(room) + " more: start it with --cpus " + std::to_string(cpus()) +
                ",max=N");
  }
  auto ok = make_vcpus(count);
  // Those that could be made are there, whatever became of the others.
  start_vcpus();
  power_.raise(PowerPorts::event_cpus);
  return ok;
}

Result<void> Machine::add_memory(std::uint64_t bytes) {
  if (threads_.empty() || stopping_.load()) return fail("the guest does not run");
  return give_memory(bytes);
}

Result<void> Machine::give_memory(std::uint64_t bytes) {
  auto piece = ram_.make_piece(bytes);
  if (!piece) return base::Unexpected{piece.error()};
  if (auto ok = vm_.add_memory(piece->region()); !ok) return ok;
  const auto region = piece->region();
  const auto slot = static_cast<unsigned>(memory_added_.size());
  memory_added_.push_back(bytes);
  // A guest's buffers may lie in it as soon as the guest knows of it, so back-ends come first.
  ram_.add(*std::move(piece), [this, region, slot] {
    hotplug_.set_memory(slot, region.guest_address, region.size);
    // What is there from the first instruction on is no news.
    if (started_.load()) power_.raise(PowerPorts::event_memory);
  });
  return {};
}

}  // namespace millrace::vmm
