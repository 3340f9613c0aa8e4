// TwoQueues: a guest's transmit queue and another guest's receive queue, on a reactor that does not
// run, each with its side of a switch. The test is that reactor.
#pragma once

#include <memory>

#include "net/rx_port.hpp"
#include "net/testing/fakes.hpp"
#include "net/testing/guest_ring.hpp"
#include "net/tx_worker.hpp"

namespace millrace::net::testing {

struct TwoQueues {
  struct Config {
    std::uint64_t sender = 0, receiver = 0;  // features
    std::uint32_t size = 256;                // of each ring
    bool tracked = false;                    // with inflight regions
  };
  // `port`: the sender's.
  TwoQueues(const Config& config, vswitch::PortId port, SwitchSide from, SwitchSide to)
      : sending{config.sender, config.size},
        receiving{config.receiver, config.size},
        sender_side_{from},
        receiver_side_{to} {
    if (config.tracked) sending.track(), receiving.track();
    tx = std::make_unique<TxWorker>(sending.open(1, true), config.sender, port,
                                    SwitchSides{&sender_side_, 1});
    rx = std::make_unique<RxPort>(receiving.open(0, true), config.receiver, std::uint16_t{0},
                                  SwitchSides{&receiver_side_, 1});
    tx->attached(still_reactor());
    rx->attached(still_reactor());
  }
  ~TwoQueues() {
    tx->detached(still_reactor());
    rx->detached(still_reactor());
  }
  TwoQueues(const TwoQueues&) = delete;
  TwoQueues& operator=(const TwoQueues&) = delete;

  GuestRing sending, receiving;
  std::unique_ptr<TxWorker> tx;
  std::unique_ptr<RxPort> rx;

 private:
  SwitchSide sender_side_, receiver_side_;
};

}  // namespace millrace::net::testing
