// What the VMM's devices are tested with, without KVM: a driver's half of a virtqueue in guest
// memory, and back-ends in processes of their own that can be killed.
#pragma once

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/check.hpp"
#include "tests/backend_rig.hpp"
#include "virtio/shared.hpp"
#include "virtio/wire/ring.hpp"
#include "vmm/ram.hpp"
#include "vmm/testing/pci_driver.hpp"

namespace millrace::tests {

// A virtqueue, split or packed, whose chains all have `chain` descriptors. One thread.
class GuestQueue {
 public:
  struct Buffer {
    std::uint64_t address = 0;
    std::uint32_t size = 0;
    bool writable = false;
  };
  struct Layout {
    std::uint64_t address = 0;  // of 64 KiB of guest memory
    std::uint16_t size = 64, chain = 3;
    bool packed = false;
  };

  GuestQueue(const vmm::GuestRam& ram, const Layout& layout) : ram_{ram}, layout_{layout} {
    clear();
  }
  // The state at a queue's start.
  void clear() {
    std::memset(at<std::byte>(layout_.address), 0, 0x10000);
    next_ = used_ = 0;
    wrap_ = used_wrap_ = true;
  }
  [[nodiscard]] std::uint64_t descriptors() const { return layout_.address; }
  [[nodiscard]] std::uint64_t driver() const { return layout_.address + 0x8000; }
  [[nodiscard]] std::uint64_t device() const { return layout_.address + 0xc000; }

  // Makes one chain available; its number. Not kicked.
  std::uint16_t offer(const std::vector<Buffer>& buffers) {
    CHECK(buffers.size() == layout_.chain);
    return layout_.packed ? offer_packed(buffers) : offer_split(buffers);
  }
  // The number of a chain that came back.
  std::optional<std::uint16_t> poll() { return layout_.packed ? poll_packed() : poll_split(); }

 private:
  template <class T>
  T* at(std::uint64_t address) {
    const auto span = ram_.at(address, sizeof(T));
    CHECK(!span.empty());
    return reinterpret_cast<T*>(span.data());
  }
  std::uint16_t offer_split(const std::vector<Buffer>& buffers) {
    namespace wire = virtio::wire;
    const auto head = static_cast<std::uint16_t>(next_ * layout_.chain % layout_.size);
    for (std::uint16_t i = 0; i < layout_.chain; ++i) {
      const bool last = i + 1 == layout_.chain;
      const auto flags = static_cast<std::uint16_t>(
          (buffers[i].writable ? wire::descriptor_write : 0) | (last ? 0 : wire::descriptor_next));
      *at<wire::Descriptor>(descriptors() + (head + i) * sizeof(wire::Descriptor)) = {
          base::le64{buffers[i].address}, base::le32{buffers[i].size}, base::le16{flags},
          base::le16{static_cast<std::uint16_t>(head + i + 1)}};
    }
    *at<base::le16>(driver() + 4 + 2ull * (next_ % layout_.size)) = base::le16{head};
    ++next_;
    virtio::store_release(at<base::le16>(driver() + 2), base::le16{next_});
    return head;
  }
  std::optional<std::uint16_t> poll_split() {
    const auto index = virtio::load_acquire(at<base::le16>(device() + 2)).host();
    if (index == used_) return std::nullopt;
    const auto* element =
        at<virtio::wire::UsedElement>(device() + 4 + 8ull * (used_ % layout_.size));
    ++used_;
    return static_cast<std::uint16_t>(element->id.host());
  }
  [[nodiscard]] std::uint16_t flags_of(bool writable, bool last) const {
    namespace wire = virtio::wire;
    return static_cast<std::uint16_t>((writable ? wire::descriptor_write : 0) |
                                      (last ? 0 : wire::descriptor_next) |
                                      (wrap_ ? wire::descriptor_available : wire::descriptor_used));
  }
  std::uint16_t offer_packed(const std::vector<Buffer>& buffers) {
    namespace wire = virtio::wire;
    const auto id = next_;
    auto* const first = at<wire::PackedDescriptor>(descriptors() + next_ * 16ull);
    const auto first_flags = flags_of(buffers[0].writable, layout_.chain == 1);
    for (std::uint16_t i = 0; i < layout_.chain; ++i) {
      auto* const slot = at<wire::PackedDescriptor>(descriptors() + next_ * 16ull);
      slot->address = base::le64{buffers[i].address};
      slot->length = base::le32{buffers[i].size};
      slot->id = base::le16{id};
      if (i != 0) slot->flags = base::le16{flags_of(buffers[i].writable, i + 1 == layout_.chain)};
      if (++next_ == layout_.size) next_ = 0, wrap_ = !wrap_;
    }
    virtio::store_release(&first->flags, base::le16{first_flags});
    return id;
  }
  std::optional<std::uint16_t> poll_packed() {
    namespace wire = virtio::wire;
    const auto* slot = at<wire::PackedDescriptor>(descriptors() + used_ * 16ull);
    const auto flags = virtio::load_acquire(&slot->flags).host();
    const bool available = (flags & wire::descriptor_available) != 0;
    const bool used = (flags & wire::descriptor_used) != 0;
    if (available != used || used != used_wrap_) return std::nullopt;
    const auto id = slot->id.host();
    used_ = static_cast<std::uint16_t>(used_ + layout_.chain);
    if (used_ >= layout_.size) {
      used_ = static_cast<std::uint16_t>(used_ - layout_.size);
      used_wrap_ = !used_wrap_;
    }
    return id;
  }

  const vmm::GuestRam& ram_;
  const Layout layout_;
  std::uint16_t next_ = 0, used_ = 0;
  bool wrap_ = true, used_wrap_ = true;
};

// A back-end process, forked before a test has threads and started when the test says so. Its
// socket is `link`, whoever serves it now. Ends with the test.
class ServedProcess {
 public:
  using SetUp = std::function<std::string(Backend&)>;  // answers the socket's path

  ServedProcess(const std::string& link, const SetUp& set_up) : link_{link} {
    std::array<int, 2> orders{}, answers{};
    CHECK(::pipe2(orders.data(), O_CLOEXEC) == 0 && ::pipe2(answers.data(), O_CLOEXEC) == 0);
    pid_ = ::fork();
    CHECK(pid_ >= 0);
    const base::Fd read_orders{orders[0]}, write_answers{answers[1]};
    orders_ = base::Fd{orders[1]};
    answers_ = base::Fd{answers[0]};
    if (pid_ == 0) serve(read_orders, write_answers, set_up);
  }
  ~ServedProcess() { kill(); }
  ServedProcess(const ServedProcess&) = delete;
  ServedProcess& operator=(const ServedProcess&) = delete;

  void start() {
    order('s');
    folder_ = std::filesystem::read_symlink(link_).parent_path();
  }
  void stop() {  // in good order
    order('q');
    reap();
  }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    reap();
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }

 private:
  [[noreturn]] void serve(const base::Fd& orders, const base::Fd& answers, const SetUp& set_up) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    char order = 0;
    if (::read(orders.get(), &order, 1) != 1 || order != 's') ::_exit(0);
    {
      Backend backend;
      const auto socket = set_up(backend);
      const auto fresh = link_ + ".new";
      std::filesystem::remove(fresh);
      std::filesystem::create_symlink(socket, fresh);
      std::filesystem::rename(fresh, link_);
      CHECK(::write(answers.get(), "s", 1) == 1);
      while (::read(orders.get(), &order, 1) == 1 && order != 'q') {
      }
    }
    CHECK(::write(answers.get(), "q", 1) == 1);
    ::_exit(0);
  }
  void order(char what) {
    char answer = 0;
    CHECK(::write(orders_.get(), &what, 1) == 1);
    CHECK(::read(answers_.get(), &answer, 1) == 1 && answer == what);
  }
  void reap() {
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

  const std::string link_;
  pid_t pid_ = -1;
  base::Fd orders_, answers_;
  std::filesystem::path folder_;  // the back-end's own
};

}  // namespace millrace::tests
