// What of GuestRam is shared between threads: memory that is added. See ram.hpp.
#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "base/check.hpp"
#include "vmm/ram.hpp"

namespace millrace::vmm {

GuestRam::Piece::Piece(Piece&& other) noexcept
    : file_{std::move(other.file_)},
      reserved_{std::exchange(other.reserved_, nullptr)},
      reserved_size_{std::exchange(other.reserved_size_, 0)},
      region_{other.region_} {}

GuestRam::Piece::~Piece() {
  if (reserved_ != nullptr) ::munmap(reserved_, reserved_size_);
}

std::span<const RamRegion> GuestRam::regions() const {
  // Of one that was moved from: none.
  const auto count = growth_ == nullptr ? 0 : growth_->regions.load(std::memory_order_acquire);
  return {regions_.data(), count};
}

std::uint64_t GuestRam::end_of_all() const {
  return growth_->end;
}

const RamRegion& GuestRam::managed(unsigned index) const {
  return growth_->managed.at(index).region();
}

void GuestRam::add(Piece piece, std::function<void()> everywhere) {
  auto& growth = *growth_;
  CHECK(regions_.size() < regions_.capacity());
  regions_.push_back(piece.region());
  growth.pieces.push_back(std::move(piece));
  growth.regions.store(regions_.size(), std::memory_order_release);
  const std::lock_guard lock{growth.mutex};
  CHECK(!growth.everywhere);
  growth.everywhere = std::move(everywhere);
  for (auto& user : growth.users) {
    user.waited_for = true;
    user.user->memory_added();
  }
  growth.settle();
}

// Called with the lock held.
void GuestRam::Growth::settle() {
  const auto waited_for = [](const User& user) { return user.waited_for; };
  if (!everywhere || std::ranges::any_of(users, waited_for)) return;
  std::exchange(everywhere, nullptr)();
}

void GuestRam::attach(RamUser& user) const {
  const std::lock_guard lock{growth_->mutex};
  growth_->users.push_back({&user, false});
}

void GuestRam::detach(RamUser& user) const {
  const std::lock_guard lock{growth_->mutex};
  std::erase_if(growth_->users, [&](const Growth::User& each) { return each.user == &user; });
  growth_->settle();
}

void GuestRam::taken(RamUser& user) const {
  const std::lock_guard lock{growth_->mutex};
  for (auto& each : growth_->users) {
    if (each.user == &user) each.waited_for = false;
  }
  growth_->settle();
}

}  // namespace millrace::vmm
