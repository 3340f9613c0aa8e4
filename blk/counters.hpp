// QueueStatistics: what one queue of a disk counts. Writer: the reactor that owns the queue;
// readers: any. It belongs to the device, so that a queue's restart loses nothing.
#pragma once

#include "base/counter.hpp"
#include "base/histogram.hpp"

namespace millrace::blk {

struct QueueStatistics {
  base::Counter read_requests, read_bytes, write_requests, write_bytes;
  base::Counter flush_requests, discard_requests, zero_requests;
  base::Counter io_errors, unsupported;  // by the status that the driver got
  base::Counter in_flight;               // taken and not yet given back
  base::Counter oldest_cycles;           // when the oldest of those was taken (TSC); 0: none
  base::Counter bounced;                 // transfers through a bounce buffer
  base::Counter buffered;                // transfers past O_DIRECT because they are not aligned
  base::Counter pinned;                  // transfers with registered buffers
  base::Counter polled;                  // transfers whose completion is polled for
  base::Histogram latency;               // taken to given back, ns
};

}  // namespace millrace::blk
