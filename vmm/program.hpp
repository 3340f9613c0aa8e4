// Program: from the options to the exit status: consoles, signals, the control socket, one machine
// after the other. Thread: main.
#pragma once

#include <sys/signalfd.h>

#include <list>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/event_loop.hpp"
#include "vmm/console.hpp"
#include "vmm/control.hpp"
#include "vmm/device_making.hpp"
#include "vmm/dump.hpp"
#include "vmm/guest_control.hpp"
#include "vmm/host_functions.hpp"
#include "vmm/loop_mailbox.hpp"
#include "vmm/machine.hpp"
#include "vmm/options.hpp"

namespace millrace::vmm {

class Program final : public GuestControl {
 public:
  explicit Program(const Options& options) : options_{options}, boot_{options.boot} {}
  // Until the guest's end, SIGTERM or SIGINT. The first of these presses the guest's power button;
  // a second one, or ten seconds without an answer, ends the process.
  int run();

  // GuestControl, in program_control.cpp; only while a machine runs.
  [[nodiscard]] std::string name() const override { return options_.name; }
  [[nodiscard]] GuestStatus status() const override;
  [[nodiscard]] std::vector<int> vcpu_threads() const override;
  [[nodiscard]] std::vector<DeviceStatus> devices() const override;
  [[nodiscard]] DumpProgress dump_progress() const override;
  void pause() override;
  void resume() override;
  void press_power_button() override;
  void reset() override;
  void quit() override;
  void add_device(const DeviceOption& device, AddDone done) override;
  base::Result<void> remove_device(const std::string& id) override;
  base::Result<void> add_cpus(unsigned count) override { return machine_->add_cpus(count); }
  base::Result<void> add_memory(std::uint64_t bytes) override {
    return machine_->add_memory(bytes);
  }
  base::Result<void> dump(base::Fd file, DumpDone done) override;

 private:
  // A device that is plugged in, or about to be.
  struct Plugged {
    DeviceOption option;
    bool connected = false;
    unsigned queues = 0;
  };

  // A device that is being made for the guest that runs.
  struct Adding {
    unsigned number = 0;
    DeviceOption option;
    AddDone done;
    unsigned queues = 0;  // the making thread's, until it is done
    bool too_slow = false;
    base::EventLoop::Timer limit;
    std::unique_ptr<DeviceMaking> making;
  };

  base::Result<int> run_all();
  base::Result<void> set_up();
  [[nodiscard]] base::Result<void> shut_in() const;
  base::Result<Ending> run_once(const KvmSystem& system, const MachineConfig& config);
  base::Result<MachineConfig> make_config();
  void on_signal();
  void ask_to_stop();
  // program_control.cpp
  base::Result<void> set_up_control();
  base::Result<NamedFunction> function_of(const DeviceOption& device, std::function<int()> cancel,
                                          std::function<void(unsigned queues)> made);
  base::Result<NamedFunction> function_of(const DeviceOption& device);
  base::Result<void> begin_adding(const DeviceOption& device, AddDone& done);
  void finish_adding(unsigned number);
  void stop_adding();
  // program_functions.cpp
  base::Result<void> set_up_functions();
  base::Result<NamedFunction> passthrough_of(const DeviceOption& device,
                                             std::function<void(unsigned queues)> made);
  [[nodiscard]] base::Result<void> check_memory_use(const DeviceOption& device) const;
  [[nodiscard]] std::string id_of_function(const std::string& address) const;
  void on_function_failed(const std::string& address);
  void on_function_wanted(const std::string& address);
  Plugged* find_device(const std::string& id);
  void on_device_change(const std::string& id, bool connected, const std::string& why);
  void on_unplugged(const std::string& id);
  void emit(std::string_view event, const nlohmann::json& data = nullptr);
  void stand_still_or_run();
  void finish_dump();
  void tell_end(Ending ending);
  void dump_panicked();

  const Options& options_;
  BootConfig boot_;  // its files open
  base::EventLoop loop_;
  base::Fd signals_;
  base::EventLoop::Watch signal_watch_;
  base::EventLoop::Timer patience_;
  std::vector<std::unique_ptr<Console>> consoles_;
  Machine* machine_ = nullptr;  // while it runs
  // What the guest has, plugged and added things too, for the next machine of the same guest.
  unsigned cpus_ = 1;
  std::vector<std::uint64_t> memory_added_;
  DevicePlaces places_;  // of the machine that ran before
  bool asked_to_stop_ = false, ended_by_force_ = false;

  std::unique_ptr<LoopMailbox> mailbox_;
  std::unique_ptr<HostFunctions> functions_;                   // of the host; empty: none was named
  std::map<std::string, base::EventLoop::Timer> wanted_back_;  // by id, while the guest is asked
  std::string failure_;                                        // why the guest is stopped
  std::vector<Plugged> devices_;
  std::list<Adding> adding_;
  unsigned last_adding_ = 0;
  unsigned machines_ = 0;  // so many were made; what an earlier one's threads said is void
  bool paused_ = false;    // somebody asked for it
  bool still_ = false;     // the vCPUs stand still
  bool panicked_ = false;  // and is being dumped
  bool reset_wanted_ = false, quit_wanted_ = false;
  base::Fd panic_file_;
  std::unique_ptr<Dump> dump_;
  DumpDone dump_done_;
  unsigned dump_number_ = 0;  // of the dump under way, or of the last one
  DumpProgress last_dump_;
  std::unique_ptr<Control> control_;
};

}  // namespace millrace::vmm
