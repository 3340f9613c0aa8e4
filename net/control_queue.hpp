// ControlQueue: the control virtqueue (virtio 1.2 §5.1.6.5), for front-ends that hand it over.
//
// Takes one command at a time. What changes the device is control's to do: the worker fills the
// Doorbell that it holds and sends it back; control acts, and the next Doorbell brings the answer,
// which only then becomes visible to the driver. Known here: RX (all modes), MAC TABLE_SET and
// ADDR_SET, VLAN ADD and DEL, ANNOUNCE ACK, MQ VQ_PAIRS_SET, RSS_CONFIG and HASH_CONFIG, NOTF_COAL
// TX_SET and RX_SET; everything else is answered with an error.
// Thread: the owning reactor, but for the constructor (control).
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>

#include "base/command.hpp"
#include "net/call_pacer.hpp"
#include "net/rss_config.hpp"
#include "net/rx_filter.hpp"
#include "virtio/chain.hpp"
#include "virtio/queue.hpp"

namespace millrace::net {

// What a driver asks control to do.
struct ControlRequest {
  enum class Kind : std::uint8_t {
    none,
    set_pairs,
    set_mac,
    set_mode,
    set_addresses,
    set_vlan,
    set_rss,
    set_hash,  // of `rss` the hash only
    set_receive_coalescing,
    set_transmit_coalescing,
  };
  Kind kind = Kind::none;
  std::uint16_t number = 0;  // pairs; or a VLAN
  std::uint8_t mode = 0;     // a command of class RX
  bool on = false;           // that mode, or that VLAN
  std::array<std::uint8_t, 6> mac{};
  RxFilter::Addresses stations{}, groups{};
  RssConfig rss{};
  Coalescing coalescing{};
};

class ControlQueue final : public virtio::QueueWorker {
 public:
  // Goes to the reactor with the answer to the request before (if there was one) and waits there
  // for the next. Comes back with `request`; kind none: the queue is stopping, send no other.
  class Doorbell final : public base::Command {
   public:
    using Act = std::function<void(const ControlRequest&)>;  // control
    Doorbell(ControlQueue& worker, bool accepted, Act act)
        : worker_{worker}, accepted_{accepted}, act_{std::move(act)} {}
    base::Progress run(base::Reactor&) noexcept override { return worker_.take_doorbell(*this); }
    void done() override { act_(request_); }

   private:
    friend class ControlQueue;
    ControlQueue& worker_;
    bool accepted_;
    Act act_;
    ControlRequest request_;
  };

  // `features`: negotiated. `pairs`: the most that may be asked for.
  ControlQueue(std::unique_ptr<virtio::Queue> queue, std::uint64_t features, unsigned pairs);

  bool poll() noexcept override;
  bool arm() noexcept override;
  void disarm() noexcept override;
  [[nodiscard]] bool may_rest() const noexcept override { return !waiting_; }

  [[nodiscard]] bool can_move() const noexcept override { return true; }
  void attached(base::Reactor& reactor) noexcept override;
  void enabled_changed(bool) noexcept override {}
  void quiesce() noexcept override;
  // False while control works on a command: its buffer is in flight.
  [[nodiscard]] bool drained() noexcept override { return doorbell_ == nullptr && !waiting_; }
  [[nodiscard]] bool memory_released() noexcept override { return !waiting_; }
  void detached(base::Reactor& reactor) noexcept override;

 private:
  enum class Verdict { ok, error, control };

  base::Progress take_doorbell(Doorbell& doorbell) noexcept;
  [[nodiscard]] bool ready() noexcept;
  template <class R>
  bool visit(R& ring) noexcept;
  // Reads the command in chain_; fills request_ where control must act.
  [[nodiscard]] Verdict read() noexcept;
  [[nodiscard]] Verdict read_pairs() noexcept;
  [[nodiscard]] Verdict read_mac() noexcept;
  [[nodiscard]] Verdict read_mode(std::uint8_t command) noexcept;
  [[nodiscard]] Verdict read_addresses() noexcept;
  [[nodiscard]] Verdict read_vlan(bool add) noexcept;
  [[nodiscard]] Verdict read_steering(bool whole) noexcept;
  [[nodiscard]] Verdict read_coalescing(bool transmit) noexcept;
  // Writes the acknowledgement of chain_, gives it back and calls the driver.
  void answer(bool accepted) noexcept;

  const std::uint64_t features_;
  const unsigned pairs_;
  base::Reactor* reactor_ = nullptr;
  Doorbell* doorbell_ = nullptr;
  bool waiting_ = false;  // chain_ is in flight: control decides
  bool quiesced_ = false;
  ControlRequest request_;
  virtio::Chain chain_;
};

}  // namespace millrace::net
