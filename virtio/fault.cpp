#include "virtio/fault.hpp"

namespace millrace::virtio {

const char* name_of(Fault fault) noexcept {
  switch (fault) {
    case Fault::none:
      return "none";
    case Fault::bad_queue_size:
      return "bad queue size";
    case Fault::ring_misaligned:
      return "ring misaligned";
    case Fault::ring_outside_memory:
      return "ring outside memory";
    case Fault::avail_index_jump:
      return "available index jump";
    case Fault::head_out_of_range:
      return "index out of range";
    case Fault::head_in_flight:
      return "head in flight twice";
    case Fault::chain_loop:
      return "chain loop";
    case Fault::chain_too_long:
      return "chain too long";
    case Fault::chain_order:
      return "readable after writable";
    case Fault::chain_empty:
      return "empty chain";
    case Fault::indirect_bad:
      return "bad indirect table";
    case Fault::address_outside_memory:
      return "address outside memory";
    case Fault::length_overflow:
      return "length overflow";
    case Fault::request_malformed:
      return "malformed request";
    case Fault::memory_lost:
      return "memory lost";
    case Fault::inflight_bad:
      return "bad inflight region";
    case Fault::position_bad:
      return "bad ring position";
  }
  return "unknown fault";
}

}  // namespace millrace::virtio
