#include "bench/free_device.hpp"

#include "bench/pin.hpp"
#include "virtio/shared.hpp"
#include "virtio/wire/net.hpp"

namespace millrace::bench {

namespace wire = virtio::wire;

namespace {

// The device's side of one split ring.
class Giver {
 public:
  Giver(SocketGuest& guest, unsigned ring, std::uint32_t length)
      : mask_{static_cast<std::uint16_t>(guest.ring(ring).size - 1)}, length_{length} {
    const auto& at = guest.ring(ring);
    available_ = reinterpret_cast<wire::Available*>(guest.at(at.available));
    heads_ = reinterpret_cast<base::le16*>(available_ + 1);
    used_ = reinterpret_cast<wire::Used*>(guest.at(at.used));
    elements_ = reinterpret_cast<wire::UsedElement*>(used_ + 1);
    virtio::store_once(&used_->flags, base::le16{wire::used_no_notify});
  }
  void give() {
    const auto end = virtio::load_acquire(&available_->index).host();
    if (end == next_) return;
    for (; next_ != end; ++next_) {
      elements_[next_ & mask_] = {base::le32{heads_[next_ & mask_].host()}, base::le32{length_}};
    }
    virtio::store_release(&used_->index, base::le16{next_});
  }

 private:
  const std::uint16_t mask_;
  const std::uint32_t length_;
  wire::Available* available_;
  base::le16* heads_;
  wire::Used* used_;
  wire::UsedElement* elements_;
  std::uint16_t next_ = 0;
};

}  // namespace

base::Result<std::unique_ptr<FreeDevice>> FreeDevice::start(SocketGuest& guest, std::uint32_t frame,
                                                            int core) {
  auto device = std::unique_ptr<FreeDevice>(new FreeDevice);
  const auto received = static_cast<std::uint32_t>(sizeof(wire::NetHeader)) + frame;
  device->thread_ = std::jthread{[&guest, received](const std::stop_token& stop) {
    Giver rx{guest, 0, received}, tx{guest, 1, 0};
    while (!stop.stop_requested()) {
      rx.give();
      tx.give();
    }
  }};
  if (auto ok = pin(device->thread_, core); !ok) return base::Unexpected{ok.error()};
  return device;
}

}  // namespace millrace::bench
