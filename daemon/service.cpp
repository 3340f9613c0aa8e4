#include "daemon/service.hpp"

#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <chrono>
#include <csignal>

#include "base/log.hpp"
#include "daemon/commands.hpp"
#include "daemon/options.hpp"
#include "daemon/system_check.hpp"
#include "daemon/version.hpp"

namespace millrace::daemon {

namespace {

// A drain waits for the storage. Past this bound the process ends all the same, and says so.
constexpr std::chrono::seconds drain_max{30};

}  // namespace

int Service::run(const Config& config) {
  Service service;
  if (service.start(config)) service.loop_.run();
  // Clients first, then what they ask about; the loop outlives both.
  service.control_.reset();
  service.topology_.reset();
  return service.status_;
}

bool Service::start(const Config& config) {
  auto signals = Signals::make(loop_, [this](int signal) { on_signal(signal); });
  if (!signals) return fail(signals.error().message), false;
  signals_ = *std::move(signals);

  auto topology = Topology::make(loop_, config);
  if (!topology) return fail(topology.error().message), false;
  topology_ = *std::move(topology);

  // The control socket is the lock of this configuration: a second daemon ends here, before it
  // touches an image or another socket.
  if (auto made = make_socket_directory(config.control_socket); !made) {
    return fail(made.error().message), false;
  }
  auto control = qmp::Server::make(
      loop_, {config.control_socket, config.control_permissions, version_object()},
      make_commands(*topology_, [this] { stop("asked to by the control socket"); }));
  if (!control) return fail(control.error().message), false;
  control_ = *std::move(control);
  topology_->on_event([this](std::string_view event, const nlohmann::json& data) {
    if (control_ != nullptr) control_->emit(event, data);
  });

  topology_->add_all(config, [this](const base::Result<void>& result) { started(result); });
  return true;
}

void Service::started(const base::Result<void>& result) {
  if (!result) {
    if (stopping_) return;  // a signal came first; its close() is under way
    fail(result.error().message);
    return stop("not everything could be started");
  }
  spdlog::info("ready: {} ports, {} disks, {} uplinks on {} reactors", topology_->ports().size(),
               topology_->disks().size(), topology_->uplinks().size(),
               topology_->reactors().size());
  sd_notify(0, "READY=1\nSTATUS=Serving");
}

void Service::stop(const char* why) {
  if (stopping_) return;
  stopping_ = true;
  spdlog::info("stopping: {}", why);
  sd_notify(0, "STOPPING=1\nSTATUS=Draining");
  if (control_ != nullptr) control_->emit("SHUTDOWN", {{"reason", why}});
  too_long_ = loop_.after(drain_max, [this] {
    const auto device = topology_->waits_for();
    spdlog::error("not drained after {} s: ending without it{}{}", drain_max.count(),
                  device.empty() ? "" : "; still under way: ", device);
    spdlog::shutdown();
    ::_exit(exit_failed);
  });
  // Deferred: a command's answer and the event above leave first.
  loop_.defer([this] {
    topology_->close([this] {
      spdlog::info("drained");
      loop_.stop();
    });
  });
}

void Service::on_signal(int signal) {
  if (signal == SIGHUP) {
    spdlog::info("SIGHUP: the configuration is read at the start only; use millctl to change it");
    return;
  }
  if (stopping_) {
    spdlog::error("a second signal: ending without draining");
    spdlog::shutdown();
    ::_exit(exit_failed);
  }
  stop(signal == SIGTERM ? "SIGTERM" : "SIGINT");
}

void Service::fail(const std::string& line) {
  spdlog::error("{}", line);
  status_ = exit_failed;
}

}  // namespace millrace::daemon
