#include "vmm/msix.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "base/check.hpp"
#include "base/log.hpp"
#include "vmm/signal.hpp"

namespace millrace::vmm {

namespace {

constexpr std::size_t entry_size = 16;
constexpr std::uint32_t vector_masked = 1;

}  // namespace

base::Result<std::unique_ptr<Msix>> Msix::make(Interrupts& interrupts, unsigned vectors) {
  CHECK(vectors >= 1 && vectors <= vectors_max);
  std::vector<Entry> entries(vectors);
  for (auto& entry : entries) {
    auto vector = interrupts.make_vector();
    if (!vector) return base::Unexpected{vector.error()};
    entry.vector = std::move(vector).value();
  }
  return std::unique_ptr<Msix>{new Msix{std::move(entries)}};
}

// Half a page at least, so that the BAR is a whole one.
std::uint64_t Msix::pending_at() const {
  return std::max<std::uint64_t>(2048, std::bit_ceil(entries_.size() * entry_size));
}

Msix::Body Msix::capability(unsigned bar) const {
  const auto control = static_cast<std::uint16_t>(vectors() - 1);
  const std::uint32_t table = bar, pending = static_cast<std::uint32_t>(pending_at()) | bar;
  Body body;
  std::memcpy(body.data(), &control, sizeof control);
  std::memcpy(body.data() + 2, &table, sizeof table);
  std::memcpy(body.data() + 6, &pending, sizeof pending);
  return body;
}

Msix::Body Msix::writable() {
  constexpr std::uint16_t control = control_enable | control_mask;
  Body body{};
  std::memcpy(body.data(), &control, sizeof control);
  return body;
}

void Msix::set_control(std::uint16_t control) {
  const std::lock_guard lock{mutex_};
  const bool delivers = (control & (control_enable | control_mask)) == control_enable;
  if (delivers == delivers_) return;
  delivers_ = delivers;
  for (auto& entry : entries_) update(entry);
}

int Msix::eventfd(unsigned vector) const {
  return vector < entries_.size() ? entries_[vector].vector->eventfd() : -1;
}

void Msix::raise(unsigned vector) const {
  signal(eventfd(vector));
}

void Msix::update(Entry& entry) {
  const auto& words = entry.words;
  const bool wanted = delivers_ && (words[3] & vector_masked) == 0;
  const MsiMessage message{std::uint64_t{words[1]} << 32 | words[0], words[2]};
  if (wanted && (!entry.connected || entry.message != message)) {
    const auto connected = entry.vector->connect(message);
    if (!connected && !std::exchange(complained_, true)) {
      spdlog::error("a guest's interrupt cannot be delivered: {}", connected.error().message);
    }
    entry.connected = connected.has_value();
    if (!connected) entry.vector->disconnect();  // nor to where it went before
    entry.message = message;
  } else if (!wanted && entry.connected) {
    entry.vector->disconnect();
    entry.connected = false;
  }
}

std::byte Msix::byte_at(std::uint64_t offset) const {
  const auto byte_of = [](std::uint64_t word, std::uint64_t at) {
    return static_cast<std::byte>(word >> (8 * at) & 0xff);
  };
  if (offset < entries_.size() * entry_size) {
    return byte_of(entries_[offset / entry_size].words[offset % entry_size / 4], offset % 4);
  }
  if (offset < pending_at()) return std::byte{0};
  std::uint64_t bits = 0;
  const auto first = (offset - pending_at()) * 8;
  for (auto i = first; i < std::min<std::uint64_t>(first + 8, entries_.size()); ++i) {
    const auto& entry = entries_[i];
    if (!entry.connected && entry.vector->pending()) bits |= 1ull << (i - first);
  }
  return byte_of(bits, 0);
}

void Msix::read(std::uint64_t offset, std::span<std::byte> data) {
  const std::lock_guard lock{mutex_};
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = byte_at(offset + i);
}

void Msix::write(std::uint64_t offset, std::span<const std::byte> data) {
  if ((data.size() != 4 && data.size() != 8) || offset % data.size() != 0) return;
  const std::lock_guard lock{mutex_};
  for (std::size_t i = 0; i < data.size() && offset + i < entries_.size() * entry_size; i += 4) {
    std::uint32_t value = 0;
    std::memcpy(&value, data.data() + i, sizeof value);
    write_word((offset + i) / 4, value);
  }
  // Both halves of an address are in place before it is used.
  if (offset < entries_.size() * entry_size) update(entries_[offset / entry_size]);
}

void Msix::write_word(std::uint64_t index, std::uint32_t value) {
  constexpr std::array<std::uint32_t, 4> writable{~3u, ~0u, ~0u, vector_masked};
  entries_[index / 4].words[index % 4] = value & writable[index % 4];
}

}  // namespace millrace::vmm
