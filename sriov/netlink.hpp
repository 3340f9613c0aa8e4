// Netlink: asks the kernel about a network interface and its virtual functions, and sets them
// (<linux/rtnetlink.h>, <linux/if_link.h>; man 7 rtnetlink).
//
// Errors are the kernel's words, with what its driver said where it said something.
// Thread: control. A request takes as long as the driver works on it, which no time limit can
// change.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "sriov/privileged.hpp"

struct mnl_socket;

namespace millrace::sriov {

class Netlink {
 public:
  [[nodiscard]] static base::Result<Netlink> open();

  base::Result<Link> link(const std::string& netdev);
  base::Result<void> set_up(const std::string& netdev, bool up);
  base::Result<void> set(const std::string& netdev, unsigned vf, const Setting& setting);

 private:
  struct Close {
    void operator()(mnl_socket* socket) const;
  };
  using Socket = std::unique_ptr<mnl_socket, Close>;

  explicit Netlink(Socket socket);
  // Sends one request and calls nobody before the whole answer is in `answer_`: its last message is
  // the link asked for, or an acknowledgement.
  base::Result<std::span<const std::byte>> ask(std::span<std::byte> request);

  Socket socket_;
  std::uint32_t sequence_ = 0;
  std::vector<std::byte> answer_;
};

// What a message about a link says (RTM_NEWLINK). Errors: it tells of fewer functions than it
// counts.
[[nodiscard]] base::Result<Link> read_link(std::span<const std::byte> message);
// The message that sets it (RTM_SETLINK), without a sequence number.
[[nodiscard]] std::vector<std::byte> make_set(unsigned link, unsigned vf, const Setting& setting);

}  // namespace millrace::sriov
