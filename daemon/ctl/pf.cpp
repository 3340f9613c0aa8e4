#include "daemon/ctl/pf.hpp"

#include <cstdio>
#include <utility>

#include "daemon/ctl/arguments.hpp"
#include "daemon/ctl/table.hpp"

namespace millrace::ctl {

namespace {

using nlohmann::json;

int list(const Settings& settings) {
  return ask(settings, "query-pfs", json::object(), [](const json& pfs) {
    for (const auto& line : render_pfs(pfs, {})) std::printf("%s\n", line.c_str());
  });
}

int apply(const Settings& settings, const PfRequest& request) {
  json arguments{{"all", request.all}};
  if (request.given) arguments["pci"] = request.pci;
  return ask(settings, "pf-apply", arguments, [](const json& answer) {
    for (const auto& each : answer) {
      const auto pci = each.value("pci", "");
      if (each["done"].empty()) std::printf("PF %s: as configured already\n", pci.c_str());
      for (const auto& line : each["done"]) {
        std::printf("PF %s: %s\n", pci.c_str(), line.get<std::string>().c_str());
      }
    }
  });
}

// Prints the function's address alone, for a VMM's command line.
int lease(const Settings& settings, const PfRequest& request) {
  const auto arguments = parse_arguments(request.words, "function");
  if (!arguments) {
    std::fprintf(stderr, "millctl: %s\n", arguments.error().message.c_str());
    return exit_usage;
  }
  return ask(settings, "function-lease", *arguments, [](const json& answer) {
    std::printf("%s\n", answer["pci"].get<std::string>().c_str());
  });
}

std::string or_dash(const json& object, const char* key) {
  if (!object.contains(key) || object[key].is_null()) return "-";
  const auto& value = object[key];
  if (value.is_boolean()) return value.get<bool>() ? "on" : "off";
  const auto text = value.is_string() ? value.get<std::string>() : value.dump();
  return text.empty() ? "-" : text;
}

std::string vlan_of(const json& vf) {
  if (vf.value("vlan", 0) == 0) return "-";
  return or_dash(vf, "vlan") + (vf.value("vlan_protocol", "") == "802.1ad" ? " (802.1ad)" : "");
}

std::string user_of(const json& vf) {
  const auto lent = vf.value("lent_to", "");
  // Who has an uplink's open is the daemon.
  if (!lent.empty() && !lent.starts_with("guest ")) return lent;
  for (const auto& each : vf.value("held_by", json::array())) {
    return (lent.empty() ? "" : lent + ", ") + "process " + each["pid"].dump() + " (" +
           each.value("name", "") + ")";
  }
  return lent.empty() ? "-" : lent;
}

}  // namespace

std::vector<std::string> render_pfs(const json& pfs, const ScreenOptions& screen) {
  std::vector<std::string> out;
  for (const auto& pf : pfs) {
    if (!out.empty()) out.emplace_back();
    out.push_back("PF " + pf.value("pci", "") + "  " + or_dash(pf, "interface") + "  driver " +
                  or_dash(pf, "driver") + "  " + (pf.value("link", false) ? "link up" : "no link") +
                  "  " + std::to_string(pf["vfs"].size()) + " of " + or_dash(pf, "vfs_max") +
                  " VFs" + (pf.value("adopted", false) ? ", adopted" : ""));
    const auto problem = pf.value("problem", "");
    out.push_back(problem.empty() ? "as configured" : "NOT as configured: " + problem);
    if (pf["vfs"].empty()) continue;
    Table table{{{"VF", Align::right},
                 {"PCI"},
                 {"DRIVER"},
                 {"NODE"},
                 {"MAC"},
                 {"VLAN"},
                 {"RATE", Align::right},
                 {"SPOOF"},
                 {"TRUST"},
                 {"LINK"},
                 {"USED BY", {}, 60}}};
    for (const auto& vf : pf["vfs"]) {
      table.add({or_dash(vf, "index"), or_dash(vf, "pci"), or_dash(vf, "driver"),
                 or_dash(vf, "numa_node"), or_dash(vf, "mac"), vlan_of(vf),
                 vf.value("max_rate", 0) == 0 ? "-" : or_dash(vf, "max_rate"),
                 or_dash(vf, "spoof_check"), or_dash(vf, "trust"), or_dash(vf, "link"),
                 user_of(vf)});
    }
    for (auto& line : table.lines(screen.width, "")) out.push_back(std::move(line));
  }
  return out;
}

void add_pf(CLI::App& app, PfRequest& request,
            std::function<void(std::function<int(const Settings&)>)> choose) {
  auto* const pf = app.add_subcommand("pf", "NICs' physical functions and their virtual functions");
  pf->require_subcommand(1);
  pf->fallthrough();
  pf->add_subcommand("list", "Every one with its virtual functions, and who uses them")
      ->callback([choose] { choose(list); });
  auto* const again = pf->add_subcommand("apply", "Brings them to what the configuration says");
  auto* const pci = again->add_option("pci", request.pci, "0000:01:00.0; left out: all of them");
  again->add_flag("--all", request.all,
                  "Take the interface down and up and write all values, after a reset of the NIC "
                  "that its driver did not notice");
  again->callback([choose, pci, &request] {
    request.given = pci->count() > 0;  // an empty address is none, not all
    choose([&request](const Settings& settings) { return apply(settings, request); });
  });
  auto* const lend = app.add_subcommand(
      "lease", "Lends a virtual function to a guest that drives it itself, and prints its address");
  lend->add_option("keys", request.words,
                   "name=web0, the guest's; where wanted pf=0000:01:00.0, numa_node=0, mac=..., "
                   "vlan=... and the other keys of [[pf.vf]]")
      ->required();
  lend->callback([choose, &request] {
    choose([&request](const Settings& settings) { return lease(settings, request); });
  });
  auto* const back = app.add_subcommand("return", "Takes a guest's function back, and resets it");
  back->add_option("guest", request.guest)->required();
  back->callback([choose, &request] {
    choose([&request](const Settings& settings) {
      return execute(settings, "function-return", {{"name", request.guest}});
    });
  });
}

}  // namespace millrace::ctl
