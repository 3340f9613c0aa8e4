#include "base/error.hpp"

#include <cerrno>
#include <cstring>
#include <string>

namespace millrace::base {

Unexpected<Error> fail_errno(std::string_view doing) {
  const int number = errno;
  std::string message{doing};
  message += ": ";
  message += strerrordesc_np(number) != nullptr ? strerrordesc_np(number) : "unknown error";
  return fail(std::move(message));
}

}  // namespace millrace::base
