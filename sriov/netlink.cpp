#include "sriov/netlink.hpp"

#include <arpa/inet.h>
#include <libmnl/libmnl.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <net/if.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.hpp"

namespace millrace::sriov {

namespace {

// A request of ours is under 200 bytes. An answer has some 250 bytes a function, and netlink's
// nested attributes end at 64 KiB.
constexpr std::size_t request_max = 512, answer_max = 256 * 1024;

nlmsghdr* begin(std::span<std::byte> buffer, std::uint16_t type, std::uint16_t flags,
                unsigned link) {
  auto* header = mnl_nlmsg_put_header(buffer.data());
  header->nlmsg_type = type;
  header->nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | flags);
  auto* info = static_cast<ifinfomsg*>(mnl_nlmsg_put_extra_header(header, sizeof(ifinfomsg)));
  info->ifi_family = AF_UNSPEC;
  info->ifi_index = static_cast<int>(link);
  return header;
}

void put(nlmsghdr* header, unsigned vf, const Mac& mac) {
  ifla_vf_mac value{};
  value.vf = vf;
  std::ranges::copy(mac, value.mac);
  mnl_attr_put(header, IFLA_VF_MAC, sizeof(value), &value);
}
void put(nlmsghdr* header, unsigned vf, const Vlan& vlan) {
  if (!vlan.service_tag) {
    const ifla_vf_vlan value{vf, vlan.id, vlan.qos};
    return mnl_attr_put(header, IFLA_VF_VLAN, sizeof(value), &value);
  }
  auto* list = mnl_attr_nest_start(header, IFLA_VF_VLAN_LIST);
  const ifla_vf_vlan_info value{vf, vlan.id, vlan.qos, htons(ETH_P_8021AD)};
  mnl_attr_put(header, IFLA_VF_VLAN_INFO, sizeof(value), &value);
  mnl_attr_nest_end(header, list);
}
void put(nlmsghdr* header, unsigned vf, const Rate& rate) {
  const ifla_vf_rate value{vf, rate.min, rate.max};
  mnl_attr_put(header, IFLA_VF_RATE, sizeof(value), &value);
}
void put(nlmsghdr* header, unsigned vf, const SpoofCheck& check) {
  const ifla_vf_spoofchk value{vf, check.on ? 1u : 0u};
  mnl_attr_put(header, IFLA_VF_SPOOFCHK, sizeof(value), &value);
}
void put(nlmsghdr* header, unsigned vf, const Trust& trust) {
  const ifla_vf_trust value{vf, trust.on ? 1u : 0u};
  mnl_attr_put(header, IFLA_VF_TRUST, sizeof(value), &value);
}
void put(nlmsghdr* header, unsigned vf, const LinkState& link) {
  const ifla_vf_link_state value{vf, static_cast<std::uint32_t>(link)};
  mnl_attr_put(header, IFLA_VF_LINK_STATE, sizeof(value), &value);
}

// Calls `see` with each attribute of the `size` bytes at `begin`. libmnl's own macros for this are
// C.
template <class See>
void each_attribute(const void* begin, std::size_t size, See see) {
  const char* const bytes = static_cast<const char*>(begin);
  std::size_t at = 0;
  while (at < size) {
    const auto* attribute = reinterpret_cast<const nlattr*>(bytes + at);
    if (!mnl_attr_ok(attribute, static_cast<int>(size - at))) return;
    see(*attribute);
    at += MNL_ALIGN(attribute->nla_len);
  }
}
template <class See>
void each_nested(const nlattr& outer, See see) {
  each_attribute(mnl_attr_get_payload(&outer), mnl_attr_get_payload_len(&outer), see);
}

// The attribute's value as a structure; false: it is too short.
template <class Value>
bool get(const nlattr& attribute, Value& out) {
  if (mnl_attr_get_payload_len(&attribute) < sizeof(out)) return false;
  std::memcpy(&out, mnl_attr_get_payload(&attribute), sizeof(out));
  return true;
}

// A driver that does not know says -1, which the kernel passes on as it is.
std::optional<bool> switch_of(std::uint32_t setting) {
  return setting > 1 ? std::nullopt : std::optional{setting == 1};
}

void read_vlan_list(const nlattr& list, VfValues& out) {
  each_nested(list, [&out](const nlattr& each) {
    ifla_vf_vlan_info vlan{};
    if (mnl_attr_get_type(&each) != IFLA_VF_VLAN_INFO || out.vlan || !get(each, vlan)) return;
    out.vlan = Vlan{static_cast<std::uint16_t>(vlan.vlan), static_cast<std::uint8_t>(vlan.qos),
                    vlan.vlan_proto == htons(ETH_P_8021AD)};
  });
}

// Of a value that one attribute has; true: it was this one.
template <class Wire, class Take>
bool take(const nlattr& attribute, int type, Take take_it) {
  Wire wire{};
  if (mnl_attr_get_type(&attribute) != type || !get(attribute, wire)) return false;
  take_it(wire);
  return true;
}

// One IFLA_VF_INFO: a function's number and values.
void read_function(const nlattr& info, std::vector<VfValues>& functions) {
  VfValues values;
  std::optional<std::uint32_t> index;
  each_nested(info, [&](const nlattr& each) {
    if (mnl_attr_get_type(&each) == IFLA_VF_VLAN_LIST) read_vlan_list(each, values);
    take<ifla_vf_mac>(each, IFLA_VF_MAC, [&](const auto& mac) {
      index = mac.vf;
      values.mac.emplace();
      std::copy_n(mac.mac, values.mac->size(), values.mac->begin());
    });
    take<ifla_vf_rate>(each, IFLA_VF_RATE, [&](const auto& rate) {
      values.rate = Rate{rate.min_tx_rate, rate.max_tx_rate};
    });
    take<ifla_vf_spoofchk>(each, IFLA_VF_SPOOFCHK, [&](const auto& check) {
      if (const auto on = switch_of(check.setting)) values.spoof_check = SpoofCheck{*on};
    });
    take<ifla_vf_trust>(each, IFLA_VF_TRUST, [&](const auto& trust) {
      if (const auto on = switch_of(trust.setting)) values.trust = Trust{*on};
    });
    take<ifla_vf_link_state>(each, IFLA_VF_LINK_STATE, [&](const auto& link) {
      if (link.link_state <= 2) values.link = static_cast<LinkState>(link.link_state);
    });
  });
  if (index && *index == functions.size()) functions.push_back(values);  // they come in order
}

// What an error message says: the kernel's number and, where it has more to say, its words.
std::string refusal(const nlmsghdr* header, int error) {
  std::string out = std::strerror(error);
  if ((header->nlmsg_flags & NLM_F_ACK_TLVS) == 0) return out;
  const auto* payload = static_cast<const char*>(mnl_nlmsg_get_payload(header));
  const auto* body = static_cast<const nlmsgerr*>(mnl_nlmsg_get_payload(header));
  // the request comes back between the two, where the kernel was not asked to leave it out
  std::size_t offset = sizeof(nlmsgerr);
  if ((header->nlmsg_flags & NLM_F_CAPPED) == 0) {
    offset += MNL_ALIGN(mnl_nlmsg_get_payload_len(&body->msg));
  }
  const std::size_t size = mnl_nlmsg_get_payload_len(header);
  if (offset >= size) return out;
  each_attribute(payload + offset, size - offset, [&out](const nlattr& each) {
    if (mnl_attr_get_type(&each) != NLMSGERR_ATTR_MSG) return;
    if (mnl_attr_validate(&each, MNL_TYPE_NUL_STRING) < 0) return;
    out += std::string{" ("} + mnl_attr_get_str(&each) + ")";
  });
  return out;
}

base::Result<unsigned> index_of(const std::string& netdev) {
  const unsigned index = ::if_nametoindex(netdev.c_str());
  if (index == 0) return base::fail_errno("network interface " + netdev);
  return index;
}

}  // namespace

void Netlink::Close::operator()(mnl_socket* socket) const {
  mnl_socket_close(socket);
}

Netlink::Netlink(Socket socket) : socket_{std::move(socket)}, answer_(answer_max) {}

base::Result<Netlink> Netlink::open() {
  Socket socket{mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC)};
  if (!socket || mnl_socket_bind(socket.get(), 0, MNL_SOCKET_AUTOPID) < 0) {
    return base::fail_errno("cannot open a netlink socket");
  }
  int on = 1;
  // for words with an error, which a kernel before 4.12 has not: nothing depends on them
  (void)mnl_socket_setsockopt(socket.get(), NETLINK_EXT_ACK, &on, sizeof(on));
  (void)mnl_socket_setsockopt(socket.get(), NETLINK_CAP_ACK, &on, sizeof(on));
  return Netlink{std::move(socket)};
}

base::Result<std::span<const std::byte>> Netlink::ask(std::span<std::byte> request) {
  auto* header = reinterpret_cast<nlmsghdr*>(request.data());
  header->nlmsg_seq = ++sequence_;
  if (mnl_socket_sendto(socket_.get(), header, header->nlmsg_len) < 0) {
    return base::fail_errno("netlink");
  }
  for (;;) {
    const auto got = mnl_socket_recvfrom(socket_.get(), answer_.data(), answer_.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return base::fail_errno("netlink");
    const auto* message = reinterpret_cast<const nlmsghdr*>(answer_.data());
    int left = static_cast<int>(got);
    for (; mnl_nlmsg_ok(message, left); message = mnl_nlmsg_next(message, &left)) {
      if (message->nlmsg_seq != sequence_) continue;  // of a request that was given up
      if (message->nlmsg_type != NLMSG_ERROR) {
        return std::as_bytes(std::span{reinterpret_cast<const char*>(message), message->nlmsg_len});
      }
      if (mnl_nlmsg_get_payload_len(message) < sizeof(nlmsgerr)) continue;
      const auto* body = static_cast<const nlmsgerr*>(mnl_nlmsg_get_payload(message));
      if (body->error != 0) return base::fail(refusal(message, -body->error));
      return std::span<const std::byte>{};
    }
  }
}

base::Result<Link> Netlink::link(const std::string& netdev) {
  const auto index = index_of(netdev);
  if (!index) return base::Unexpected{index.error()};
  alignas(4) std::array<std::byte, request_max> buffer{};
  auto* header = begin(buffer, RTM_GETLINK, 0, *index);
  mnl_attr_put_u32(header, IFLA_EXT_MASK, RTEXT_FILTER_VF | RTEXT_FILTER_SKIP_STATS);
  const auto answer = ask(buffer);
  if (!answer) return base::Unexpected{answer.error()};
  return read_link(*answer);
}

base::Result<void> Netlink::set_up(const std::string& netdev, bool up) {
  const auto index = index_of(netdev);
  if (!index) return base::Unexpected{index.error()};
  alignas(4) std::array<std::byte, request_max> buffer{};
  auto* header = begin(buffer, RTM_SETLINK, NLM_F_ACK, *index);
  auto* info = static_cast<ifinfomsg*>(mnl_nlmsg_get_payload(header));
  info->ifi_change = IFF_UP;
  info->ifi_flags = up ? IFF_UP : 0;
  const auto answer = ask(buffer);
  if (!answer) return base::Unexpected{answer.error()};
  return {};
}

base::Result<void> Netlink::set(const std::string& netdev, unsigned vf, const Setting& setting) {
  const auto index = index_of(netdev);
  if (!index) return base::Unexpected{index.error()};
  auto message = make_set(*index, vf, setting);
  const auto answer = ask(message);
  if (!answer) return base::Unexpected{answer.error()};
  return {};
}

std::vector<std::byte> make_set(unsigned link, unsigned vf, const Setting& setting) {
  std::vector<std::byte> buffer(request_max);
  auto* header = begin(buffer, RTM_SETLINK, NLM_F_ACK, link);
  auto* list = mnl_attr_nest_start(header, IFLA_VFINFO_LIST);
  auto* info = mnl_attr_nest_start(header, IFLA_VF_INFO);
  std::visit([&](const auto& value) { put(header, vf, value); }, setting);
  mnl_attr_nest_end(header, info);
  mnl_attr_nest_end(header, list);
  buffer.resize(header->nlmsg_len);
  return buffer;
}

base::Result<Link> read_link(std::span<const std::byte> message) {
  const auto* header = reinterpret_cast<const nlmsghdr*>(message.data());
  if (!mnl_nlmsg_ok(header, static_cast<int>(message.size())) ||
      header->nlmsg_type != RTM_NEWLINK || mnl_nlmsg_get_payload_len(header) < sizeof(ifinfomsg)) {
    return base::fail("the kernel's answer is none about a link");
  }
  const auto* info = static_cast<const ifinfomsg*>(mnl_nlmsg_get_payload(header));
  Link out;
  out.up = (info->ifi_flags & IFF_UP) != 0;
  out.carrier = (info->ifi_flags & IFF_RUNNING) != 0;
  std::uint32_t count = 0;
  const auto* attributes = static_cast<const char*>(mnl_nlmsg_get_payload(header)) + sizeof(*info);
  const std::size_t size = mnl_nlmsg_get_payload_len(header) - sizeof(*info);
  each_attribute(attributes, size, [&](const nlattr& each) {
    take<Mac>(each, IFLA_ADDRESS, [&out](const Mac& mac) { out.mac = mac; });
    take<std::uint32_t>(each, IFLA_NUM_VF, [&count](std::uint32_t told) { count = told; });
    if (mnl_attr_get_type(&each) != IFLA_VFINFO_LIST) return;
    each_nested(each, [&out](const nlattr& function) {
      if (mnl_attr_get_type(&function) == IFLA_VF_INFO) read_function(function, out.functions);
    });
  });
  // a list of more than 64 KiB comes out cut
  if (out.functions.size() != count) {
    return base::fail("the kernel tells of " + std::to_string(out.functions.size()) + " of " +
                      std::to_string(count) + " VFs: too many for one message; use fewer");
  }
  return out;
}

}  // namespace millrace::sriov
