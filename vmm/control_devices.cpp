// The commands for devices: what there is, plugging in, unplugging.
#include "base/units.hpp"
#include "qmp/arguments.hpp"
#include "vmm/control.hpp"
#include "vmm/platform.hpp"

namespace millrace::vmm {

namespace {

using nlohmann::json;
using qmp::Arguments, qmp::refuse, qmp::Reply;

constexpr unsigned queues_max = 256, queue_size_max = 32768;

json list(const GuestControl& guest) {
  auto answer = json::array();
  for (const auto& device : guest.devices()) {
    answer.push_back({{"id", device.id},
                      {"driver", name_of(device.kind)},
                      {"socket", device.socket},
                      {"connected", device.connected},
                      {"queues", device.queues}});
  }
  return answer;
}

void answer_with(const base::Result<void>& result, const Reply& reply) {
  if (result) return reply(json::object());
  const auto& line = result.error().message;
  reply(refuse(line, line.starts_with("there is no") ? "DeviceNotFound" : "GenericError"));
}

void add_cpus(GuestControl& guest, Arguments& arguments, const Reply& reply) {
  const auto count = arguments.optional_number("count", 1, cpus_max).value_or(1);
  if (const auto line = arguments.finish(); !line.empty()) return reply(refuse(line));
  answer_with(guest.add_cpus(static_cast<unsigned>(count)), reply);
}

void add_memory(GuestControl& guest, Arguments& arguments, const Reply& reply) {
  const auto bytes = base::parse_size(arguments.text("size"));
  if (!bytes) arguments.wrong("\"size\": " + bytes.error().message);
  if (const auto line = arguments.finish(); !line.empty()) return reply(refuse(line));
  answer_with(guest.add_memory(*bytes), reply);
}

void add(GuestControl& guest, const json& given, const Reply& reply) {
  Arguments arguments{given, "device_add"};
  const auto driver = arguments.text("driver");
  if (driver == "cpu") return add_cpus(guest, arguments, reply);
  if (driver == "dimm") return add_memory(guest, arguments, reply);
  const auto kind = device_kind(driver);
  // Its region has to be there when the guest starts.
  if (!kind || *kind == DeviceOption::Kind::virtio_mem) {
    arguments.wrong("\"driver\" is net, disk, rng, virtio-console, balloon, vfio, cpu or dimm");
  }
  auto device = device_of(kind.value_or(DeviceOption::Kind::net));
  device.id = arguments.text("id");
  if (!is_device_id(device.id)) arguments.wrong("\"id\" is made of letters, digits, - _ .");
  if (device.kind == DeviceOption::Kind::vfio) {
    device.address = arguments.text("address");
    if (const auto line = arguments.finish(); !line.empty()) return reply(refuse(line));
    return guest.add_device(device, [reply](const auto& result) { answer_with(result, reply); });
  }
  device.socket = arguments.text("socket");
  if (device.kind == DeviceOption::Kind::net) {
    device.mac = arguments.optional_text("mac").value_or("");
  }
  const auto number = [&](const char* key, unsigned most, unsigned otherwise) {
    return static_cast<unsigned>(arguments.optional_number(key, 1, most).value_or(otherwise));
  };
  device.queues = number("queues", queues_max, device.queues);
  device.queue_size = number("queue-size", queue_size_max, device.queue_size);
  // A back-end is there, or it is not: nobody waits for one to come.
  device.wait = false;
  if (const auto line = arguments.finish(); !line.empty()) return reply(refuse(line));
  guest.add_device(device, [reply](const auto& result) { answer_with(result, reply); });
}

void remove(GuestControl& guest, const json& given, const Reply& reply) {
  Arguments arguments{given, "device_del"};
  const auto id = arguments.text("id");
  if (const auto line = arguments.finish(); !line.empty()) return reply(refuse(line));
  answer_with(guest.remove_device(id), reply);
}

}  // namespace

void Control::add_devices(qmp::CommandTable& table) {
  GuestControl& guest = guest_;
  table.add("query-devices", [&guest](const json& given, const Reply& reply) {
    const auto line = Arguments{given, "query-devices"}.finish();
    if (!line.empty()) return reply(refuse(line));
    reply(list(guest));
  });
  table.add("device_add",
            [&guest](const json& given, const Reply& reply) { add(guest, given, reply); });
  table.add("device_del",
            [&guest](const json& given, const Reply& reply) { remove(guest, given, reply); });
}

}  // namespace millrace::vmm
