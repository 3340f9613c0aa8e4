// guest::Device: a companion of a guest, a small virtio device beside its NICs and disks.
// Thread: control.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/event_loop.hpp"
#include "base/result.hpp"
#include "guest/config.hpp"
#include "virtio/device_base.hpp"
#include "virtio/features.hpp"

namespace millrace::guest {

// One number of a device's status: a counter, or how something stands.
struct Figure {
  const char* name;
  std::uint64_t value;
};

// A console's port.
struct PortStatus {
  PortSettings settings;
  unsigned id;
  bool host_open, guest_open;
  std::uint64_t bytes_in, bytes_out;  // to the guest, from it; since the start, of this place
  std::uint64_t dropped;              // bytes, both ways
};

class Device : public virtio::DeviceBase {
 public:
  // What all of them offer of the rings.
  static constexpr std::uint64_t ring_features =
      virtio::feature::version_1 | virtio::feature::any_layout | virtio::feature::indirect_desc |
      virtio::feature::event_idx | virtio::feature::ring_packed | virtio::feature::ring_reset;

  using DeviceBase::DeviceBase;
  [[nodiscard]] virtual std::vector<Figure> figures() const = 0;
  // console: its ports as of now.
  [[nodiscard]] virtual std::vector<PortStatus> ports() const { return {}; }
  // console: the guest sees the port come or go. Others refuse.
  virtual base::Result<void> add_port(const PortSettings& settings);
  virtual base::Result<void> remove_port(const std::string& port);
  // balloon: how much memory the guest shall give up; mem: how much it shall have. Answers what it
  // is told, in whole pages; it gets there in its own time. Others refuse.
  virtual base::Result<std::uint64_t> set_size(std::uint64_t bytes);
};

class Reclaimer;

// What devices share; all of it outlives them.
struct Means {
  base::EventLoop& loop;
  base::ReactorPool& pool;
  Reclaimer& reclaimer;
};

// Errors in one line that begins with kind and name.
base::Result<std::unique_ptr<Device>> make_device(const std::string& name, const Settings& settings,
                                                  const Means& means);

}  // namespace millrace::guest
