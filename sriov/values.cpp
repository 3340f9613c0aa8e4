#include "sriov/values.hpp"

namespace millrace::sriov {

namespace {

template <class... Each>
struct Overloaded : Each... {
  using Each::operator()...;
};

}  // namespace

std::vector<Setting> VfValues::list() const {
  std::vector<Setting> out;
  const auto add = [&](const auto& value) {
    if (value) out.emplace_back(*value);
  };
  add(vlan), add(mac), add(rate), add(spoof_check), add(trust), add(link);
  return out;
}

std::optional<Setting> VfValues::same_kind(const Setting& like) const {
  for (auto& each : list()) {
    if (each.index() == like.index()) return each;
  }
  return std::nullopt;
}

void VfValues::set(const Setting& setting) {
  std::visit(Overloaded{[this](const Vlan& value) { vlan = value; },
                        [this](const Mac& value) { mac = value; },
                        [this](const Rate& value) { rate = value; },
                        [this](const SpoofCheck& value) { spoof_check = value; },
                        [this](const Trust& value) { trust = value; },
                        [this](const LinkState& value) { link = value; }},
             setting);
}

std::string format(const Setting& setting) {
  const auto on_off = [](bool on) { return on ? "on" : "off"; };
  return std::visit(
      Overloaded{
          [](const Vlan& vlan) {
            if (vlan.id == 0 && vlan.qos == 0) return std::string{"no VLAN"};
            return "VLAN " + std::to_string(vlan.id) + " (QoS " + std::to_string(vlan.qos) +
                   (vlan.service_tag ? ", 802.1ad)" : ")");
          },
          [](const Mac& mac) { return "MAC " + base::format_mac(mac); },
          [](const Rate& rate) {
            return "rate " + std::to_string(rate.min) + " to " + std::to_string(rate.max) +
                   " Mbit/s";
          },
          [&](const SpoofCheck& check) { return std::string{"spoof check "} + on_off(check.on); },
          [&](const Trust& trust) { return std::string{"trust "} + on_off(trust.on); },
          [](const LinkState& link) {
            const char* const names[] = {"auto", "on", "off"};
            return std::string{"link "} + names[static_cast<unsigned>(link) % 3];
          }},
      setting);
}

}  // namespace millrace::sriov
