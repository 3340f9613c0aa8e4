// What a hardware memory error does to this process: it ends this guest, alone and with a line that
// says so, or is only told of where nobody has used the broken memory yet.
#pragma once

namespace millrace::vmm {

// Installs the SIGBUS handler. A memory error that was touched ends the process with exit status 1;
// one that was not is a line and nothing more. Any other SIGBUS is our own fault and ends the
// process as it would without a handler. Thread: main, before any other.
void end_on_memory_error();

}  // namespace millrace::vmm
