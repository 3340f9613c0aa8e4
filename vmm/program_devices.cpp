// How a device comes to the program's guest: at its start, or while it runs.
#include <algorithm>
#include <utility>

#include "base/error.hpp"
#include "base/log.hpp"
#include "vmm/device_options.hpp"
#include "vmm/program.hpp"

namespace millrace::vmm {

using base::fail;
using base::Result;

namespace {

// A back-end that is there answers in milliseconds.
constexpr std::chrono::seconds answer_limit{2};

}  // namespace

Result<NamedFunction> Program::function_of(const DeviceOption& device, std::function<int()> cancel,
                                           std::function<void(unsigned queues)> made) {
  if (device.kind == DeviceOption::Kind::vfio) return passthrough_of(device, std::move(made));
  DeviceWatch watch;
  watch.made = std::move(made);
  watch.changed = [this, id = device.id, number = machines_](bool connected,
                                                             const std::string& why) {
    mailbox_->post([this, id, number, connected, why] {
      if (number == machines_) on_device_change(id, connected, why);
    });
  };
  auto option = device;
  option.confined = options_.sandbox;
  auto make = make_device(option, std::move(cancel), std::move(watch));
  if (!make) return base::Unexpected{make.error()};
  return NamedFunction{device.id, *std::move(make), device.removable};
}

// One that the guest has from its start.
Result<NamedFunction> Program::function_of(const DeviceOption& device) {
  return function_of(
      device, [this] { return signals_.get(); },
      [this, id = device.id](unsigned queues) {
        auto* const plugged = find_device(id);
        if (plugged == nullptr) return;
        plugged->connected = true;
        plugged->queues = queues;
      });
}

void Program::add_device(const DeviceOption& device, AddDone done) {
  if (const auto ok = begin_adding(device, done); !ok) done(ok);
}

Result<void> Program::begin_adding(const DeviceOption& device, AddDone& done) {
  const bool coming =
      std::ranges::any_of(adding_, [&](const Adding& each) { return each.option.id == device.id; });
  if (coming || find_device(device.id) != nullptr) {
    return fail("there is a device \"" + device.id + "\" already");
  }
  if (auto ok = machine_->has_room_for(device.id); !ok) return ok;
  if (auto ok = check_memory_use(device); !ok) return ok;
  const auto number = ++last_adding_;
  auto& adding = adding_.emplace_back();
  adding.number = number;
  adding.option = device;
  // What the making thread uses is there as long as it is: see stop_adding().
  const auto make = [this, &adding](int cancel) -> DeviceMaking::Made {
    auto function = function_of(
        adding.option, [cancel] { return cancel; },
        [&adding](unsigned queues) { adding.queues = queues; });
    if (!function) return base::Unexpected{function.error()};
    return machine_->make_function(*function);
  };
  auto making = DeviceMaking::begin(
      make, [this, number] { mailbox_->post([this, number] { finish_adding(number); }); });
  if (!making) {
    adding_.pop_back();
    return base::Unexpected{making.error()};
  }
  adding.making = *std::move(making);
  adding.done = std::move(done);
  adding.limit = loop_.after(answer_limit, [&adding] {
    adding.too_slow = true;
    adding.making->give_up();
  });
  return {};
}

void Program::finish_adding(unsigned number) {
  const auto found =
      std::ranges::find_if(adding_, [number](const Adding& each) { return each.number == number; });
  if (found == adding_.end()) return;  // it ended with its machine
  std::list<Adding> one;
  one.splice(one.begin(), adding_, found);
  auto& adding = one.front();
  auto made = adding.making->take();
  const auto& option = adding.option;
  if (!made && adding.too_slow) {
    made = fail(option.socket + ": the back-end has not answered in " +
                std::to_string(answer_limit.count()) + " s");
  }
  if (!made) return adding.done(base::Unexpected{made.error()});
  devices_.push_back({.option = option, .connected = true, .queues = adding.queues});
  if (auto ok = machine_->plug(option.id, *std::move(made)); !ok) {
    devices_.pop_back();
    return adding.done(ok);
  }
  // The guest has it now, and a restart of the guest waits for it as for any other.
  devices_.back().option.wait = true;
  spdlog::info("device {} plugged in: {}", option.id,
               option.address.empty() ? option.socket : option.address);
  adding.done({});
}

// The machine goes, and nothing is made for it any more.
void Program::stop_adding() {
  while (!adding_.empty()) {
    auto& adding = adding_.front();
    adding.making.reset();
    adding.done(fail("the guest has come to its end: device \"" + adding.option.id +
                     "\" was not plugged in"));
    adding_.pop_front();
  }
}

}  // namespace millrace::vmm
