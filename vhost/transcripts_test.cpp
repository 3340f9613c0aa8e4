// The start-up message sequences of front-ends, replayed against a session. Replayed, not run: they
// follow the front-ends' published behaviour, and each line is one message.
//
//   NAME argument... [+descriptor] [! asks for an acknowledgement] -> what comes back
//
// An argument is a number with its width (u16: u32: u64:) or zeros:N bytes. {features} stands for
// the bits that the front-end would take, {u} for the memory's user address.
#include <gtest/gtest.h>

#include <map>
#include <sstream>

#include "vhost/testing/harness.hpp"

namespace millrace::vhost {
namespace {

using testing::Harness;
using wire::Request;

const std::map<std::string, Request> names = {
    {"GET_FEATURES", Request::get_features},
    {"SET_FEATURES", Request::set_features},
    {"SET_OWNER", Request::set_owner},
    {"SET_MEM_TABLE", Request::set_mem_table},
    {"SET_LOG_BASE", Request::set_log_base},
    {"SET_VRING_NUM", Request::set_vring_num},
    {"SET_VRING_ADDR", Request::set_vring_addr},
    {"SET_VRING_BASE", Request::set_vring_base},
    {"GET_VRING_BASE", Request::get_vring_base},
    {"SET_VRING_KICK", Request::set_vring_kick},
    {"SET_VRING_CALL", Request::set_vring_call},
    {"SET_VRING_ERR", Request::set_vring_err},
    {"GET_PROTOCOL_FEATURES", Request::get_protocol_features},
    {"SET_PROTOCOL_FEATURES", Request::set_protocol_features},
    {"GET_QUEUE_NUM", Request::get_queue_num},
    {"SET_VRING_ENABLE", Request::set_vring_enable},
    {"SET_BACKEND_REQ_FD", Request::set_backend_req_fd},
    {"GET_CONFIG", Request::get_config},
    {"SET_CONFIG", Request::set_config},
    {"GET_INFLIGHT_FD", Request::get_inflight_fd},
    {"SET_INFLIGHT_FD", Request::set_inflight_fd},
    {"GET_MAX_MEM_SLOTS", Request::get_max_mem_slots},
    {"ADD_MEM_REG", Request::add_mem_reg},
    {"SET_STATUS", Request::set_status},
    {"GET_STATUS", Request::get_status},
};

class Replay {
 public:
  explicit Replay(Harness& h) : h_{h} {
    h_.memory = testing::make_memory(Harness::memory_size);
    auto ends = testing::make_sockets();
    channel_ = std::move(ends.first);
    ours_ = std::move(ends.second);
  }

  void run(const std::string& transcript) {
    std::istringstream lines{transcript};
    for (std::string line; std::getline(lines, line);) {
      if (line.find_first_not_of(' ') != std::string::npos) step(line);
      ASSERT_FALSE(h_.ended) << line << ": " << h_.session->reason();
      if (::testing::Test::HasFatalFailure()) return;
    }
  }

 private:
  void step(const std::string& line) {
    SCOPED_TRACE(line);
    std::istringstream words{line};
    std::string name, word, answer;
    words >> name;
    std::vector<std::byte> payload;
    std::vector<int> fds;
    bool ack = false;
    while (words >> word) {
      if (word == "->") {
        words >> answer;
      } else if (word == "!") {
        ack = true;
      } else if (word[0] == '+') {
        fds.push_back(descriptor(word.substr(1)));
      } else {
        append(payload, word);
      }
    }
    ASSERT_EQ(names.count(name), 1u);
    ASSERT_TRUE(h_.frontend.send(names.at(name), payload, fds,
                                 wire::version | (ack ? wire::flag_need_reply : 0u)));
    if (answer.empty()) return;
    auto reply = h_.frontend.receive();
    ASSERT_TRUE(reply);
    EXPECT_EQ(reply->header.request, static_cast<std::uint32_t>(names.at(name)));
    EXPECT_EQ(reply->header.flags, wire::version | wire::flag_reply);
    check(answer, *reply, payload.size());
  }

  void check(const std::string& answer, Message& reply, std::size_t asked) {
    if (answer == "ok") {
      ASSERT_EQ(reply.payload.size(), 8u);
      EXPECT_EQ(reply.as<std::uint64_t>(), 0u);
    } else if (answer == "u64") {
      EXPECT_EQ(reply.payload.size(), 8u);
    } else if (answer == "same-size") {
      EXPECT_EQ(reply.payload.size(), asked);
    } else {
      ASSERT_EQ(answer, "inflight");
      ASSERT_EQ(reply.fds.size(), 1u);
      inflight_ = std::move(reply.fds[0]);
      inflight_payload_ = std::move(reply.payload);
    }
  }

  int descriptor(const std::string& word) const {
    if (word == "event") return h_.kick.get();
    if (word == "memory") return h_.memory.get();
    if (word == "socket") return channel_.get();
    CHECK(word == "inflight");
    return inflight_.get();
  }

  void append(std::vector<std::byte>& payload, const std::string& word) const {
    const auto colon = word.find(':');
    const auto kind = word.substr(0, colon);
    if (kind == "inflight") {
      payload.insert(payload.end(), inflight_payload_.begin(), inflight_payload_.end());
      return;
    }
    const auto value = number(word.substr(colon + 1));
    if (kind == "zeros") {
      payload.resize(payload.size() + value);
      return;
    }
    const auto bytes = bytes_of(value);
    const auto width = kind == "u16" ? 2u : kind == "u32" ? 4u : 8u;
    payload.insert(payload.end(), bytes.begin(), bytes.begin() + width);
  }

  std::uint64_t number(const std::string& text) const {
    const auto plus = text.find('+');
    if (plus != std::string::npos)
      return number(text.substr(0, plus)) + number(text.substr(plus + 1));
    if (text == "{u}") return Harness::user_base;
    if (text == "{features}") {
      return Session::offered_features(h_.device) &
             ~(virtio::feature::log_all | virtio::feature::ring_packed);
    }
    return std::stoull(text, nullptr, 0);
  }

  Harness& h_;
  base::Fd channel_, ours_, inflight_;
  std::vector<std::byte> inflight_payload_;
};

// vhost-user-blk: REPLY_ACK on everything, configuration at offset 0x100, an inflight region.
constexpr char cloud_hypervisor_blk[] = R"(
  SET_OWNER
  GET_FEATURES -> u64
  GET_PROTOCOL_FEATURES -> u64
  SET_PROTOCOL_FEATURES u64:0x920b
  GET_QUEUE_NUM ! -> u64
  GET_CONFIG u32:0x100 u32:60 u32:1 zeros:60 ! -> same-size
  SET_FEATURES u64:{features} ! -> ok
  SET_MEM_TABLE u32:1 u32:0 u64:0 u64:0x100000 u64:{u} u64:0 +memory ! -> ok
  SET_VRING_NUM u32:0 u32:128 ! -> ok
  GET_INFLIGHT_FD u64:0 u64:0 u16:1 u16:128 u32:0 ! -> inflight
  SET_INFLIGHT_FD inflight +inflight ! -> ok
  SET_VRING_ADDR u32:0 u32:0 u64:{u} u64:{u}+0x2000 u64:{u}+0x1000 u64:0 ! -> ok
  SET_VRING_BASE u32:0 u32:0 ! -> ok
  SET_VRING_CALL u64:0 +event ! -> ok
  SET_VRING_KICK u64:0 +event ! -> ok
  SET_VRING_ENABLE u32:0 u32:1 ! -> ok
)";

// A guest reset that disables the rings and sets them up again, without GET_VRING_BASE.
constexpr char cloud_hypervisor_reset[] = R"(
  SET_VRING_ENABLE u32:0 u32:0 ! -> ok
  SET_FEATURES u64:{features} ! -> ok
  SET_MEM_TABLE u32:1 u32:0 u64:0 u64:0x100000 u64:{u} u64:0 +memory ! -> ok
  SET_VRING_NUM u32:0 u32:128 ! -> ok
  SET_VRING_ADDR u32:0 u32:0 u64:{u}+0x8000 u64:{u}+0xa000 u64:{u}+0x9000 u64:0 ! -> ok
  SET_VRING_BASE u32:0 u32:0 ! -> ok
  SET_VRING_CALL u64:0 +event ! -> ok
  SET_VRING_KICK u64:0 +event ! -> ok
  SET_VRING_ENABLE u32:0 u32:1 ! -> ok
)";

// vhost-user-net, one pair: two virtqueues, and it must find two in GET_QUEUE_NUM.
constexpr char cloud_hypervisor_net[] = R"(
  SET_OWNER
  GET_FEATURES -> u64
  GET_PROTOCOL_FEATURES -> u64
  SET_PROTOCOL_FEATURES u64:0x900b
  GET_QUEUE_NUM ! -> u64
  SET_FEATURES u64:{features} ! -> ok
  SET_MEM_TABLE u32:1 u32:0 u64:0 u64:0x100000 u64:{u} u64:0 +memory ! -> ok
  SET_VRING_NUM u32:0 u32:256 ! -> ok
  SET_VRING_NUM u32:1 u32:256 ! -> ok
  GET_INFLIGHT_FD u64:0 u64:0 u16:2 u16:256 u32:0 ! -> inflight
  SET_INFLIGHT_FD inflight +inflight ! -> ok
  SET_VRING_ADDR u32:0 u32:0 u64:{u} u64:{u}+0x2000 u64:{u}+0x1000 u64:0 ! -> ok
  SET_VRING_BASE u32:0 u32:0 ! -> ok
  SET_VRING_CALL u64:0 +event ! -> ok
  SET_VRING_KICK u64:0 +event ! -> ok
  SET_VRING_ADDR u32:1 u32:0 u64:{u}+0x4000 u64:{u}+0x6000 u64:{u}+0x5000 u64:0 ! -> ok
  SET_VRING_BASE u32:1 u32:0 ! -> ok
  SET_VRING_CALL u64:1 +event ! -> ok
  SET_VRING_KICK u64:1 +event ! -> ok
  SET_VRING_ENABLE u32:0 u32:1 ! -> ok
  SET_VRING_ENABLE u32:1 u32:1 ! -> ok
)";

// REPLY_ACK is taken for the back-end's own requests only; the channel comes before the rings.
constexpr char crosvm_blk[] = R"(
  SET_OWNER
  GET_FEATURES -> u64
  GET_PROTOCOL_FEATURES -> u64
  SET_PROTOCOL_FEATURES u64:0x229
  SET_BACKEND_REQ_FD +socket
  GET_QUEUE_NUM -> u64
  GET_CONFIG u32:0 u32:8 u32:1 zeros:8 -> same-size
  SET_FEATURES u64:{features}
  SET_MEM_TABLE u32:1 u32:0 u64:0 u64:0x100000 u64:{u} u64:0 +memory
  SET_VRING_NUM u32:0 u32:256
  SET_VRING_ADDR u32:0 u32:0 u64:{u} u64:{u}+0x2000 u64:{u}+0x1000 u64:0
  SET_VRING_BASE u32:0 u32:0
  SET_VRING_CALL u64:0 +event
  SET_VRING_KICK u64:0 +event
  SET_VRING_ENABLE u32:0 u32:1
  GET_FEATURES -> u64
)";

// Suspend: each ring is disabled and asked for its base.
constexpr char crosvm_sleep[] = R"(
  SET_VRING_ENABLE u32:0 u32:0
  GET_VRING_BASE u32:0 u32:0 -> same-size
)";

// blk only: CONFIG and REPLY_ACK; the memory table comes after the features were frozen.
constexpr char firecracker_blk[] = R"(
  SET_OWNER
  GET_FEATURES -> u64
  GET_PROTOCOL_FEATURES -> u64
  SET_PROTOCOL_FEATURES u64:0x208
  GET_CONFIG u32:0 u32:60 u32:1 zeros:60 ! -> same-size
  SET_FEATURES u64:{features} ! -> ok
  SET_MEM_TABLE u32:1 u32:0 u64:0 u64:0x100000 u64:{u} u64:0 +memory ! -> ok
  SET_VRING_NUM u32:0 u32:256 ! -> ok
  SET_VRING_ADDR u32:0 u32:0 u64:{u} u64:{u}+0x2000 u64:{u}+0x1000 u64:0 ! -> ok
  SET_VRING_BASE u32:0 u32:0 ! -> ok
  SET_VRING_CALL u64:0 +event ! -> ok
  SET_VRING_KICK u64:0 +event ! -> ok
  SET_VRING_ENABLE u32:0 u32:1 ! -> ok
)";

// QEMU: calls before features, memory by slots, status in between, kicks before enable.
constexpr char qemu_blk[] = R"(
  GET_FEATURES -> u64
  GET_PROTOCOL_FEATURES -> u64
  SET_PROTOCOL_FEATURES u64:0x1b62b
  GET_QUEUE_NUM -> u64
  GET_MAX_MEM_SLOTS -> u64
  SET_BACKEND_REQ_FD +socket ! -> ok
  SET_OWNER
  GET_FEATURES -> u64
  SET_VRING_CALL u64:0 +event
  SET_VRING_ERR u64:0 +event
  GET_CONFIG u32:0 u32:60 u32:0 zeros:60 -> same-size
  SET_FEATURES u64:{features}
  GET_STATUS -> u64
  SET_STATUS u64:8
  GET_INFLIGHT_FD u64:0 u64:0 u16:1 u16:128 u32:0 -> inflight
  SET_INFLIGHT_FD inflight +inflight
  SET_FEATURES u64:{features}
  ADD_MEM_REG u64:0 u64:0 u64:0x100000 u64:{u} u64:0 +memory ! -> ok
  SET_VRING_NUM u32:0 u32:128
  SET_VRING_BASE u32:0 u32:0
  SET_VRING_ADDR u32:0 u32:0 u64:{u} u64:{u}+0x2000 u64:{u}+0x1000 u64:0x2000
  SET_VRING_KICK u64:0 +event
  SET_VRING_CALL u64:0 +event
  SET_VRING_ENABLE u32:0 u32:1 ! -> ok
  SET_STATUS u64:15
)";

TEST(Transcripts, CloudHypervisorBlk) {
  Harness h{virtio::DeviceKind::blk, 1};
  Replay replay{h};
  replay.run(cloud_hypervisor_blk);
  ASSERT_EQ(h.device.started.size(), 1u);
  EXPECT_TRUE(h.device.started[0].start.enabled);
  EXPECT_NE(h.device.started[0].start.inflight, nullptr);
  replay.run(cloud_hypervisor_reset);
  ASSERT_EQ(h.device.started.size(), 1u);
  EXPECT_EQ(h.device.started[0].start.ring.descriptors, Harness::user_base + 0x8000);
  EXPECT_TRUE(h.device.started[0].start.enabled);
}

TEST(Transcripts, CloudHypervisorNet) {
  Harness h{virtio::DeviceKind::net, 2};
  Replay replay{h};
  replay.run(cloud_hypervisor_net);
  EXPECT_EQ(h.device.started.size(), 2u);
}

TEST(Transcripts, CrosvmBlkSleepsAndWakes) {
  Harness h{virtio::DeviceKind::blk, 1};
  Replay replay{h};
  replay.run(crosvm_blk);
  ASSERT_EQ(h.device.started.size(), 1u);
  replay.run(crosvm_sleep);
  EXPECT_TRUE(h.device.started.empty());
}

TEST(Transcripts, FirecrackerBlk) {
  Harness h{virtio::DeviceKind::blk, 1};
  Replay replay{h};
  replay.run(firecracker_blk);
  EXPECT_EQ(h.device.started.size(), 1u);
}

TEST(Transcripts, QemuBlk) {
  Harness h{virtio::DeviceKind::blk, 1};
  Replay replay{h};
  replay.run(qemu_blk);
  ASSERT_EQ(h.device.started.size(), 1u);
  EXPECT_TRUE(h.device.started[0].start.enabled);
  EXPECT_NE(h.device.started[0].start.inflight, nullptr);
  EXPECT_TRUE(h.device.started[0].start.error.valid());
}

}  // namespace
}  // namespace millrace::vhost
