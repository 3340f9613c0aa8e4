// signal(): one more on an eventfd that a back-end holds too.
#pragma once

namespace millrace::vmm {

// Adds 1, unless the eventfd is so full that the write would wait: whoever reads it then is told
// anyway. A back-end shares the descriptor's flags, so O_NONBLOCK is not relied on. Thread: any.
void signal(int eventfd) noexcept;

}  // namespace millrace::vmm
