#include "guest/device.hpp"

#include "guest/balloon.hpp"
#include "guest/console.hpp"
#include "guest/mem.hpp"
#include "guest/rng.hpp"

namespace millrace::guest {

namespace {

template <class... Each>
struct Overloaded : Each... {
  using Each::operator()...;
};
template <class... Each>
Overloaded(Each...) -> Overloaded<Each...>;

}  // namespace

const char* kind_of(const Settings& settings) {
  return std::visit(Overloaded{[](const RngSettings&) { return "rng"; },
                               [](const ConsoleSettings&) { return "console"; },
                               [](const BalloonSettings&) { return "balloon"; },
                               [](const MemSettings&) { return "mem"; }},
                    settings);
}

base::Result<std::unique_ptr<Device>> make_device(const std::string& name, const Settings& settings,
                                                  const Means& means) {
  auto made = std::visit(
      Overloaded{
          [&](const RngSettings& rng) { return make_rng(name, rng, means); },
          [&](const ConsoleSettings& console) { return Console::make(name, console, means); },
          [&](const BalloonSettings& balloon) -> base::Result<std::unique_ptr<Device>> {
            return std::unique_ptr<Device>{std::make_unique<Balloon>(name, balloon, means)};
          },
          [&](const MemSettings& mem) -> base::Result<std::unique_ptr<Device>> {
            return std::unique_ptr<Device>{std::make_unique<Mem>(name, mem, means)};
          }},
      settings);
  if (made) return made;
  return base::fail(std::string{kind_of(settings)} + " " + name + ": " + made.error().message);
}

base::Result<void> Device::add_port(const PortSettings&) {
  return base::fail(name() + " is no console");
}

base::Result<std::uint64_t> Device::set_size(std::uint64_t) {
  return base::fail(name() + " has no size");
}

base::Result<void> Device::remove_port(const std::string&) {
  return base::fail(name() + " is no console");
}

}  // namespace millrace::guest
