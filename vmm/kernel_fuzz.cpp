// libFuzzer target for the boot loader: the input is a kernel file, after eight bytes that say how
// large the initrd and the command line are and which magic numbers are put in for the fuzzer.
// What is loaded is inside the guest's memory, and the entry state is sane.
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <string>

#include "base/log.hpp"
#include "vhost/testing/harness.hpp"
#include "vmm/boot.hpp"
#include "vmm/platform.hpp"
#include "vmm/testing/fuzz_input.hpp"

namespace {

using namespace millrace;
using namespace millrace::vmm;

constexpr std::uint64_t mebibyte = 1 << 20;

base::Fd file_of(std::span<const std::byte> bytes, std::uint64_t size) {
  base::Fd file{::memfd_create("fuzz", MFD_CLOEXEC)};
  CHECK(file.valid());
  CHECK(::write(file.get(), bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  CHECK(::ftruncate(file.get(), static_cast<off_t>(size)) == 0);
  return file;
}

std::string path_of(const base::Fd& file) {
  return "/proc/self/fd/" + std::to_string(file.get());
}

void put(std::vector<std::byte>& bytes, std::size_t at, std::string_view text) {
  if (bytes.size() < at + text.size()) bytes.resize(at + text.size());
  std::memcpy(bytes.data() + at, text.data(), text.size());
}

// So that an input need not find out by chance what every kernel begins with.
void help(std::vector<std::byte>& kernel, unsigned choice) {
  constexpr std::string_view elf_header{"\177ELF\2\1\1\0\0\0\0\0\0\0\0\0\2\0\76\0\1\0\0\0", 24};
  if ((choice & 3) == 1) {
    put(kernel, 0x1fe, std::string_view{"\x55\xaa", 2});
    put(kernel, 0x202, "HdrS");
  } else if ((choice & 3) == 2) {
    put(kernel, 0, elf_header);
    put(kernel, 0x34, std::string_view{"\x40\0\x38\0", 4});
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  spdlog::set_level(spdlog::level::off);
  static const auto acpi = make_acpi({1, {1ull << 35, 1ull << 35}});
  static const auto ram = GuestRam::make({.bytes = 64 * mebibyte});
  CHECK(acpi && ram);
  const auto before = vhost::testing::open_fds();
  {
    vmm::testing::FuzzInput input{data, size};
    constexpr std::array<std::uint64_t, 8> sizes{0,        1,          4095,       mebibyte + 1,
                                                 mebibyte, 1ull << 26, 1ull << 40, 1ull << 62};
    const auto choice = input.take<std::uint8_t>();
    const auto initrd_size = sizes[input.take<std::uint8_t>() % sizes.size()];
    const auto line_size = input.take<std::uint16_t>() * 2u;
    const auto extra = input.take<std::uint32_t>() % (4 * mebibyte);
    auto bytes = input.take_bytes(input.left());
    help(bytes, choice);
    const auto kernel = file_of(bytes, bytes.size() + ((choice & 4) != 0 ? extra : 0));
    const auto initrd = file_of({}, initrd_size);
    const BootConfig config{path_of(kernel), (choice & 8) != 0 ? path_of(initrd) : "",
                            std::string(line_size, 'x')};
    const auto state = boot(config, *acpi, *ram);
    if (!state) {
      CHECK(!state.error().message.empty());
      CHECK(state.error().message.find('\n') == std::string::npos);
    }
  }
  CHECK(vhost::testing::open_fds() == before);
  return 0;
}
