// BackendConnection: one connection to a vhost-user back-end, from the negotiation to the hang-up,
// as steps that block until the back-end has answered. BackendLink decides which step comes when.
//
// Every step ends at a deadline and fails with one line. refused() then says whether the back-end
// answered "no"; after any other failure the connection is of no use.
// vhost-user: "Communication", "Ring states", "Inflight I/O tracking". Thread: one.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "vhost/frontend.hpp"
#include "vmm/device_shape.hpp"
#include "vmm/ram.hpp"

namespace millrace::vmm {

// What keeps a back-end's requests in flight over its death: its memory, in our hands.
using InflightMemory = vhost::Frontend::Inflight;

class BackendConnection {
 public:
  struct Timeouts {
    std::chrono::milliseconds reply{10'000};
    // A ring stops when its last request is done, and a disk may take its time.
    std::chrono::milliseconds stop{60'000};
  };
  struct Ring {
    unsigned vring = 0;
    std::uint16_t size = 0;
    std::uint64_t descriptors = 0, driver = 0, device = 0;  // our own addresses
    std::uint64_t device_guest = 0;                         // of `device`, for a dirty log
    std::uint32_t base = 0;
    int kick = -1, call = -1, error = -1;
  };

  // Negotiates on a connected socket. `config_size`: bytes to ask for. `cancel`: see Frontend.
  static base::Result<std::unique_ptr<BackendConnection>> negotiate(base::Fd socket,
                                                                    std::size_t config_size,
                                                                    const Timeouts& timeouts,
                                                                    int cancel);

  // From now on waits end when this descriptor is readable.
  void set_cancel(int fd);
  [[nodiscard]] const BackendOffer& offer() const { return offer_; }
  [[nodiscard]] bool has(std::uint64_t protocol_feature) const {
    return (offer_.protocol & protocol_feature) != 0;
  }
  [[nodiscard]] bool refused() const { return frontend_.refused(); }
  // Readable when the back-end hung up, or sent what nobody asked for.
  [[nodiscard]] int fd() const { return frontend_.fd(); }
  [[nodiscard]] bool peer_is_gone() const;
  // Readable when the back-end has a request; -1: it can have none.
  [[nodiscard]] int request_fd() const { return requests_ ? requests_->fd() : -1; }

  // Takes one request and answers it. True: the configuration changed.
  base::Result<bool> take_request();
  // Asks again for the configuration space.
  base::Result<void> read_config();
  base::Result<void> write_config(std::uint32_t offset, std::span<const std::byte> bytes);

  // Whether the back-end has room for so many regions of memory; the error says how much it has.
  [[nodiscard]] base::Result<void> check_memory(std::size_t regions) const;
  base::Result<void> set_features(std::uint64_t features);
  // Hands the guest's memory over, of which the back-end has the first `shared` regions.
  base::Result<void> share(std::span<const RamRegion> memory, std::size_t shared = 0);
  // Hands the region over, and gets one first where there is none. Nothing without the feature.
  base::Result<void> share_inflight(InflightMemory& memory, unsigned vrings, std::uint16_t size);
  base::Result<void> set_mtu(std::uint16_t mtu);
  base::Result<void> announce(std::span<const std::uint8_t, 6> mac);
  base::Result<void> start(const Ring& ring);
  base::Result<void> set_call(unsigned vring, int call);
  // Returns when the back-end has done with the ring's last buffer.
  base::Result<void> stop(unsigned vring);
  // The driver's status, where the back-end wants to know it.
  base::Result<void> set_status(std::uint8_t status);
  // Back to how a device is before a driver comes.
  base::Result<void> reset();

 private:
  BackendConnection(base::Fd socket, const Timeouts& timeouts, int cancel);
  base::Result<void> negotiate_protocol(std::size_t config_size);
  base::Result<void> open_requests(int cancel);
  base::Result<void> add_regions(std::span<const vhost::Frontend::Region> regions,
                                 std::size_t shared);

  vhost::Frontend frontend_;
  std::unique_ptr<vhost::Frontend> requests_;  // our end of the back-end's own channel
  Timeouts timeouts_;
  int cancel_;
  BackendOffer offer_;
  std::size_t config_size_ = 0;
};

// The queue's part of the region becomes as new: the driver begins it anew. What a back-end keeps
// behind the queues' parts stays. `packed`: RING_PACKED was negotiated.
void clear_part(const InflightMemory& memory, unsigned vring, bool packed);

}  // namespace millrace::vmm
