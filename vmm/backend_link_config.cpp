// BackendLink: the configuration space between the back-end and the driver.
#include <algorithm>
#include <chrono>
#include <mutex>

#include "vmm/backend_link.hpp"

namespace millrace::vmm {

using base::fail, base::Result;

namespace {

// How long a driver that looks at its configuration waits for a back-end that is not there.
constexpr std::chrono::milliseconds refresh_wait{1000};

}  // namespace

// Says what the back-end has to know, and looks whether it took it.
Result<void> BackendLink::tell(BackendConnection& connection) const {
  const auto& told = config_.told;
  if (told.empty()) return {};
  auto ok = connection.write_config(0, told);
  if (ok) ok = connection.read_config();
  if (!ok) return ok;
  const auto& config = connection.offer().config;
  if (config.size() >= told.size() && std::equal(told.begin(), told.end(), config.begin())) {
    return {};
  }
  return fail(
      "the back-end did not take the place of the guest's memory: this is no memory device");
}

Result<void> BackendLink::renew_config() {
  const auto ok = connection_->read_config();
  return ok ? publish_config() : ok;
}

// A back-end that has not all that it is to have would not say the truth.
void BackendLink::answer_refresh() {
  std::uint64_t wanted = 0;
  {
    const std::lock_guard lock{mutex_};
    wanted = refresh_wanted_;
    if (refreshes_ == wanted || connection_ == nullptr || (wanted_.active && !set_up_)) return;
  }
  if (const auto ok = renew_config(); !ok) return disconnect(ok.error().message);
  const std::lock_guard lock{mutex_};
  refreshes_ = wanted;
  refreshed_.notify_all();
}

// What the back-end says of itself, but for what the driver wrote there.
Result<void> BackendLink::publish_config() {
  auto shape = shape_now(connection_->offer());
  if (!shape) return base::Unexpected{shape.error()};
  {
    const std::lock_guard lock{mutex_};
    const auto field = writable_field(config_.shape.kind, shape_.features);
    if (wanted_.field && field && field->offset + field->size <= shape->config.size()) {
      std::ranges::copy(*wanted_.field, shape->config.begin() + field->offset);
    }
    shape_.config = shape->config;
  }
  listener_->config_changed(shape->config);
  return {};
}

void BackendLink::refresh_config() {
  if (!is_live()) return;
  std::unique_lock lock{mutex_};
  const auto mine = ++refresh_wanted_;
  wake();
  refreshed_.wait_for(lock, refresh_wait, [this, mine] { return refreshes_ >= mine; });
}

}  // namespace millrace::vmm
