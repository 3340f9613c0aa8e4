#include "bench/socket_guest.hpp"

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "virtio/features.hpp"
#include "virtio/shared.hpp"

namespace millrace::bench {

namespace {

namespace wire = virtio::wire;
// Ring addresses of SET_VRING_ADDR are user addresses; this guest's begin here.
constexpr std::uint64_t user_base = 0x7000'0000'0000;

// Both indices 0, both wrap counters 1.
constexpr std::uint32_t packed_base = 0x8000'8000;

template <class T>
T& word(std::byte* at) {
  return *reinterpret_cast<T*>(at);
}

}  // namespace

SocketGuest::~SocketGuest() {
  if (memory_ != nullptr) ::munmap(memory_, config_.memory);
}

base::Result<std::unique_ptr<SocketGuest>> SocketGuest::connect(const std::string& socket,
                                                                const GuestConfig& config,
                                                                std::chrono::milliseconds timeout) {
  auto frontend = config.listen ? vhost::Frontend::accept(socket, timeout)
                                : vhost::Frontend::connect(socket, timeout);
  if (!frontend) return base::Unexpected{frontend.error()};
  auto guest = std::unique_ptr<SocketGuest>(new SocketGuest{config});
  guest->frontend_ = *std::move(frontend);
  if (auto done = guest->set_up(); !done) return base::fail(socket + ": " + done.error().message);
  return guest;
}

base::Result<std::unique_ptr<SocketGuest>> SocketGuest::alone(const GuestConfig& config) {
  auto guest = std::unique_ptr<SocketGuest>(new SocketGuest{config});
  if (auto done = guest->make_memory(); !done) return base::Unexpected{done.error()};
  for (auto& ring : guest->rings_) guest->lay_out(ring);
  return guest;
}

base::Result<void> SocketGuest::make_memory() {
  file_ = base::Fd{::memfd_create("guest", MFD_CLOEXEC)};
  if (!file_ || ::ftruncate(file_.get(), static_cast<off_t>(config_.memory)) != 0)
    return base::fail("no memory for a guest");
  void* mapped =
      ::mmap(nullptr, config_.memory, PROT_READ | PROT_WRITE, MAP_SHARED, file_.get(), 0);
  if (mapped == MAP_FAILED) return base::fail("cannot map a guest's memory");
  memory_ = static_cast<std::byte*>(mapped);
  return {};
}

// All memory as one region, or slot by slot, as a guest with many memory modules has it.
base::Result<void> SocketGuest::share_memory() {
  auto left = region();
  if (config_.slots <= 1) return frontend_->set_mem_table({&left, 1});
  const auto most = frontend_->get_max_mem_slots();
  if (!most) return base::Unexpected{most.error()};
  if (*most < config_.slots) {
    return base::fail("this back-end has " + std::to_string(*most) + " memory slots, not " +
                      std::to_string(config_.slots));
  }
  const auto share = (left.size - config_.first_slot) / (config_.slots - 1) & ~std::uint64_t{4095};
  if (share == 0) return base::fail("more memory slots than the guest has pages");
  for (unsigned slot = 0; slot < config_.slots; ++slot) {
    auto piece = left;
    if (slot + 1 < config_.slots) piece.size = slot == 0 ? config_.first_slot : share;
    if (auto done = frontend_->add_mem_reg(piece); !done) return done;
    left.guest_address += piece.size;
    left.user_address += piece.size;
    left.file_offset += piece.size;
    left.size -= piece.size;
  }
  return {};
}

// The back-end makes the region, and notes in it from then on what it has taken.
base::Result<void> SocketGuest::share_inflight() {
  auto made = frontend_->get_inflight_fd(static_cast<std::uint16_t>(config_.rings), config_.size);
  if (!made) return base::Unexpected{made.error()};
  return frontend_->set_inflight_fd(made->shape, made->fd.get());
}

base::Result<void> SocketGuest::set_up() {
  using vhost::wire::protocol::inflight_shmfd;
  using Inflight = GuestConfig::Inflight;
  if (auto done = make_memory(); !done) return done;
  if (auto done = frontend_->set_owner(); !done) return done;
  auto offered = frontend_->get_features();
  if (!offered) return base::Unexpected{offered.error()};
  auto protocol = frontend_->get_protocol_features();
  if (!protocol) return base::Unexpected{protocol.error()};
  const auto wished = config_.protocol |
                      (config_.slots > 1 ? vhost::wire::protocol::configure_mem_slots : 0) |
                      (config_.inflight != Inflight::no ? inflight_shmfd : 0);
  if (config_.slots > 1 && (*protocol & vhost::wire::protocol::configure_mem_slots) == 0) {
    return base::fail("this back-end does not take memory slot by slot");
  }
  const bool inflight = (*protocol & wished & inflight_shmfd) != 0;
  if (config_.inflight == Inflight::needed && !inflight) {
    return base::fail("this back-end has no region for what is in flight");
  }
  if (auto done = frontend_->set_protocol_features(*protocol & wished); !done) return done;
  features_ = *offered &
              (config_.features | virtio::feature::version_1 | virtio::feature::protocol_features);
  if (auto done = frontend_->set_features(features_); !done) return done;
  if (auto done = share_memory(); !done) return done;
  if (inflight) {
    if (auto done = share_inflight(); !done) return done;
  }
  for (unsigned index = 0; index < config_.rings; ++index) {
    if (auto done = start_ring(index); !done) return done;
  }
  return {};
}

bool SocketGuest::packed() const {
  return (features_ & virtio::feature::ring_packed) != 0;
}

std::uint64_t SocketGuest::user_address(std::uint64_t address) const {
  return config_.same_addresses ? address : user_base + (address - config_.base);
}

vhost::Frontend::Region SocketGuest::region() const {
  return {.guest_address = config_.base,
          .size = config_.memory,
          .user_address = user_address(config_.base),
          .fd = file_.get()};
}

void SocketGuest::lay_out(GuestRing& ring) {
  const std::uint16_t size = config_.size;
  ring = GuestRing{};
  ring.size = size;
  ring.descriptors = allocate(size * sizeof(wire::Descriptor), 4096);
  if (packed()) {
    ring.available = allocate(sizeof(wire::EventSuppression), 4096);
    ring.used = allocate(sizeof(wire::EventSuppression), 4096);
  } else {
    ring.available = allocate(sizeof(wire::Available) + (size + 1u) * sizeof(base::le16), 4096);
    ring.used = allocate(sizeof(wire::Used) + size * sizeof(wire::UsedElement) + 2, 4096);
  }
  ring.kick = base::Fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  ring.call = base::Fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
}

base::Result<void> SocketGuest::start_ring(unsigned index) {
  auto& ring = rings_.at(index);
  lay_out(ring);
  const vhost::wire::VringAddr address{.index = index,
                                       .flags = 0,
                                       .descriptors = user_address(ring.descriptors),
                                       .used = user_address(ring.used),
                                       .available = user_address(ring.available),
                                       .log = 0};
  if (auto done = frontend_->set_vring_num(index, ring.size); !done) return done;
  if (auto done = frontend_->set_vring_base(index, packed() ? packed_base : 0); !done) return done;
  if (auto done = frontend_->set_vring_addr(address); !done) return done;
  if (auto done = frontend_->set_vring_call(index, ring.call.get()); !done) return done;
  const int kick = config_.polled ? -1 : ring.kick.get();
  if (auto done = frontend_->set_vring_kick(index, kick); !done) return done;
  if (!config_.enable) return {};
  return frontend_->set_vring_enable(index, true);
}

std::uint64_t SocketGuest::allocate(std::uint64_t size, std::uint64_t align) {
  next_ = (next_ + align - 1) / align * align;
  CHECK(next_ + size <= config_.memory);
  const auto at = next_;
  next_ += size;
  return config_.base + at;
}

void SocketGuest::set_descriptor(unsigned ring, std::uint16_t index, std::uint64_t address,
                                 std::uint32_t length, bool writable, bool next) {
  const auto flags = static_cast<std::uint16_t>((writable ? wire::descriptor_write : 0) |
                                                (next ? wire::descriptor_next : 0));
  word<wire::Descriptor>(at(rings_[ring].descriptors + index * sizeof(wire::Descriptor))) = {
      base::le64{address}, base::le32{length}, base::le16{flags},
      base::le16{static_cast<std::uint16_t>(index + 1)}};
}

std::uint64_t SocketGuest::descriptor_address(unsigned ring, std::uint32_t index) {
  CHECK(index < rings_[ring].size);
  const auto entry = rings_[ring].descriptors + index * sizeof(wire::Descriptor);
  return word<wire::Descriptor>(at(entry)).address.host();
}

void SocketGuest::offer(unsigned ring, std::uint16_t head) {
  auto& mine = rings_[ring];
  const auto slot = mine.available_next % mine.size;
  word<base::le16>(at(mine.available + sizeof(wire::Available) + slot * sizeof(base::le16))) =
      base::le16{head};
  ++mine.available_next;
  virtio::store_release(&word<wire::Available>(at(mine.available)).index,
                        base::le16{mine.available_next});
  virtio::full_fence();
}

void SocketGuest::kick(unsigned ring) {
  const std::uint64_t one = 1;
  CHECK(::write(rings_[ring].kick.get(), &one, sizeof(one)) == sizeof(one));
}

std::optional<Completed> SocketGuest::poll(unsigned ring) {
  auto& mine = rings_[ring];
  const auto index = virtio::load_acquire(&word<wire::Used>(at(mine.used)).index).host();
  if (index == mine.used_next) return std::nullopt;
  const auto slot = mine.used_next % mine.size;
  const auto& element = word<wire::UsedElement>(
      at(mine.used + sizeof(wire::Used) + slot * sizeof(wire::UsedElement)));
  ++mine.used_next;
  return Completed{element.id.host(), element.length.host()};
}

std::optional<Completed> SocketGuest::wait(unsigned ring, std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  for (;;) {
    if (auto done = poll(ring)) return done;
    if (std::chrono::steady_clock::now() > deadline) return std::nullopt;
    std::this_thread::sleep_for(std::chrono::microseconds{100});
  }
}

}  // namespace millrace::bench
