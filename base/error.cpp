#include "base/error.hpp"

#include <cerrno>
#include <cstring>
#include <string>

namespace millrace::base {

Unexpected<Error> fail_errno(std::string_view doing) {
  const int number = errno;
  std::string message;
  message.reserve(128);
  message.append(doing);
  const char* text = strerrordesc_np(number);
  message.append(": ").append(text != nullptr ? text : "unknown error");
  return fail(std::move(message));
}

}  // namespace millrace::base
