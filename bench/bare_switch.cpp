#include "bench/bare_switch.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/clock.hpp"
#include "bench/net_ends.hpp"
#include "bench/pin.hpp"
#include "virtio/shared.hpp"

namespace millrace::bench {

namespace wire = virtio::wire;

namespace {

constexpr unsigned burst_max = 32;
constexpr std::size_t line = 64;

// The device's side of one split ring, for as many buffers at a time as the other end has, too.
class Ring {
 public:
  Ring(SocketGuest& guest, unsigned ring)
      : guest_{guest}, mask_{static_cast<std::uint16_t>(guest.ring(ring).size - 1)} {
    const auto& at = guest.ring(ring);
    table_ = reinterpret_cast<const wire::Descriptor*>(guest.at(at.descriptors));
    available_ = reinterpret_cast<const wire::Available*>(guest.at(at.available));
    heads_ = reinterpret_cast<const base::le16*>(available_ + 1);
    used_ = reinterpret_cast<wire::Used*>(guest.at(at.used));
    elements_ = reinterpret_cast<wire::UsedElement*>(used_ + 1);
    virtio::store_once(&used_->flags, base::le16{wire::used_no_notify});
  }
  // How many buffers there are, up to `most`. Looks again only where fewer are known.
  unsigned ready(unsigned most) {
    if (static_cast<std::uint16_t>(seen_ - next_) < most) {
      seen_ = virtio::load_acquire(&available_->index).host();
    }
    return std::min<unsigned>(static_cast<std::uint16_t>(seen_ - next_), most);
  }
  // The next `count` ones: first their descriptors are asked for, then the buffers.
  void ask_for_descriptors(unsigned count) const {
    for (unsigned i = 0; i < count; ++i) __builtin_prefetch(&table_[head(i)]);
  }
  template <int Write>
  void ask_for_buffers(unsigned count, std::size_t bytes) const {
    for (unsigned i = 0; i < count; ++i) {
      const auto* const data = buffer(i);
      for (std::size_t at = 0; at < bytes; at += line) __builtin_prefetch(data + at, Write);
    }
  }
  [[nodiscard]] std::byte* buffer(unsigned i) const {
    return guest_.at(table_[head(i)].address.host());
  }
  [[nodiscard]] std::uint32_t length(unsigned i) const { return table_[head(i)].length.host(); }
  void use(unsigned i, std::uint32_t bytes) {
    elements_[static_cast<std::uint16_t>(next_ + i) & mask_] = {base::le32{head(i)},
                                                                base::le32{bytes}};
  }
  void give(unsigned count) {
    next_ = static_cast<std::uint16_t>(next_ + count);
    virtio::store_release(&used_->index, base::le16{next_});
  }

 private:
  [[nodiscard]] std::uint16_t head(unsigned i) const {
    return heads_[static_cast<std::uint16_t>(next_ + i) & mask_].host();
  }

  SocketGuest& guest_;
  const std::uint16_t mask_;
  const wire::Descriptor* table_;
  const wire::Available* available_;
  const base::le16* heads_;
  wire::Used* used_;
  wire::UsedElement* elements_;
  std::uint16_t next_ = 0, seen_ = 0;
};

// One burst from `from` to `to`. Answers how many frames.
unsigned move(Ring& from, Ring& to) {
  constexpr std::size_t near = 2 * line;  // of a buffer; the processor sees to the rest by itself
  const auto count = to.ready(from.ready(burst_max));
  if (count == 0) return 0;
  from.ask_for_descriptors(count);
  to.ask_for_descriptors(count);
  from.ask_for_buffers<0>(count, near);
  to.ask_for_buffers<1>(count, near);
  for (unsigned i = 0; i < count; ++i) {
    const auto bytes = std::min(from.length(i), to.length(i));
    std::memcpy(to.buffer(i), from.buffer(i), bytes);
    to.use(i, bytes);
    from.use(i, 0);
  }
  to.give(count);
  from.give(count);
  return count;
}

}  // namespace

base::Result<std::unique_ptr<BareSwitch>> BareSwitch::start(SocketGuest& from, SocketGuest& to,
                                                            int core) {
  auto made = std::unique_ptr<BareSwitch>(new BareSwitch);
  made->thread_ = std::jthread{[&from, &to, self = made.get()](const std::stop_token& stop) {
    Ring out{from, tx_ring}, in{to, rx_ring};
    auto begun = base::cycles();
    while (!stop.stop_requested()) {
      const auto count = move(out, in);
      const auto now = base::cycles();
      if (count > 0) self->busy_cycles_.add(now - begun), self->frames_.add(count);
      begun = now;
    }
  }};
  if (auto ok = pin(made->thread_, core); !ok) return base::Unexpected{ok.error()};
  return made;
}

}  // namespace millrace::bench
