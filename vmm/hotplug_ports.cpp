#include "vmm/hotplug_ports.hpp"

#include "base/check.hpp"

namespace millrace::vmm {

void HotplugPorts::set_memory(unsigned slot, std::uint64_t start, std::uint64_t bytes) {
  constexpr auto unit = std::uint64_t{1} << unit_shift;
  CHECK(slot < slots_.size() && start % unit == 0 && bytes % unit == 0 && bytes != 0);
  CHECK(start >> unit_shift <= 0xffff'ffff && bytes >> unit_shift <= 0xffff'ffff);
  slots_[slot].store(start >> unit_shift | bytes >> unit_shift << 32);
}

std::byte HotplugPorts::at(std::uint64_t offset) const {
  if (offset >= memory && offset < size) {
    const auto slot = (offset - memory) / slot_size, byte = offset % slot_size;
    return static_cast<std::byte>(slots_[slot].load() >> (8 * byte));
  }
  return offset == cpus ? static_cast<std::byte>(cpus_.load()) : std::byte{0};
}

void HotplugPorts::read(std::uint64_t offset, std::span<std::byte> data) {
  for (auto& byte : data) byte = at(offset++);
}

}  // namespace millrace::vmm
