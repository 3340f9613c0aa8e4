// TwoPorts: the switch of one reactor with two ports whose stations it knows, without control and
// without a thread. For tests and benches of what lies on both sides of it.
#pragma once

#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "base/check.hpp"
#include "switch/fabric.hpp"
#include "switch/shard.hpp"

namespace millrace::vswitch::testing {

class TwoPorts {
 public:
  static constexpr std::array<PortId, 2> ids{5, 6};

  // `stations`: who lives at each port. `reactor` has the index 0.
  TwoPorts(base::Reactor& reactor, const std::array<Mac, 2>& stations)
      : shard_{reactor, {.addresses_max = 1024}, {Neighbour{&reactor, nullptr, nullptr}}} {
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const auto* address = reinterpret_cast<const std::byte*>(stations[i].data());
      static_cast<void>(shard_.addresses().learn(mac_key(address, 0), ids[i], 16, shard_.now()));
    }
  }
  [[nodiscard]] Bridge& bridge() noexcept { return shard_; }
  [[nodiscard]] PortCounters& counters(std::size_t port) { return counters_.at(port); }
  // What is for the port's station goes there from now on.
  void connect(const std::array<Port*, 2>& ends) {
    auto table = std::make_unique<ShardTable>();
    table->by_id.fill(ShardTable::absent);
    table->by_vlan.fill(ShardTable::absent);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const auto position = static_cast<std::uint16_t>(i);
      ShardPort port;
      port.id = ids[i];
      port.quota = 16;
      port.counters = &counters_[i];
      if (ends[i] != nullptr) {
        port.first_endpoint = static_cast<std::uint32_t>(table->endpoints.size());
        port.endpoint_count = 1;
        port.choice = Choice::only;
        Endpoint endpoint;
        endpoint.port = ends[i];
        endpoint.owner = position;
        table->endpoints.push_back(endpoint);
      }
      table->by_id[port.id] = position;
      table->ports.push_back(std::move(port));
    }
    shard_.swap_table(table);
  }

 private:
  std::array<PortCounters, 2> counters_;
  Shard shard_;
};

}  // namespace millrace::vswitch::testing
