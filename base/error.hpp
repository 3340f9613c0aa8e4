// Errors from the operating system as one line for a person. Control thread (allocates).
#pragma once

#include <string_view>

#include "base/result.hpp"

namespace millrace::base {

// Makes an Error "<doing>: <text of errno>" for `return fail_errno("cannot open /dev/x")`. Takes
// errno as it is at the call.
[[nodiscard]] Unexpected<Error> fail_errno(std::string_view doing);

}  // namespace millrace::base
