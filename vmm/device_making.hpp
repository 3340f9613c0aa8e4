// DeviceMaking: a device that comes to a guest while it runs is made on a thread of its own, since
// its back-end may be slow to answer, or never do; the loop serves others meanwhile.
//
// Thread: the loop's; what it is given runs on the thread of its own.
#pragma once

#include <functional>
#include <memory>
#include <thread>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "vmm/pci.hpp"

namespace millrace::vmm {

class DeviceMaking {
 public:
  using Made = base::Result<std::unique_ptr<PciFunction>>;
  // Makes the device, and gives up soon after the descriptor it is given is readable.
  using Make = std::function<Made(int cancel)>;

  // Runs `make`, then `done`, which shall bring somebody to call take(). Fails without descriptors.
  static base::Result<std::unique_ptr<DeviceMaking>> begin(Make make, std::function<void()> done);
  ~DeviceMaking();  // gives up, and waits for the thread
  DeviceMaking(const DeviceMaking&) = delete;
  DeviceMaking& operator=(const DeviceMaking&) = delete;

  // `done` will follow soon, if it has not been called.
  void give_up() const;
  // The device, or why there is none. Once; waits for the thread.
  Made take();

 private:
  DeviceMaking() = default;
  void finish();

  base::Fd cancel_;
  Made made_{std::unique_ptr<PciFunction>{}};
  std::thread thread_;
};

}  // namespace millrace::vmm
