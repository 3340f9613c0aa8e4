#include "vmm/signal.hpp"

#include <poll.h>
#include <sys/eventfd.h>

namespace millrace::vmm {

void signal(int eventfd) noexcept {
  struct pollfd one {
    .fd = eventfd, .events = POLLOUT, .revents = 0
  };
  if (eventfd < 0 || ::poll(&one, 1, 0) != 1 || (one.revents & POLLOUT) == 0) return;
  ::eventfd_write(eventfd, 1);
}

}  // namespace millrace::vmm
