// Session: the messages it knows, one row each.
#include <algorithm>

#include "vhost/session.hpp"

namespace millrace::vhost {

const Session::Rule* Session::rule_of(std::uint32_t request) {
  using R = wire::Request;
  using S = Session;
  using enum Rule::Reply;
  namespace p = wire::protocol;
  static constexpr Range none{0, 0}, one{1, 1}, one_at_most{0, 1};
  static constexpr Range regions{0, wire::message_fds_max};
  static constexpr Range u64{8, 8}, state{8, 8}, address{40, 40}, log{16, 16}, single{40, 40};
  static constexpr Range table{8, wire::payload_max};
  static constexpr Range config{12, 12 + wire::config_bytes_max};
  static constexpr Range inflight{wire::inflight_size_min, sizeof(wire::Inflight)};
  constexpr auto slots = p::configure_mem_slots, shm = p::inflight_shmfd;
  // clang-format off
  static constexpr Rule rules[] = {
      // request, name, payload, descriptors, needs, reply, handler
      {R::get_features, "GET_FEATURES", none, none, 0, value, &S::get_features},
      {R::set_features, "SET_FEATURES", u64, none, 0, if_asked, &S::set_features},
      {R::set_owner, "SET_OWNER", none, none, 0, if_asked, &S::set_owner},
      {R::reset_owner, "RESET_OWNER", none, none, 0, if_asked, &S::reset},
      {R::set_mem_table, "SET_MEM_TABLE", table, regions, 0, if_asked, &S::set_mem_table},
      {R::set_log_base, "SET_LOG_BASE", log, one, p::log_shmfd, always, &S::set_log_base},
      {R::set_log_fd, "SET_LOG_FD", none, one, 0, if_asked, &S::set_log_fd},
      {R::set_vring_num, "SET_VRING_NUM", state, none, 0, if_asked, &S::set_vring_num},
      {R::set_vring_addr, "SET_VRING_ADDR", address, none, 0, if_asked, &S::set_vring_addr},
      {R::set_vring_base, "SET_VRING_BASE", state, none, 0, if_asked, &S::set_vring_base},
      {R::get_vring_base, "GET_VRING_BASE", state, none, 0, value, &S::get_vring_base},
      {R::set_vring_kick, "SET_VRING_KICK", u64, one_at_most, 0, if_asked, &S::set_vring_kick},
      {R::set_vring_call, "SET_VRING_CALL", u64, one_at_most, 0, if_asked, &S::set_vring_call},
      {R::set_vring_err, "SET_VRING_ERR", u64, one_at_most, 0, if_asked, &S::set_vring_err},
      {R::get_protocol_features, "GET_PROTOCOL_FEATURES", none, none, 0, value,
       &S::get_protocol_features},
      {R::set_protocol_features, "SET_PROTOCOL_FEATURES", u64, none, 0, if_asked,
       &S::set_protocol_features},
      {R::get_queue_num, "GET_QUEUE_NUM", none, none, p::mq, value, &S::get_queue_num},
      {R::set_vring_enable, "SET_VRING_ENABLE", state, none, 0, if_asked, &S::set_vring_enable},
      {R::send_rarp, "SEND_RARP", u64, none, p::rarp, if_asked, &S::send_rarp},
      {R::net_set_mtu, "NET_SET_MTU", u64, none, p::mtu, if_asked, &S::net_set_mtu},
      {R::set_backend_req_fd, "SET_BACKEND_REQ_FD", none, one, p::backend_req, if_asked,
       &S::set_backend_req_fd},
      {R::get_config, "GET_CONFIG", config, none, p::config, value, &S::get_config},
      {R::set_config, "SET_CONFIG", config, none, p::config, if_asked, &S::set_config},
      {R::get_inflight_fd, "GET_INFLIGHT_FD", inflight, none, shm, value, &S::get_inflight_fd},
      {R::set_inflight_fd, "SET_INFLIGHT_FD", inflight, one, shm, if_asked, &S::set_inflight_fd},
      {R::reset_device, "RESET_DEVICE", none, none, p::reset_device, if_asked, &S::reset},
      {R::get_max_mem_slots, "GET_MAX_MEM_SLOTS", none, none, slots, value, &S::get_max_mem_slots},
      {R::add_mem_reg, "ADD_MEM_REG", single, one, slots, if_asked, &S::add_mem_reg},
      // A descriptor with it is against the rules and common: it is closed and otherwise ignored.
      {R::rem_mem_reg, "REM_MEM_REG", single, one_at_most, slots, if_asked, &S::rem_mem_reg},
      {R::set_status, "SET_STATUS", u64, none, p::status, if_asked, &S::set_status},
      {R::get_status, "GET_STATUS", none, none, p::status, value, &S::get_status},
  };
  // clang-format on
  const auto* found = std::ranges::find_if(rules, [request](const Rule& rule) {
    return static_cast<std::uint32_t>(rule.request) == request;
  });
  return found == std::end(rules) ? nullptr : found;
}

}  // namespace millrace::vhost
