// Program: from the options to the exit status: consoles, signals, one machine after the other.
// Thread: main.
#pragma once

#include <sys/signalfd.h>

#include <memory>
#include <vector>

#include "base/event_loop.hpp"
#include "vmm/console.hpp"
#include "vmm/machine.hpp"
#include "vmm/options.hpp"

namespace millrace::vmm {

class Program {
 public:
  explicit Program(const Options& options) : options_{options} {}
  // Until the guest's end, SIGTERM or SIGINT. The first of these presses the guest's power button;
  // a second one, or ten seconds without an answer, ends the process.
  int run();

 private:
  base::Result<int> run_all();
  base::Result<void> set_up();
  base::Result<Ending> run_once(const KvmSystem& system, const MachineConfig& config);
  [[nodiscard]] base::Result<MachineConfig> make_config() const;
  void on_signal();
  void ask_to_stop();

  const Options& options_;
  base::EventLoop loop_;
  base::Fd signals_;
  base::EventLoop::Watch signal_watch_;
  base::EventLoop::Timer patience_;
  std::vector<std::unique_ptr<Console>> consoles_;
  Machine* machine_ = nullptr;  // while it runs
  bool asked_to_stop_ = false, ended_by_force_ = false;
};

}  // namespace millrace::vmm
