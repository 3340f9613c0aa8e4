#include "guest/mem_state.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "base/units.hpp"

namespace millrace::guest {

using virtio::wire::MemBlockState, virtio::wire::MemRequestType, virtio::wire::MemResponseType;

namespace {

// In host order: it is read on the machine that wrote it. Whoever changes a field changes the
// version.
constexpr std::uint32_t version = 1;
struct MemRecord {
  std::uint32_t version, size;
  MemPlace place;
  std::uint64_t configured, requested;
  MemState::Request last;
  MemBlocks::Map map;
};
static_assert(std::is_trivially_copyable_v<MemRecord> &&
              sizeof(MemRecord) <= virtio::KeptArea::record_max);

MemState::Response answer(MemResponseType type) {
  return {.type = base::le16{static_cast<std::uint16_t>(type)}, .padding = {}, .state = {}};
}

MemRequestType type_of(const MemState::Request& request) {
  return MemRequestType{request.type.host()};
}

bool same(const MemState::Request& a, const MemState::Request& b) {
  return a.type.host() == b.type.host() && a.addr.host() == b.addr.host() &&
         a.blocks.host() == b.blocks.host();
}

// Whether all of it is memory that the front-end handed over.
bool is_memory(const virtio::GuestMemory& memory, std::uint64_t address, std::uint64_t bytes) {
  virtio::GuestMemory::Hint hint;
  while (bytes != 0) {
    const auto part = memory.translate(address, bytes, hint).size();
    if (part == 0) return false;
    address += part;
    bytes -= part;
  }
  return true;
}

}  // namespace

// --- Control ---

base::Result<void> MemState::set_place(const MemPlace& place) {
  if (auto ok = MemBlocks::check(place); !ok) return ok;
  const std::lock_guard lock{mutex_};
  if (place == blocks_.place()) return {};
  if (blocks_.plugged() != 0) {
    return base::fail("the region cannot move while the guest has memory of it");
  }
  blocks_.place(place);
  return {};
}

void MemState::forget() {
  const std::lock_guard lock{mutex_};
  blocks_.place({});
  kept_ = nullptr;
  last_ = {};
  restored_ = false;
  untouched_ = true;
}

base::Result<bool> MemState::set_requested(std::uint64_t bytes) {
  const std::lock_guard lock{mutex_};
  const auto& place = blocks_.place();
  const auto unit = std::max(place.block_size, MemBlocks::block_size_min);
  if (bytes % unit != 0) {
    return base::fail(std::to_string(bytes) + " bytes: give a multiple of " +
                      base::format_bytes(unit));
  }
  if (place.size != 0 && bytes > place.size) {
    return base::fail(base::format_bytes(bytes) + " is more than the guest's region of " +
                      base::format_bytes(place.size));
  }
  const bool news = bytes != std::exchange(requested_, bytes);
  if (news) keep();
  return news;
}

// What the guest is told: a configuration may ask for more than its region has.
std::uint64_t MemState::effective() const {
  const auto& place = blocks_.place();
  if (place.size == 0) return 0;
  return std::min(requested_, place.size) / place.block_size * place.block_size;
}

bool MemState::set_kept(std::shared_ptr<virtio::KeptArea> area) {
  const std::lock_guard lock{mutex_};
  kept_ = std::move(area);
  if (kept_ == nullptr) return false;
  const auto bytes = kept_->load();
  MemRecord record;
  bool taken = false;
  if (untouched_ && bytes.size() == sizeof record) {
    std::memcpy(&record, bytes.data(), sizeof record);
    taken = record.version == version && record.size == sizeof record &&
            blocks_.place().size != 0 && record.place == blocks_.place() &&
            blocks_.restore(record.map);
  }
  if (taken) {
    last_ = record.last;
    restored_ = true;
    // The operator's last word counts: a command's, unless the configuration was changed since.
    const bool sound =
        record.requested % record.place.block_size == 0 && record.requested <= record.place.size;
    if (record.configured == configured_ && sound) requested_ = record.requested;
  }
  keep();
  return taken;
}

void MemState::keep() {
  if (kept_ == nullptr) return;
  const MemRecord record{.version = version,
                         .size = sizeof record,
                         .place = blocks_.place(),
                         .configured = configured_,
                         .requested = requested_,
                         .last = last_,
                         .map = blocks_.map()};
  kept_->store(std::as_bytes(std::span{&record, 1}));
}

std::uint64_t MemState::requested() const {
  const std::lock_guard lock{mutex_};
  return requested_;
}

MemState::Config MemState::config() const {
  const std::lock_guard lock{mutex_};
  const auto& place = blocks_.place();
  Config config{};
  config.block_size =
      base::le64{place.block_size == 0 ? MemBlocks::block_size_min : place.block_size};
  config.addr = base::le64{place.address};
  config.region_size = config.usable_region_size = base::le64{place.size};
  config.plugged_size = base::le64{blocks_.plugged()};
  config.requested_size = base::le64{effective()};
  return config;
}

// --- The reclaimer's thread ---

std::optional<MemState::Response> MemState::step(const Request& request,
                                                 const virtio::GuestMemory& memory,
                                                 Reclaimer& reclaimer) {
  if (!removal_) {
    const auto begun = begin(request, memory, reclaimer);
    if (!removal_) return begun;
  }
  const auto bytes = std::min(removal_->end - removal_->next, step_size);
  const bool gone = reclaimer.give_back(memory, removal_->next, bytes, reclaimed);
  removal_->next += bytes;
  if (gone && removal_->next != removal_->end) return std::nullopt;
  removal_.reset();
  if (gone) return finish(request);
  counters.refused.add();
  return answer(MemResponseType::busy);
}

MemState::Response MemState::begin(const Request& request, const virtio::GuestMemory& memory,
                                   Reclaimer& reclaimer) {
  const std::lock_guard lock{mutex_};
  const auto address = request.addr.host();
  const std::uint64_t blocks = request.blocks.host();
  const auto wrong = [this] {
    counters.wrong.add();
    return answer(MemResponseType::error);
  };
  const auto type = type_of(request);
  untouched_ = false;
  if (type == MemRequestType::unplug_all) {
    return begin_removal(blocks_.place(), memory, reclaimer);
  }
  if (type > MemRequestType::state || !blocks_.holds(address, blocks)) return wrong();
  const auto state = blocks_.state(address, blocks);
  if (type == MemRequestType::state) {
    auto said = answer(MemResponseType::ack);
    said.state = base::le16{static_cast<std::uint16_t>(state)};
    return said;
  }
  if (is_done_before(request)) return answer(MemResponseType::ack);
  const bool plugs = type == MemRequestType::plug;
  // §5.15.6.2: only what is unplugged can be plugged, and the other way round.
  if (state != (plugs ? MemBlockState::unplugged : MemBlockState::plugged)) return wrong();
  const MemPlace what{address, blocks * blocks_.place().block_size, 0};
  if (!is_memory(memory, what.address, what.size)) return wrong();
  return plugs ? plug(request) : begin_removal(what, memory, reclaimer);
}

bool MemState::is_done_before(const Request& request) {
  return std::exchange(restored_, false) && same(request, last_);
}

MemState::Response MemState::plug(const Request& request) {
  const auto bytes = request.blocks.host() * blocks_.place().block_size;
  if (blocks_.plugged() + bytes > effective()) {
    counters.refused.add();
    return answer(MemResponseType::nack);
  }
  // Its pages come when they are touched.
  blocks_.set(request.addr.host(), request.blocks.host(), true);
  last_ = request;
  keep();
  counters.plugged.add();
  return answer(MemResponseType::ack);
}

// Nothing is changed where hardware has some of it; else what is answered here does not count.
MemState::Response MemState::begin_removal(const MemPlace& what, const virtio::GuestMemory& memory,
                                           Reclaimer& reclaimer) {
  if (what.size == 0 || reclaimer.is_pinned(memory, what.address, what.size)) {
    counters.refused.add();
    return answer(MemResponseType::busy);
  }
  removal_ = Removal{what.address, what.address + what.size};
  return answer(MemResponseType::ack);
}

MemState::Response MemState::finish(const Request& request) {
  const std::lock_guard lock{mutex_};
  if (type_of(request) == MemRequestType::unplug_all) {
    blocks_.clear();
  } else {
    blocks_.set(request.addr.host(), request.blocks.host(), false);
  }
  last_ = request;
  restored_ = false;
  keep();
  counters.unplugged.add();
  return answer(MemResponseType::ack);
}

}  // namespace millrace::guest
