#include "vhost/backend_channel.hpp"

#include <utility>

namespace millrace::vhost {

BackendChannel::BackendChannel(base::EventLoop& loop, base::Fd socket, bool need_reply)
    : channel_{loop, std::move(socket), *this, 0}, need_reply_{need_reply} {}

void BackendChannel::config_changed() {
  if (!channel_.open_for_messages()) return;
  if (outstanding_) {
    again_ = true;
    return;
  }
  outstanding_ = need_reply_;
  channel_.send({.request = static_cast<std::uint32_t>(wire::BackendRequest::config_change),
                 .flags = wire::version | (need_reply_ ? wire::flag_need_reply : 0u),
                 .size = 0},
                {});
}

base::Result<void> BackendChannel::on_header(const wire::Header& header) {
  if ((header.flags & wire::version_mask) != wire::version ||
      (header.flags & wire::flag_reply) == 0 || header.size != sizeof(std::uint64_t) ||
      header.request != static_cast<std::uint32_t>(wire::BackendRequest::config_change) ||
      !outstanding_) {
    return base::fail("not the reply to a request of ours");
  }
  return {};
}

void BackendChannel::on_message(Message /*message*/) {
  outstanding_ = false;
  if (std::exchange(again_, false)) config_changed();
}

}  // namespace millrace::vhost
