// Reads [[disk]].
#include <algorithm>
#include <bit>
#include <limits>
#include <string_view>

#include "daemon/config_common.hpp"

namespace millrace::daemon {

namespace {

constexpr std::uint64_t sector = 512;
constexpr std::uint64_t size_most = 1ull << 60;

void read_backend(Section& section, blk::Config& device) {
  using blk::BackendKind;
  section.choice<BackendKind>(
      "backend", device.backend,
      {{"file", BackendKind::file}, {"ram", BackendKind::ram}, {"null", BackendKind::null}});
  section.text("path", device.path);
  section.size("size", device.size, sector, size_most);
  static constexpr std::string_view kinds[] = {"file", "ram", "null"};
  if (const auto* kind = section.find("backend");
      kind != nullptr && (kind->text() == nullptr || std::find(std::begin(kinds), std::end(kinds),
                                                               *kind->text()) == std::end(kinds))) {
    return;  // noted above; what goes with it cannot be judged
  }
  if (device.backend == BackendKind::file) {
    section.require("path", "\"/var/lib/millrace/NAME.img\", or backend = \"ram\" or \"null\"");
    if (section.has("path") && section.find("path")->text() != nullptr && device.path.empty()) {
      section.problem("path", "path is empty; give the path of an image or a block device");
    } else if (!device.path.empty() && device.path.front() != '/') {
      section.problem("path", "path \"" + device.path + "\" is relative; give a path from /");
    }
    if (section.has("size")) {
      section.problem("size", "a file has the size it has; leave size out (see truncate(1))");
    }
  } else {
    section.require("size", "\"1GiB\"");
    if (section.has("path")) {
      section.problem("path", "this backend keeps nothing in a file; leave path out, or backend");
    }
    if (device.size % sector != 0) {
      section.problem("size", "size is not a multiple of 512 bytes; give whole sectors");
    }
  }
}

// How transfers reach a file.
void read_io(Section& section, blk::Config& device) {
  section.choice<blk::DirectMode>("direct", device.direct,
                                  {{"auto", blk::DirectMode::automatic},
                                   {"on", blk::DirectMode::on},
                                   {"off", blk::DirectMode::off}});
  section.choice<blk::PinMode>(
      "pin", device.pin,
      {{"auto", blk::PinMode::automatic}, {"on", blk::PinMode::on}, {"off", blk::PinMode::off}});
  section.choice<blk::PollMode>(
      "iopoll", device.iopoll,
      {{"auto", blk::PollMode::automatic}, {"on", blk::PollMode::on}, {"off", blk::PollMode::off}});
  if (device.backend != blk::BackendKind::file && device.pin == blk::PinMode::on) {
    section.problem("pin", "this backend has nothing to pin memory for; leave pin out");
  }
  if (device.backend != blk::BackendKind::file && device.iopoll == blk::PollMode::on) {
    section.problem("iopoll", "this backend has no device to poll; leave iopoll out");
  }
  if (device.iopoll == blk::PollMode::on && device.direct == blk::DirectMode::off) {
    section.problem("iopoll", "only direct transfers can be polled for; leave direct out");
  }
}

void read_limits(Section& section, blk::Config& device) {
  constexpr std::uint64_t most = std::numeric_limits<std::uint32_t>::max();
  std::uint64_t block = device.block_size, segment = device.size_max;
  section.size("block_size", block, sector, 4096);
  if (block != 0 && !std::has_single_bit(block)) {
    section.problem("block_size", "block_size is not a power of two; give 512, 1024, 2048 or 4096");
  }
  device.block_size = static_cast<std::uint32_t>(block);
  // A request is a header, its segments and a status byte: within one chain of 1024.
  section.number("segments_max", device.segments_max, 1, 1008);
  section.size("size_max", segment, 4096, most);
  device.size_max = static_cast<std::uint32_t>(segment);
  section.number("discard_segments_max", device.discard_segments_max, 1, 256);
  std::uint64_t discard = 0;
  section.size("discard_max", discard, sector, most * sector);
  if (discard % sector != 0) {
    section.problem("discard_max",
                    "discard_max is not a multiple of 512 bytes; give whole sectors");
  }
  device.discard_sectors_max = discard / sector;
  if (std::has_single_bit(block) && device.size % block != 0) {
    section.problem("size", "size is not a multiple of block_size; give whole blocks");
  }
}

}  // namespace

GuestDisk read_disk(const Value& table, const std::string& title, Problems& problems) {
  GuestDisk disk;
  disk.at = table.at();
  auto& device = disk.device;
  Section section{members(table, title, problems), table.at(), titled(table, title), problems};
  read_name(section, device.name);
  read_server(section, disk.server);
  disk.socket_at = section.at("socket");
  read_backend(section, device);
  disk.path_at = section.at("path");
  section.number("queues", device.queues, 1, blk::queues_max);
  read_reactor_list(section, disk.reactors);
  disk.reactors_at = section.at("reactors");
  section.flag("readonly", device.readonly);
  section.text("serial", device.serial);
  if (device.serial.size() > 20) {
    section.problem(
        "serial", "serial has " + std::to_string(device.serial.size()) + " bytes; give at most 20");
  }
  read_io(section, device);
  section.flag("write_cache", device.write_cache);
  read_limits(section, device);
  section.flag("packed", device.packed);
  section.flag("in_order", device.in_order);
  section.flag("ring_reset", device.ring_reset);
  section.finish();
  return disk;
}

}  // namespace millrace::daemon
