#include "daemon/ctl/screen.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <functional>

#include "daemon/ctl/rates.hpp"
#include "daemon/ctl/table.hpp"

namespace millrace::ctl {

namespace {

using nlohmann::json;
using Lines = std::vector<std::string>;

constexpr const char* bold = "\x1b[1m";
constexpr const char* dim = "\x1b[2m";
constexpr const char* red = "\x1b[31m";

// One row with what it may be sorted by.
struct Row {
  std::vector<std::string> cells;
  std::string name, style;
  double rate = 0, drops = 0, latency = 0;
};

void sort_rows(std::vector<Row>& rows, SortKey key) {
  const auto value = [key](const Row& row) {
    switch (key) {
      case SortKey::rate:
        return row.rate;
      case SortKey::drops:
        return row.drops;
      case SortKey::latency:
        return row.latency;
      case SortKey::name:
        break;
    }
    return 0.0;
  };
  std::stable_sort(rows.begin(), rows.end(), [&](const Row& a, const Row& b) {
    return value(a) != value(b) ? value(a) > value(b) : a.name < b.name;
  });
}

// A block of the screen: all its rows, of which some may be shown.
struct Block {
  std::vector<Table::Column> columns;
  std::vector<Row> rows;
};

// "pid 1234 (qemu-system-x86)" -> "1234 qemu-system-x86": what a cut leaves tells two apart
std::string who(const json& unit) {
  const auto peer = unit.find("peer");
  if (peer == unit.end() || !peer->is_string()) return "-";
  const std::string text = *peer;
  const auto open = text.find(" ("), close = text.rfind(')');
  if (!text.starts_with("pid ") || open == std::string::npos || close == std::string::npos) {
    return text;
  }
  return text.substr(4, open - 4) + " " + text.substr(open + 2, close - open - 2);
}

std::string style_of(const json& unit, bool trouble) {
  if (trouble) return red;
  return unit.value("connected", true) ? "" : dim;
}

bool has_fault(const json& unit) {
  for (const auto& queue : unit.value("virtqueues", json::array())) {
    if (!queue["fault"].is_null()) return true;
  }
  return false;
}

std::string state_of(const json& unit) {
  return has_fault(unit) ? "fault" : unit.value("state", std::string{"?"});
}

Row packet_row(const json& before, const json& unit, double seconds, std::string second,
               std::string third) {
  const std::string name = unit["name"];
  const auto rates = port_rates(before, unit, seconds);
  Row row;
  row.name = name;
  row.rate = rates.rx_packets + rates.tx_packets;
  row.drops = rates.drops;
  row.style = style_of(unit, has_fault(unit));
  row.cells = {name,
               std::move(second),
               std::move(third),
               short_number(rates.tx_packets),
               short_number(rates.tx_bits),
               short_number(rates.rx_packets),
               short_number(rates.rx_bits),
               rates.drop_reasons.empty() ? "-" : rates.drop_reasons};
  return row;
}

std::vector<Table::Column> packet_columns(const char* kind, const char* second, const char* third) {
  return {{kind, Align::left, 14}, {second, Align::left, 9},     {third, Align::left, 12},
          {"TXpps", Align::right}, {"TXbps", Align::right},      {"RXpps", Align::right},
          {"RXbps", Align::right}, {"DROPS/s", Align::left, 200}};
}

Block port_block(const json& before, const json& after, double seconds) {
  Block block{packet_columns("PORT", "STATE", "CONNECTED"), {}};
  for (const auto& unit : after["ports"]) {
    block.rows.push_back(packet_row(unit_named(before["ports"], unit["name"]), unit, seconds,
                                    state_of(unit), who(unit)));
  }
  return block;
}

Block uplink_block(const json& before, const json& after, double seconds) {
  Block block{packet_columns("UPLINK", "LINK", "DRIVER"), {}};
  for (const auto& unit : after["uplinks"]) {
    block.rows.push_back(packet_row(unit_named(before["uplinks"], unit["name"]), unit, seconds,
                                    unit.value("link_up", false) ? "up" : "down",
                                    unit.value("driver", std::string{"-"})));
  }
  return block;
}

Block disk_block(const json& before, const json& after, double seconds) {
  Block block{{{"DISK", Align::left, 14},
               {"STATE", Align::left, 9},
               {"CONNECTED", Align::left, 12},
               {"IOPS", Align::right},
               {"MB/s", Align::right},
               {"p50", Align::right},
               {"p99", Align::right},
               {"p99.9", Align::right},
               {"FLY", Align::right},
               {"ERR", Align::right}},
              {}};
  for (const auto& unit : after["disks"]) {
    const auto rates = disk_rates(unit_named(before["disks"], unit["name"]), unit, seconds);
    Row row;
    row.name = unit["name"];
    row.rate = rates.requests;
    row.drops = static_cast<double>(rates.errors);
    row.latency = static_cast<double>(rates.p99_ns);
    row.style = style_of(unit, has_fault(unit) || rates.errors != 0);
    row.cells = {row.name,
                 state_of(unit),
                 who(unit),
                 short_number(rates.requests),
                 short_number(rates.bytes / 1e6),
                 short_duration(rates.p50_ns),
                 short_duration(rates.p99_ns),
                 short_duration(rates.p999_ns),
                 std::to_string(rates.in_flight),
                 std::to_string(rates.errors)};
    block.rows.push_back(std::move(row));
  }
  return block;
}

// What a companion has done says one line of its figures.
Block companion_block(const json& after) {
  Block block{{{"COMPANION", Align::left, 14},
               {"STATE", Align::left, 9},
               {"CONNECTED", Align::left, 12},
               {"KIND", Align::left, 8},
               {"FIGURES", Align::left, 200}},
              {}};
  for (const auto& unit : after.value("companions", json::array())) {
    Row row;
    row.name = unit["name"];
    row.style = style_of(unit, has_fault(unit));
    std::string figures;
    for (const auto& [name, value] : unit["counters"].items()) {
      if (value != 0) figures += (figures.empty() ? "" : "  ") + name + " " + value.dump();
    }
    row.cells = {row.name, state_of(unit), who(unit), unit["kind"], figures};
    block.rows.push_back(std::move(row));
  }
  return block;
}

std::string header(const json& before, const json& after) {
  const auto& status = after["status"];
  std::string line = "millraced " + status.value("version", std::string{"?"}) + "  up " +
                     uptime(status.value("uptime_s", 0.0)) + "  " +
                     std::to_string(status.value("connected", 0)) + " of " +
                     std::to_string(after["ports"].size() + after["disks"].size() +
                                    after.value("companions", json::array()).size()) +
                     " connected ";
  const auto& reactors = after["reactors"];
  for (std::size_t i = 0; i < reactors.size(); ++i) {
    const json first = i < before["reactors"].size() ? before["reactors"][i] : json{};
    const auto rates = reactor_rates(first, reactors[i]);
    std::array<char, 96> text{};
    std::snprintf(text.data(), text.size(), " cpu%d %.1f%% (%s cyc/round)",
                  reactors[i].value("core", -1), 100 * rates.busy,
                  short_number(rates.cycles_per_round).c_str());
    line += text.data();
  }
  return line;
}

// How many rows of each block fit: every block gets its fair share, what one leaves others take.
std::vector<std::size_t> shares(const std::vector<Block>& blocks, std::size_t lines) {
  std::vector<std::size_t> shown(blocks.size(), 0);
  // Title and gap of each block, and a line that counts what is left out.
  const std::size_t fixed = 3 * blocks.size();
  std::size_t left = lines > fixed ? lines - fixed : 0;
  for (bool grew = true; grew && left > 0;) {
    grew = false;
    for (std::size_t i = 0; i < blocks.size() && left > 0; ++i) {
      if (shown[i] >= blocks[i].rows.size()) continue;
      ++shown[i], --left, grew = true;
    }
  }
  return shown;
}

void append(Lines& out, Block& block, std::size_t shown, const ScreenOptions& options) {
  sort_rows(block.rows, options.sort);
  Table table{block.columns};
  for (std::size_t i = 0; i < shown; ++i) {
    table.add(block.rows[i].cells, block.rows[i].style);
  }
  out.emplace_back();
  for (auto& line : table.lines(options.width, options.colour ? bold : "")) {
    out.push_back(std::move(line));
  }
  if (shown < block.rows.size()) {
    out.push_back("... " + std::to_string(block.rows.size() - shown) + " more");
  }
}

std::string cell_of(const json& unit, const std::string& key) {
  const auto found = unit.find(key);
  if (found == unit.end() || found->is_null()) return "-";
  if (found->is_string()) return *found;
  if (found->is_boolean()) return *found ? "yes" : "no";
  if (found->is_array() && found->empty()) return "-";
  return found->dump();
}

std::string percent_of(double share) {
  std::array<char, 16> text{};
  std::snprintf(text.data(), text.size(), "%.0f%%", 100 * share);
  return text.data();
}

// "web0/1 12%, web0-root/0 3% pinned": a reactor's queues and their share of its time.
std::string queues_cell(const json& reactor) {
  std::string out;
  for (const auto& queue : reactor.value("queues", json::array())) {
    out += (out.empty() ? "" : ", ") + queue["name"].get<std::string>() + "/" +
           queue["queue"].dump() + " " + percent_of(queue["load"]);
    if (queue["pinned"]) out += " pinned";
  }
  return out.empty() ? "-" : out;
}

// "checksum, tso": what the device of an uplink does, and software else.
std::string offloads_cell(const json& uplink) {
  std::string out;
  const auto all = uplink.value("offloads", json::object());
  for (const auto& [name, whose] : all.items()) {
    if (whose == "device") out += (out.empty() ? "" : ", ") + name;
  }
  return out.empty() ? "-" : out;
}

// "pinned, 4096 bytes", "failed: why".
std::string pin_cell(const json& backend) {
  const auto pin = backend.value("pin", json::object());
  auto out = cell_of(pin, "state");
  if (pin.value("bytes", 0ull) > 0) out += ", " + cell_of(pin, "bytes") + " bytes";
  const auto why = cell_of(pin, "why");
  return why == "-" ? out : out + ": " + why;
}

std::string joined(const json& words, const char* between) {
  std::string out;
  for (const auto& each : words) out += (out.empty() ? "" : between) + each.get<std::string>();
  return out.empty() ? "-" : out;
}

std::string ring_cell(const json& backend) {
  return joined(backend.value("ring", json::array()), ", ");
}

std::string mirror_cell(const json& mirror, const std::string& key) {
  if (key == "from") return joined(mirror["from"], ",");
  return cell_of(mirror["counters"].contains(key) ? mirror["counters"] : mirror, key);
}

std::string list_cell(const std::string& kind, const json& unit, const std::string& key) {
  if (key == "backend") return cell_of(unit["backend"], "kind");
  if (key == "pin") return pin_cell(unit["backend"]);
  if (key == "ring") return ring_cell(unit["backend"]);
  if (kind == "mirrors") return mirror_cell(unit, key);
  if (kind == "uplinks" && key == "offloads") return offloads_cell(unit);
  if (kind != "reactors") return cell_of(unit, key);
  if (key == "load") return percent_of(unit.value("load", 0.0));
  return key == "queues" ? queues_cell(unit) : cell_of(unit, key);
}

std::vector<std::string> keys_of(const std::string& kind) {
  if (kind == "ports") {
    return {"name", "state", "peer", "queues", "mac", "vlan", "trunk", "mtu", "offloads", "socket"};
  }
  if (kind == "disks") {
    return {"name",     "state",   "peer", "bytes",  "queues",
            "readonly", "backend", "pin",  "socket", "ring"};  // the widest last
  }
  if (kind == "companions") {
    return {"name", "kind", "state", "peer", "socket"};
  }
  if (kind == "uplinks") {
    return {"name", "state", "carries", "link_up", "speed_mbps", "driver",
            "mac",  "mtu",   "vlan",    "trunk",   "device",     "offloads"};  // the widest last
  }
  if (kind == "mirrors") {
    return {"name", "from", "to", "direction", "frames", "bytes", "dropped"};
  }
  if (kind == "reactors") {
    return {"index", "core", "mode", "load", "sleeps", "longest_round_ns", "queues"};
  }
  if (kind == "sessions") {
    return {"name",     "kind",           "connected",    "peer",
            "phase",    "memory_regions", "memory_bytes", "virtio_features",
            "messages", "refused",        "last_error"};
  }
  return {"mac", "vlan", "port", "age_s", "static"};  // addresses
}

}  // namespace

Lines render_status(const json& before, const json& after, const ScreenOptions& options) {
  const double seconds = seconds_between(before, after);
  std::vector<Block> blocks;
  for (auto& block : {port_block(before, after, seconds), disk_block(before, after, seconds),
                      companion_block(after), uplink_block(before, after, seconds)}) {
    if (!block.rows.empty()) blocks.push_back(block);
  }
  Lines out{options.width == 0 ? header(before, after)
                               : clip(header(before, after), options.width)};
  std::vector<std::size_t> shown;
  if (options.height == 0) {
    for (const auto& block : blocks) shown.push_back(block.rows.size());
  } else {
    shown = shares(blocks, options.height - 1);
  }
  for (std::size_t i = 0; i < blocks.size(); ++i) append(out, blocks[i], shown[i], options);
  if (options.height != 0 && out.size() > options.height) out.resize(options.height);
  return out;
}

Lines render_list(const std::string& kind, const json& units, const ScreenOptions& options) {
  const auto keys = keys_of(kind);
  std::vector<Table::Column> columns;
  for (const auto& key : keys) {
    std::string title = key;
    for (auto& c : title) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    const bool widest = (kind == "reactors" && key == "queues") || key == "ring" ||
                        (kind == "uplinks" && key == "offloads");
    columns.push_back({title, Align::left, widest ? 2000u : 60u});
  }
  Table table{columns};
  for (const auto& unit : units) {
    std::vector<std::string> cells;
    for (const auto& key : keys) {
      cells.push_back(list_cell(kind, unit, key));
    }
    table.add(std::move(cells), style_of(unit, false));
  }
  return table.lines(options.width, options.colour ? bold : "");
}

Lines render_counters(const json& counters, const ScreenOptions& options) {
  Table table{{{"KIND"}, {"NAME"}, {"COUNTER"}, {"VALUE", Align::right}}};
  for (const char* kind : {"ports", "disks", "companions", "uplinks", "mirrors"}) {
    if (!counters.contains(kind)) continue;
    for (const auto& [name, values] : counters[kind].items()) {
      for (const auto& [counter, value] : values.items()) {
        if (value != 0) table.add({kind, name, counter, value.dump()});
      }
    }
  }
  return table.lines(options.width, options.colour ? bold : "");
}

}  // namespace millrace::ctl
