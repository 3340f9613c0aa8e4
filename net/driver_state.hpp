// DriverState: what a driver has set up over the control queue (virtio 1.2 §5.1.6.5), as one value.
// Thread: control.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "net/call_pacer.hpp"
#include "net/control_queue.hpp"
#include "net/rss_config.hpp"
#include "net/rx_filter.hpp"

namespace millrace::net {

struct DriverState {
  unsigned pairs = 1;  // that receive, where no table says it
  std::optional<RxFilter::Mac> mac;
  RxFilter filter;
  std::optional<RssConfig> rss;  // none: flows are spread by the switch
  HashConfig hash;               // for reports
  Coalescing receive, transmit;

  // `request` was checked when it was read.
  void apply(const ControlRequest& request);
};

}  // namespace millrace::net
