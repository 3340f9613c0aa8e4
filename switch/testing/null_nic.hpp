// NullNic: an ethdev that takes every frame and forgets it, whose driver says that it is done with
// all of them, or with none. One at a time. Needs an EAL that was started. Thread: control.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "switch/ethdev_device.hpp"

namespace millrace::vswitch::testing {

class NullNic {
 public:
  NullNic();
  // Its queue, with zero copy from `zero_copy_min` bytes on; 0: none.
  [[nodiscard]] EthdevQueueConfig queue(std::uint32_t zero_copy_min) const;

  static constexpr std::uint16_t ring = 1024;
  // Whether it is done with what it was sent; how often it was asked. Any thread.
  inline static std::atomic<bool> done{true};
  inline static std::atomic<std::uint64_t> asked{0};

 private:
  std::unique_ptr<EthdevDevice> device_;
};

}  // namespace millrace::vswitch::testing
