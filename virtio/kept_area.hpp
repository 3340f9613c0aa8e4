// KeptArea: a small record that outlives this process, in memory that somebody else holds (behind
// the inflight region, so a front-end). Whoever kills us at whatever instruction, what is found
// afterwards is the record that was stored last or the one before it, whole: two slots are written
// in turn, each with a number and a checksum. Its contents are the front-end's word and never
// trusted. Thread: control.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/mapping.hpp"

namespace millrace::virtio {

class KeptArea {
 public:
  static constexpr std::size_t slot_size = 4096, slots = 2;
  static constexpr std::uint64_t size = slots * slot_size;
  static constexpr std::size_t record_max = slot_size - 32;

  // `size` bytes at `offset` of `mapping`, a multiple of 8 that lies inside; zero when they are
  // new.
  KeptArea(std::shared_ptr<const base::Mapping> mapping, std::uint64_t offset);

  // At most record_max bytes; none: there is no record any more.
  void store(std::span<const std::byte> record);
  // The record that was stored last; empty where there is none.
  [[nodiscard]] std::vector<std::byte> load();

 private:
  [[nodiscard]] std::byte* slot(std::uint64_t number) const;

  std::shared_ptr<const base::Mapping> mapping_;
  std::byte* data_;
  std::uint64_t last_ = 0;  // number of the newest record
};

}  // namespace millrace::virtio
