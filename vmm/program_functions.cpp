// Functions of the host: how a guest gets them, and what happens when they fail or are wanted back.
#include <algorithm>
#include <utility>

#include "base/log.hpp"
#include "vmm/passthrough.hpp"
#include "vmm/program.hpp"

namespace millrace::vmm {

using base::fail;
using base::Result;

namespace {

// The host waits until the function is given back, and others wait for the host meanwhile; guests
// give their user 5 s to call it off.
constexpr std::chrono::seconds release_patience{20};

}  // namespace

Result<void> Program::set_up_functions() {
  if (options_.functions.empty()) return {};
  auto functions = HostFunctions::open(options_.functions);
  if (!functions) return base::Unexpected{functions.error()};
  functions_ = *std::move(functions);
  return functions_->watch(
      loop_, {.failed = [this](const std::string& address) { on_function_failed(address); },
              .wanted = [this](const std::string& address) { on_function_wanted(address); }});
}

// Asked for when the options are checked too, before the functions are open.
Result<NamedFunction> Program::passthrough_of(const DeviceOption& device,
                                              std::function<void(unsigned queues)> made) {
  NamedFunction function{.id = device.id, .make = {}, .removable = true};
  function.passthrough = [this, address = device.address, made = std::move(made)](
                             BarSlots& slots, Interrupts& interrupts,
                             const GuestRam& ram) -> Result<std::unique_ptr<PciFunction>> {
    if (functions_ == nullptr) {
      return fail(address + " was not named when the guest was started: --vfio-allow " + address);
    }
    auto taken = functions_->take(address, ram);
    if (!taken) return base::Unexpected{taken.error()};
    auto passthrough = Passthrough::make(*std::move(taken), slots, interrupts);
    if (!passthrough) return base::Unexpected{passthrough.error()};
    if (made) made(0);
    return std::unique_ptr<PciFunction>{*std::move(passthrough)};
  };
  return function;
}

// A balloon's memory would go while a function still writes to it.
Result<void> Program::check_memory_use(const DeviceOption& device) const {
  const auto has = [this](DeviceOption::Kind kind) {
    const auto is = [kind](const DeviceOption& option) { return option.kind == kind; };
    return std::ranges::any_of(devices_, is, &Plugged::option) ||
           std::ranges::any_of(adding_, is, &Adding::option);
  };
  constexpr auto balloon = DeviceOption::Kind::balloon, function = DeviceOption::Kind::vfio;
  const bool together = (device.kind == balloon && (functions_ != nullptr || has(function))) ||
                        (device.kind == function && has(balloon));
  if (!together) return {};
  return fail(
      "a balloon takes memory from the guest that functions of the host may be writing to: a guest "
      "has the one or the other");
}

std::string Program::id_of_function(const std::string& address) const {
  const auto found = std::ranges::find_if(
      devices_, [&](const Plugged& each) { return each.option.address == address; });
  return found == devices_.end() ? std::string{} : found->option.id;
}

void Program::on_function_failed(const std::string& address) {
  const auto id = id_of_function(address);
  if (id.empty() || machine_ == nullptr) return;
  emit("DEVICE_ERROR", {{"device", id}, {"address", address}});
  failure_ = "device " + id + " (" + address +
             ") reported an error that it does not come back from: the guest is stopped; see the "
             "host's kernel log (AER)";
  loop_.stop();
}

void Program::on_function_wanted(const std::string& address) {
  const auto id = id_of_function(address);
  if (id.empty() || machine_ == nullptr || wanted_back_.contains(id)) return;
  spdlog::warn("the host wants {} back: the guest is asked to let go of device {}", address, id);
  emit("DEVICE_RECALLED", {{"device", id}, {"address", address}});
  wanted_back_[id] = loop_.after(release_patience, [this, id] {
    spdlog::warn("the guest did not let go of device {} in {} s: it is taken away", id,
                 release_patience.count());
    const auto mine = id;  // the timer goes, and this with it
    machine_->take_away(mine);
  });
  // It may have been asked for it already; then that is what is waited for.
  if (const auto ok = machine_->unplug(id); !ok) spdlog::info("{}", ok.error().message);
}

}  // namespace millrace::vmm
