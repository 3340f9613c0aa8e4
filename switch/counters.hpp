// Counters of one switch port on one reactor; control sums them over reactors.
// Directions are the peer's: tx is what the guest (or the wire) sent into the switch.
#pragma once

#include "base/counter.hpp"

namespace millrace::vswitch {

struct PortCounters {
  base::Counter tx_packets, tx_bytes;  // entered the switch here
  base::Counter rx_packets, rx_bytes;  // delivered here
  // Drops on the way out of the switch.
  base::Counter drop_ring_full;    // the guest offers no receive buffer
  base::Counter drop_no_queue;     // nobody is connected, or no queue is enabled
  base::Counter drop_too_long;     // longer than the receiver can take
  base::Counter drop_link_full;    // the link to the receiver's reactor is full
  base::Counter drop_queue_fault;  // the receiver's queue is poisoned
  // Drops on the way in.
  base::Counter drop_malformed;  // shorter than an Ethernet header, bad offload request
  base::Counter drop_vlan;       // a tag that this port may not use
  base::Counter drop_source;     // multicast source address, or another port's static address
  base::Counter drop_reserved;   // 01:80:c2:00:00:0x, which no bridge forwards (802.1Q 8.6.3)
  base::Counter drop_isolated;   // both ports are isolated, or one is alone
  base::Counter drop_hairpin;    // the destination is the port it came from
  base::Counter filtered;        // the receiver's own driver asked not to be given it: no drop
  base::Counter learn_refused;   // the port's address quota is used up (the frame still passes)
  base::Counter segmented;       // packets segmented in software for this receiver
  base::Counter checksummed;     // checksums completed in software for this receiver
};

// Visits every counter with its published name: one list for JSON, tables and tests.
template <class Counters, class Visit>
void for_each_counter(Counters& c, Visit visit) {
  visit("tx_packets", c.tx_packets), visit("tx_bytes", c.tx_bytes);
  visit("rx_packets", c.rx_packets), visit("rx_bytes", c.rx_bytes);
  visit("drop_ring_full", c.drop_ring_full), visit("drop_no_queue", c.drop_no_queue);
  visit("drop_too_long", c.drop_too_long), visit("drop_link_full", c.drop_link_full);
  visit("drop_queue_fault", c.drop_queue_fault), visit("drop_malformed", c.drop_malformed);
  visit("drop_vlan", c.drop_vlan), visit("drop_source", c.drop_source);
  visit("drop_reserved", c.drop_reserved), visit("drop_isolated", c.drop_isolated);
  visit("drop_hairpin", c.drop_hairpin), visit("learn_refused", c.learn_refused);
  visit("filtered", c.filtered);
  visit("segmented", c.segmented), visit("checksummed", c.checksummed);
}

}  // namespace millrace::vswitch
