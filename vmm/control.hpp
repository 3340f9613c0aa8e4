// Control: the control socket of one guest: QMP's commands and events, as QEMU documents them where
// it has them.
//
// Thread: the loop's.
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/event_loop.hpp"
#include "base/fd.hpp"
#include "base/result.hpp"
#include "qmp/server.hpp"
#include "vmm/guest_control.hpp"

namespace millrace::vmm {

// What DUMP_COMPLETED says.
[[nodiscard]] nlohmann::json dump_event(const DumpProgress& progress);

class Control {
 public:
  // Descriptors that clients may leave here by getfd.
  static constexpr std::size_t descriptors_max = 16;

  // `guest` outlives it. Fails in one line where the socket cannot be had.
  static base::Result<std::unique_ptr<Control>> make(base::EventLoop& loop,
                                                     const std::string& socket,
                                                     GuestControl& guest);
  Control(const Control&) = delete;
  Control& operator=(const Control&) = delete;

  // To every client. `data` null: the event has none.
  void emit(std::string_view event, const nlohmann::json& data = nullptr);

 private:
  explicit Control(GuestControl& guest) : guest_{guest} {}
  // control_commands.cpp
  void add_queries(qmp::CommandTable& table);
  void add_actions(qmp::CommandTable& table);
  // control_devices.cpp
  void add_devices(qmp::CommandTable& table);
  // control_dump.cpp
  void add_dump(qmp::CommandTable& table);
  void add_descriptors(qmp::CommandTable& table);
  void begin_dump(const nlohmann::json& arguments, const qmp::Reply& reply);
  base::Result<base::Fd> open_dump(const std::string& protocol);

  GuestControl& guest_;
  std::map<std::string, base::Fd> descriptors_;  // by the name that getfd gave
  std::unique_ptr<qmp::Server> server_;
};

}  // namespace millrace::vmm
