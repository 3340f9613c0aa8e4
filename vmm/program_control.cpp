// What the control socket asks of the program, and the events that it tells.
#include <fcntl.h>

#include <algorithm>
#include <utility>

#include "base/error.hpp"
#include "base/log.hpp"
#include "vmm/device_options.hpp"
#include "vmm/program.hpp"

namespace millrace::vmm {

using base::fail;
using base::Result;
using nlohmann::json;

Result<void> Program::set_up_control() {
  auto mailbox = LoopMailbox::make(loop_);
  if (!mailbox) return base::Unexpected{mailbox.error()};
  mailbox_ = *std::move(mailbox);
  if (!options_.dump_on_panic.empty()) {
    // Opened now, because later nothing may be; what is in it stays until there is a dump.
    constexpr int how = O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK;
    panic_file_ = base::Fd{::open(options_.dump_on_panic.c_str(), how, 0600)};
    const auto line = "--dump-on-panic " + options_.dump_on_panic;
    if (!panic_file_) return base::fail_errno(line);
    if (auto ok = check_dump_file(panic_file_); !ok) return fail(line + ": " + ok.error().message);
  }
  if (options_.control.empty()) return {};
  auto control = Control::make(loop_, options_.control, *this);
  if (!control) return base::Unexpected{control.error()};
  control_ = *std::move(control);
  return {};
}

void Program::emit(std::string_view event, const json& data) {
  if (control_ != nullptr) control_->emit(event, data);
}

// --- How it is ---

GuestStatus Program::status() const {
  if (panicked_) return {false, "guest-panicked", "its kernel panicked, and is being dumped"};
  if (dump_ != nullptr) return {false, "save-vm", "a dump is being written"};
  if (paused_) return {false, "paused", "stopped by the control socket"};
  return {true, "running", ""};
}

std::vector<int> Program::vcpu_threads() const {
  return machine_->thread_ids();
}

std::vector<DeviceStatus> Program::devices() const {
  std::vector<DeviceStatus> list;
  for (const auto& each : devices_) {
    const auto& option = each.option;
    const auto& where = option.kind == DeviceOption::Kind::vfio ? option.address : option.socket;
    list.push_back({option.id, option.kind, where, each.connected, each.queues});
  }
  return list;
}

// --- Running ---

void Program::stand_still_or_run() {
  const bool still = paused_ || panicked_ || dump_ != nullptr;
  if (std::exchange(still_, still) == still) return;
  if (still) return machine_->pause();
  machine_->resume();
}

void Program::pause() {
  if (std::exchange(paused_, true)) return;
  stand_still_or_run();
  emit("STOP");
}

void Program::resume() {
  if (!std::exchange(paused_, false)) return;
  stand_still_or_run();
  emit("RESUME");
}

void Program::press_power_button() {
  machine_->press_power_button();
  emit("POWERDOWN");
}

void Program::reset() {
  reset_wanted_ = true;
  spdlog::info("the control socket resets the guest");
  emit("RESET", {{"guest", false}, {"reason", "host-qmp-system-reset"}});
  loop_.stop();
}

void Program::quit() {
  quit_wanted_ = true;
  spdlog::info("the control socket ends the guest");
  emit("SHUTDOWN", {{"guest", false}, {"reason", "host-qmp-quit"}});
  loop_.stop();
}

void Program::tell_end(Ending ending) {
  const auto shutdown = [this](bool guest, const char* reason) {
    emit("SHUTDOWN", {{"guest", guest}, {"reason", reason}});
  };
  switch (ending) {
    case Ending::power_off:
      return shutdown(true, "guest-shutdown");
    case Ending::reset:
      if (!options_.restart || asked_to_stop_) return shutdown(true, "guest-reset");
      return emit("RESET", {{"guest", true}, {"reason", "guest-reset"}});
    case Ending::panicked:
      return shutdown(true, "guest-panic");
    case Ending::failed:
      return shutdown(false, "host-error");
  }
}

// --- Devices ---

Program::Plugged* Program::find_device(const std::string& id) {
  const auto found =
      std::ranges::find_if(devices_, [&](const Plugged& each) { return each.option.id == id; });
  return found == devices_.end() ? nullptr : &*found;
}

Result<void> Program::remove_device(const std::string& id) {
  if (find_device(id) == nullptr) return fail("there is no device \"" + id + "\"");
  return machine_->unplug(id);
}

void Program::on_unplugged(const std::string& id) {
  std::erase_if(devices_, [&](const Plugged& each) { return each.option.id == id; });
  wanted_back_.erase(id);
  spdlog::info("device {} is gone from the guest", id);
  emit("DEVICE_DELETED", {{"device", id}, {"path", "/machine/peripheral/" + id}});
}

void Program::on_device_change(const std::string& id, bool connected, const std::string& why) {
  auto* const device = find_device(id);
  if (device == nullptr) return;
  device->connected = connected;
  if (connected) return emit("DEVICE_RECONNECTED", {{"id", id}});
  emit("DEVICE_DISCONNECTED", {{"id", id}, {"reason", why}});
}

// --- Dumps ---

DumpProgress Program::dump_progress() const {
  if (dump_ == nullptr) return last_dump_;
  return {"active", dump_->completed(), dump_->total(), ""};
}

Result<void> Program::dump(base::Fd file, DumpDone done) {
  if (dump_ != nullptr) return fail("another dump is under way; query-dump tells how far");
  if (auto ok = check_dump_file(file); !ok) return ok;
  const bool was_still = std::exchange(still_, true);
  if (!was_still) machine_->pause();
  const auto number = ++dump_number_;
  const auto cpus = machine_->cpu_states();
  auto begun = cpus ? Dump::begin(machine_->ram(), *cpus, std::move(file),
                                  [this, number] {
                                    mailbox_->post([this, number] {
                                      if (number == dump_number_) finish_dump();
                                    });
                                  })
                    : base::Unexpected{cpus.error()};
  if (!begun) {
    stand_still_or_run();
    return base::Unexpected{begun.error()};
  }
  dump_ = *std::move(begun);
  dump_done_ = std::move(done);
  return {};
}

// It is done, or given up now.
void Program::finish_dump() {
  if (dump_ == nullptr) return;
  dump_->stop();
  const auto error = dump_->error();
  last_dump_ = {error.empty() ? "completed" : "failed", dump_->completed(), dump_->total(), error};
  dump_.reset();
  if (!reset_wanted_ && !quit_wanted_) stand_still_or_run();
  const auto done = std::exchange(dump_done_, {});
  if (done) done(last_dump_);
}

// The vCPUs have ended by now.
void Program::dump_panicked() {
  emit("GUEST_PANICKED", {{"action", "poweroff"}});
  spdlog::error("the guest's kernel panicked");
  finish_dump();
  if (!panic_file_) return;
  panicked_ = still_ = true;
  const auto begun = dump(std::move(panic_file_), [this](const DumpProgress& progress) {
    if (progress.error.empty()) {
      spdlog::info("the guest's memory is in {}", options_.dump_on_panic);
    } else {
      spdlog::error("--dump-on-panic {}: {}", options_.dump_on_panic, progress.error);
    }
    emit("DUMP_COMPLETED", dump_event(progress));
    loop_.stop();
  });
  if (begun) {
    loop_.run();
    finish_dump();
  } else {
    spdlog::error("--dump-on-panic {}: {}", options_.dump_on_panic, begun.error().message);
  }
  panicked_ = false;
}

}  // namespace millrace::vmm
