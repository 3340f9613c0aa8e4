// FabricState: an endpoint moves; the steps are in endpoint_move.hpp.
#include <utility>

#include "switch/fabric_state.hpp"

namespace millrace::vswitch {

void FabricState::begin_move(PortId id, unsigned slot, unsigned reactor, Fabric::Handed go) {
  // The number of the next table names one move, so one begins after the other.
  if (move_begins) {
    waiting_moves.push_back([this, id, slot, reactor, go = std::move(go)]() mutable {
      begin_move(id, slot, reactor, std::move(go));
    });
    return;
  }
  move_begins = true;
  PortState& port = *ports.at(id);
  PortState::Place& place = port.endpoints.at(slot);
  CHECK(!place.moving && place.reactor != reactor && reactor < pool.size());
  auto move = std::make_shared<EndpointMove>(*shards[place.reactor], *shards[reactor],
                                             pool.at(place.reactor), *place.port,
                                             port.counters[reactor].counters, pool.size());
  const auto next_number = static_cast<std::uint16_t>(table_number + 1);
  place.moving = PortState::Moving{reactor, next_number, false, move};
  // Both owners have to know before anybody sends to the new one: a flood that is for others at the
  // old owner reaches that one, too.
  const auto known = when_all(2, [this, id, slot, move, go = std::move(go)] {
    redirect(id, slot, move);
    go(move);
  });
  publish_to(place.reactor, {}, known);
  publish_to(reactor, {}, known);
}

// The old owner's answer is not waited for: all that is asked of it comes after its new table.
void FabricState::redirect(PortId id, unsigned slot, const std::shared_ptr<EndpointMove>& move) {
  ports.at(id)->endpoints.at(slot).moving->redirected = true;
  ++table_number;
  publish([move](Shard&) { move->redirected(); }, {});
  move_begins = false;
  if (waiting_moves.empty()) return;
  const auto next = std::move(waiting_moves.front());
  waiting_moves.pop_front();
  next();
}

void FabricState::end_move(PortId id, unsigned slot, Done done) {
  PortState::Place& place = ports.at(id)->endpoints.at(slot);
  CHECK(place.moving && place.moving->redirected);
  place.reactor = place.moving->to;
  // Until every table is without it.
  const auto move = std::move(place.moving->move);
  place.moving.reset();
  publish({}, [move, done = std::move(done)] {
    if (done) done();
  });
}

}  // namespace millrace::vswitch
