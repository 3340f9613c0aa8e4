// BackendChannel: requests from us to the front-end ("Back-end message types"), over the socket
// that SET_BACKEND_REQ_FD handed over. Thread: control.
//
// One request is out at a time; changes meanwhile become one more. Replies are read as they come
// and never waited for, so a front-end that does not answer loses its notifications and nothing
// else.
#pragma once

#include <string>

#include "base/event_loop.hpp"
#include "base/fd.hpp"
#include "base/result.hpp"
#include "vhost/channel.hpp"

namespace millrace::vhost {

class BackendChannel final : private Channel::Owner {
 public:
  // `need_reply`: REPLY_ACK was acknowledged, so each request asks for an answer.
  BackendChannel(base::EventLoop& loop, base::Fd socket, bool need_reply);
  base::Result<void> open() { return channel_.open(); }

  // CONFIG_CHANGE.
  void config_changed();

 private:
  base::Result<void> on_header(const wire::Header& header) override;
  void on_message(Message message) override;
  void on_closed(const std::string& /*why*/) override {}

  Channel channel_;
  const bool need_reply_;
  bool outstanding_ = false, again_ = false;
};

}  // namespace millrace::vhost
