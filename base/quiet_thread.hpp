// A thread that takes no signal but those that its own instructions raise: the others are for the
// thread that handles them.
#pragma once

#include <pthread.h>

#include <csignal>
#include <thread>
#include <utility>

namespace millrace::base {

// `name`: at most 15 characters, as the kernel shows it. Starts with the mask, so no signal comes
// to it in between. Thread: any; its own mask is as before afterwards.
template <class Run>
std::thread start_quiet_thread(const char* name, Run run) {
  sigset_t all, before;
  ::sigfillset(&all);
  for (const int own : {SIGBUS, SIGSEGV, SIGFPE, SIGILL}) ::sigdelset(&all, own);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread{std::move(run)};
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  ::pthread_setname_np(thread.native_handle(), name);
  return thread;
}

}  // namespace millrace::base
