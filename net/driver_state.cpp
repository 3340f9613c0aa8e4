#include "net/driver_state.hpp"

#include "base/check.hpp"

namespace millrace::net {

void DriverState::apply(const ControlRequest& request) {
  using Kind = ControlRequest::Kind;
  switch (request.kind) {
    case Kind::none:
      break;
    case Kind::set_pairs:
      pairs = request.number;
      rss.reset();  // the device steers by itself again (§5.1.6.5.5)
      break;
    case Kind::set_mac:
      mac = request.mac;
      filter.set_own(mac);
      break;
    case Kind::set_mode:
      CHECK(filter.set_mode(request.mode, request.on));
      break;
    case Kind::set_addresses:
      filter.set_addresses(request.stations, request.groups);
      break;
    case Kind::set_vlan:
      CHECK(filter.set_vlan(request.number, request.on));
      break;
    case Kind::set_rss:
      rss = request.rss;
      hash = request.rss.hash;
      break;
    case Kind::set_hash:
      hash = request.rss.hash;
      break;
    case Kind::set_receive_coalescing:
      receive = request.coalescing;
      break;
    case Kind::set_transmit_coalescing:
      transmit = request.coalescing;
      break;
  }
}

}  // namespace millrace::net
