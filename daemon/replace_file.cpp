#include "daemon/replace_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "base/error.hpp"
#include "base/fd.hpp"

namespace millrace::daemon {

using base::fail_errno;

base::Result<void> replace_file(const std::string& path, const std::string& text) {
  const auto fresh = path + ".new";
  const base::Fd file{::open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
  if (!file) return fail_errno("cannot write " + fresh);
  for (std::size_t at = 0; at < text.size();) {
    const auto wrote = ::write(file.get(), text.data() + at, text.size() - at);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return fail_errno("cannot write " + fresh);
    at += static_cast<std::size_t>(wrote);
  }
  if (::fsync(file.get()) != 0 || std::rename(fresh.c_str(), path.c_str()) != 0) {
    return fail_errno("cannot write " + path);
  }
  return {};
}

}  // namespace millrace::daemon
