#include "vmm/size_options.hpp"

#include <charconv>
#include <vector>

#include "base/units.hpp"
#include "vmm/platform.hpp"

namespace millrace::vmm {

using base::fail;
using base::Result;

namespace {

Result<unsigned> number(const std::string& text, unsigned most) {
  unsigned value = 0;
  const auto* const end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  if (error == std::errc{} && stopped == end && value > 0 && value <= most) return value;
  return fail("'" + text + "' is no number from 1 to " + std::to_string(most));
}

std::vector<std::string> parts_of(const std::string& text) {
  std::vector<std::string> parts;
  std::size_t at = 0;
  do {
    const auto end = std::min(text.find(',', at), text.size());
    parts.push_back(text.substr(at, end - at));
    at = end + 1;
  } while (at <= text.size());
  return parts;
}

// The value of "KEY=VALUE" where that is the key.
bool takes(const std::string& part, const std::string& key, std::string& value) {
  if (!part.starts_with(key + "=")) return false;
  value = part.substr(key.size() + 1);
  return true;
}

}  // namespace

Result<CpusOption> parse_cpus(const std::string& text) {
  CpusOption option;
  const auto parts = parts_of(text);
  const auto count = number(parts.front(), cpus_max);
  if (!count) return base::Unexpected{count.error()};
  option.count = option.most = *count;
  for (std::size_t i = 1; i < parts.size(); ++i) {
    std::string value;
    if (!takes(parts[i], "max", value)) return fail("'" + parts[i] + "' is not max=N");
    const auto most = number(value, cpus_max);
    if (!most) return fail("max: " + most.error().message);
    option.most = *most;
  }
  if (option.most >= option.count) return option;
  return fail("max=" + std::to_string(option.most) + " is less than the " +
              std::to_string(option.count) + " vCPUs of the start");
}

Result<MemoryOption> parse_memory(const std::string& text) {
  MemoryOption option;
  const auto parts = parts_of(text);
  const auto bytes = base::parse_size(parts.front());
  if (!bytes) return base::Unexpected{bytes.error()};
  option.bytes = option.most = *bytes;
  for (std::size_t i = 1; i < parts.size(); ++i) {
    std::string value;
    if (takes(parts[i], "max", value)) {
      const auto most = base::parse_size(value);
      if (!most) return fail("max: " + most.error().message);
      option.most = *most;
    } else if (takes(parts[i], "slots", value)) {
      const auto slots = number(value, memory_slots_max);
      if (!slots) return fail("slots: " + slots.error().message);
      option.slots = *slots;
    } else {
      return fail("'" + parts[i] + "' is neither max=SIZE nor slots=N");
    }
  }
  if (option.most < option.bytes) return fail("max is less than the memory of the start");
  const bool grows = option.most > option.bytes;
  if (!grows && option.slots != 0) return fail("slots are for a maximum: give max=SIZE, too");
  constexpr unsigned usual_slots = 8;
  if (grows && option.slots == 0) option.slots = usual_slots;
  return option;
}

}  // namespace millrace::vmm
