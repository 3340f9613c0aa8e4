#include "vmm/backend_connection.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.hpp"
#include "virtio/features.hpp"
#include "virtio/inflight.hpp"
#include "virtio/kept_area.hpp"

namespace millrace::vmm {

namespace {

namespace protocol = vhost::wire::protocol;
using base::Result;
using vhost::wire::BackendRequest;

// What is made use of here. LOG_SHMFD waits for a migration.
constexpr std::uint64_t known_protocol =
    protocol::mq | protocol::log_shmfd | protocol::rarp | protocol::reply_ack | protocol::mtu |
    protocol::backend_req | protocol::config | protocol::inflight_shmfd | protocol::reset_device |
    protocol::configure_mem_slots | protocol::status;
// 256 rings of 32768 entries of 32 bytes, and their headers.
constexpr std::uint64_t inflight_size_max = 1ull << 29;
// A request comes in one piece; see Channel::message_timeout for the other direction.
constexpr std::chrono::milliseconds request_timeout{1000};

bool hung_up(int fd) {
  struct pollfd one {
    .fd = fd, .events = POLLRDHUP, .revents = 0
  };
  return ::poll(&one, 1, 0) == 1;
}

template <class R>
R named(const char* step, R result) {
  if (result) return result;
  return base::fail(std::string{step} + ": " + result.error().message);
}

}  // namespace

BackendConnection::BackendConnection(base::Fd socket, const Timeouts& timeouts, int cancel)
    : frontend_{std::move(socket)}, timeouts_{timeouts}, cancel_{cancel} {
  frontend_.set_timeout(timeouts.reply);
  frontend_.set_cancel(cancel);
}

Result<std::unique_ptr<BackendConnection>> BackendConnection::negotiate(base::Fd socket,
                                                                        std::size_t config_size,
                                                                        const Timeouts& timeouts,
                                                                        int cancel) {
  std::unique_ptr<BackendConnection> made{
      new BackendConnection{std::move(socket), timeouts, cancel}};
  made->config_size_ = config_size;
  auto& frontend = made->frontend_;
  const auto features = named("GET_FEATURES", frontend.get_features());
  if (!features) return base::Unexpected{features.error()};
  made->offer_.features = *features;
  if (auto ok = named("SET_OWNER", frontend.set_owner()); !ok) return base::Unexpected{ok.error()};
  if ((*features & virtio::feature::protocol_features) != 0) {
    if (auto ok = made->negotiate_protocol(config_size); !ok) return base::Unexpected{ok.error()};
  }
  return made;
}

void BackendConnection::set_cancel(int fd) {
  cancel_ = fd;
  frontend_.set_cancel(fd);
  if (requests_) requests_->set_cancel(fd);
}

Result<void> BackendConnection::negotiate_protocol(std::size_t config_size) {
  const auto offered = named("GET_PROTOCOL_FEATURES", frontend_.get_protocol_features());
  if (!offered) return base::Unexpected{offered.error()};
  offer_.protocol = *offered & known_protocol;
  auto set = frontend_.set_protocol_features(offer_.protocol);
  if (!set) return named("SET_PROTOCOL_FEATURES", set);
  if (has(protocol::mq)) {
    const auto queues = named("GET_QUEUE_NUM", frontend_.get_queue_num());
    if (!queues) return base::Unexpected{queues.error()};
    offer_.queues = *queues;
  }
  if (has(protocol::configure_mem_slots)) {
    const auto slots = named("GET_MAX_MEM_SLOTS", frontend_.get_max_mem_slots());
    if (!slots) return base::Unexpected{slots.error()};
    offer_.memory_slots = *slots;
  }
  if (has(protocol::backend_req)) {
    if (auto ok = open_requests(cancel_); !ok) return ok;
  }
  return has(protocol::config) && config_size != 0 ? read_config() : Result<void>{};
}

Result<void> BackendConnection::open_requests(int cancel) {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends.data()) != 0) {
    return base::fail_errno("cannot make a socket for the back-end's requests");
  }
  requests_ = std::make_unique<vhost::Frontend>(base::Fd{ends[0]});
  const base::Fd theirs{ends[1]};
  requests_->set_timeout(request_timeout);
  requests_->set_cancel(cancel);
  return named("SET_BACKEND_REQ_FD", frontend_.set_backend_req_fd(theirs.get()));
}

bool BackendConnection::peer_is_gone() const {
  return hung_up(fd());
}

Result<bool> BackendConnection::take_request() {
  const auto message = named("a request of the back-end", requests_->receive());
  if (!message && hung_up(requests_->fd())) {  // it has none any more; its other end is watched too
    requests_.reset();
    return false;
  }
  if (!message) return base::Unexpected{message.error()};
  const auto& header = message->header;
  if ((header.flags & vhost::wire::version_mask) != vhost::wire::version ||
      (header.flags & vhost::wire::flag_reply) != 0) {
    return base::fail("a request of the back-end has flags " + std::to_string(header.flags));
  }
  // Nobody reads a configuration space that the back-end does not have.
  const bool known = has(protocol::config) &&
                     header.request == static_cast<std::uint32_t>(BackendRequest::config_change);
  if ((header.flags & vhost::wire::flag_need_reply) != 0) {
    const std::uint64_t answer = known ? 0 : 1;
    const auto sent =
        requests_->send(static_cast<vhost::wire::Request>(header.request), vhost::bytes_of(answer),
                        {}, vhost::wire::version | vhost::wire::flag_reply);
    if (!sent) return base::Unexpected{sent.error()};
  }
  return known;
}

Result<void> BackendConnection::read_config() {
  auto config =
      named("GET_CONFIG", frontend_.get_config(0, static_cast<std::uint32_t>(config_size_)));
  if (!config) return base::Unexpected{config.error()};
  offer_.config = std::move(config).value();
  return {};
}

Result<void> BackendConnection::write_config(std::uint32_t offset,
                                             std::span<const std::byte> bytes) {
  return named("SET_CONFIG", frontend_.set_config(offset, bytes));
}

// The protocol's own bit goes back too: it makes rings wait for SET_VRING_ENABLE.
Result<void> BackendConnection::set_features(std::uint64_t features) {
  const auto own = offer_.features & virtio::feature::protocol_features;
  return named("SET_FEATURES", frontend_.set_features(features | own));
}

Result<void> BackendConnection::share(std::span<const RamRegion> memory, std::size_t shared) {
  std::vector<vhost::Frontend::Region> regions;
  for (const auto& region : memory) {
    regions.push_back({.guest_address = region.guest_address,
                       .size = region.size,
                       .user_address = reinterpret_cast<std::uintptr_t>(region.host),
                       .file_offset = region.file_offset,
                       .fd = region.file});
  }
  if (const auto ok = check_memory(regions.size()); !ok) return ok;
  if (has(protocol::configure_mem_slots)) return add_regions(regions, shared);
  return named("SET_MEM_TABLE", frontend_.set_mem_table(regions));
}

Result<void> BackendConnection::check_memory(std::size_t regions) const {
  if (regions <= offer_.memory_slots) return {};
  return base::fail("the back-end takes " + std::to_string(offer_.memory_slots) +
                    " memory regions, the guest has " + std::to_string(regions));
}

Result<void> BackendConnection::add_regions(std::span<const vhost::Frontend::Region> regions,
                                            std::size_t shared) {
  for (const auto& region : regions.subspan(shared)) {
    if (auto added = frontend_.add_mem_reg(region); !added) return named("ADD_MEM_REG", added);
  }
  return {};
}

Result<void> BackendConnection::share_inflight(InflightMemory& memory, unsigned vrings,
                                               std::uint16_t size) {
  if (!has(protocol::inflight_shmfd)) return {};
  if (!memory.fd.valid()) {
    auto got = named("GET_INFLIGHT_FD",
                     frontend_.get_inflight_fd(static_cast<std::uint16_t>(vrings), size));
    if (!got) return base::Unexpected{got.error()};
    const auto& shape = got->shape;
    struct stat file {};
    if (base::kind_of(got->fd) != base::FdKind::memory || ::fstat(got->fd.get(), &file) != 0 ||
        shape.size == 0 || shape.size > inflight_size_max || shape.queues < vrings ||
        shape.offset > static_cast<std::uint64_t>(file.st_size) ||
        shape.size > static_cast<std::uint64_t>(file.st_size) - shape.offset) {
      return base::fail("GET_INFLIGHT_FD: the back-end's region is not the memory it says");
    }
    memory = std::move(got).value();
  }
  return named("SET_INFLIGHT_FD", frontend_.set_inflight_fd(memory.shape, memory.fd.get()));
}

Result<void> BackendConnection::set_mtu(std::uint16_t mtu) {
  return has(protocol::mtu) ? named("NET_SET_MTU", frontend_.net_set_mtu(mtu)) : Result<void>{};
}

Result<void> BackendConnection::announce(std::span<const std::uint8_t, 6> mac) {
  return has(protocol::rarp) ? named("SEND_RARP", frontend_.send_rarp(mac)) : Result<void>{};
}

Result<void> BackendConnection::start(const Ring& ring) {
  const auto index = ring.vring;
  const vhost::wire::VringAddr address{.index = index,
                                       .flags = 0,
                                       .descriptors = ring.descriptors,
                                       .used = ring.device,
                                       .available = ring.driver,
                                       .log = ring.device_guest};
  auto ok = named("SET_VRING_NUM", frontend_.set_vring_num(index, ring.size));
  if (ok) ok = named("SET_VRING_BASE", frontend_.set_vring_base(index, ring.base));
  if (ok) ok = named("SET_VRING_ADDR", frontend_.set_vring_addr(address));
  if (ok) ok = named("SET_VRING_ERR", frontend_.set_vring_err(index, ring.error));
  if (ok) ok = set_call(index, ring.call);
  if (ok) ok = named("SET_VRING_KICK", frontend_.set_vring_kick(index, ring.kick));
  if (ok && (offer_.features & virtio::feature::protocol_features) != 0) {
    ok = named("SET_VRING_ENABLE", frontend_.set_vring_enable(index, true));
  }
  return ok;
}

Result<void> BackendConnection::set_call(unsigned vring, int call) {
  return named("SET_VRING_CALL", frontend_.set_vring_call(vring, call));
}

Result<void> BackendConnection::stop(unsigned vring) {
  frontend_.set_timeout(timeouts_.stop);
  const auto base = named("GET_VRING_BASE", frontend_.get_vring_base(vring));
  frontend_.set_timeout(timeouts_.reply);
  if (!base) return base::Unexpected{base.error()};
  return {};
}

Result<void> BackendConnection::set_status(std::uint8_t status) {
  return has(protocol::status) ? named("SET_STATUS", frontend_.set_status(status)) : Result<void>{};
}

Result<void> BackendConnection::reset() {
  if (has(protocol::status)) return set_status(0);
  if (!has(protocol::reset_device)) return {};
  return named("RESET_DEVICE", frontend_.reset_device());
}

// Written through the descriptor and not through a mapping, which its maker could take away.
void clear_part(const InflightMemory& memory, unsigned vring, bool packed) {
  if (!memory.fd.valid() || vring >= memory.shape.queues) return;
  const auto& shape = memory.shape;
  // The daemon's own layout, with its record behind or without; else all of it is the queues'.
  const auto room = virtio::InflightRegion::room_for(shape.queue_size);
  const auto plain = virtio::InflightRegion::size_for(shape.queues, room, packed);
  const bool keeps = shape.size == plain + virtio::KeptArea::size;
  const std::uint64_t part = (keeps ? plain : shape.size) / shape.queues;
  static constexpr std::array<std::byte, 4096> zeros{};
  for (std::uint64_t done = 0; done < part;) {
    const auto count = std::min<std::uint64_t>(part - done, zeros.size());
    const auto at = shape.offset + vring * part + done;
    const auto wrote = ::pwrite(memory.fd.get(), zeros.data(), count, static_cast<off_t>(at));
    if (wrote <= 0) return;
    done += static_cast<std::uint64_t>(wrote);
  }
}

}  // namespace millrace::vmm
