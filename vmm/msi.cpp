#include "vmm/msi.hpp"

#include <cstring>
#include <utility>

#include "base/check.hpp"
#include "base/log.hpp"
#include "vmm/signal.hpp"

namespace millrace::vmm {

namespace {

constexpr std::uint32_t control_at = 2, address_at = 4, data_at = 12, mask_at = 16;
constexpr std::uint16_t control_enable = 1 << 0, control_64_bits = 1 << 7, control_mask = 1 << 8;
constexpr std::uint32_t vector_0 = 1;

template <class T>
T field(std::span<const std::byte> capability, std::uint32_t offset) {
  T value;
  std::memcpy(&value, capability.data() + offset, sizeof value);
  return value;
}

// Offsets count from the header, of which a body lacks two bytes.
template <class T>
void put(Msi::Body& body, std::uint32_t offset, T value) {
  std::memcpy(body.data() + offset - 2, &value, sizeof value);
}

}  // namespace

base::Result<Msi> Msi::make(Interrupts& interrupts) {
  auto vector = interrupts.make_vector();
  if (!vector) return base::Unexpected{vector.error()};
  return Msi{std::move(vector).value()};
}

Msi::Body Msi::capability() {
  Body body{};
  put<std::uint16_t>(body, control_at, control_64_bits | control_mask);
  return body;
}

Msi::Body Msi::writable() {
  Body body{};
  put<std::uint16_t>(body, control_at, control_enable);
  put<std::uint64_t>(body, address_at, ~std::uint64_t{3});
  put<std::uint16_t>(body, data_at, 0xffff);
  put<std::uint32_t>(body, mask_at, vector_0);
  return body;
}

void Msi::set(std::span<const std::byte> capability) {
  CHECK(capability.size() == size);
  const bool enabled = (field<std::uint16_t>(capability, control_at) & control_enable) != 0;
  const bool masked = (field<std::uint32_t>(capability, mask_at) & vector_0) != 0;
  if (!enabled || masked) return vector_->disconnect();
  const auto connected = vector_->connect(
      {field<std::uint64_t>(capability, address_at), field<std::uint16_t>(capability, data_at)});
  if (connected) return;
  vector_->disconnect();  // nor to where it went before
  if (std::exchange(complained_, true)) return;
  spdlog::error("a guest's interrupt cannot be delivered: {}", connected.error().message);
}

void Msi::raise() const {
  signal(vector_->eventfd());
}

}  // namespace millrace::vmm
