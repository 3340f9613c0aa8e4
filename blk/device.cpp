#include "blk/device.hpp"

#include "blk/disk.hpp"
#include "blk/file_backend.hpp"
#include "blk/memory_backend.hpp"

namespace millrace::blk {

base::Result<std::unique_ptr<Device>> Device::make(const Config& config, base::ReactorPool& pool,
                                                   UringPool& rings) {
  auto backend = [&]() -> base::Result<std::unique_ptr<Backend>> {
    switch (config.backend) {
      case BackendKind::ram:
        return MemoryBackend::make_ram(config.size, config.readonly);
      case BackendKind::null:
        return MemoryBackend::make_null(config.size, config.readonly);
      case BackendKind::file:
        break;
    }
    return FileBackend::make(config, pool.size(), rings);
  }();
  if (!backend) return base::fail("disk " + config.name + ": " + backend.error().message);
  return Disk::make(config, pool, std::move(*backend));
}

}  // namespace millrace::blk
