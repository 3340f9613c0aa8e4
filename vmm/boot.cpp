#include "vmm/boot.hpp"

#include <array>

#include "vmm/boot_parts.hpp"

namespace millrace::vmm {

using base::fail;
using base::Result;

namespace {

Result<void> open_once(std::shared_ptr<const BootFile>& file, const std::string& path,
                       const char* what) {
  if (file != nullptr || path.empty()) return {};
  auto opened = BootFile::open(path, what);
  if (!opened) return base::Unexpected{opened.error()};
  file = std::make_shared<const BootFile>(*std::move(opened));
  return {};
}

}  // namespace

Result<void> keep_open(BootConfig& config) {
  if (config.kernel.empty()) return fail("there is no kernel: name one");
  if (auto ok = open_once(config.kernel_file, config.kernel, "kernel"); !ok) return ok;
  return open_once(config.initrd_file, config.initrd, "initrd");
}

Result<KernelKind> identify_kernel(const BootFile& file) {
  constexpr std::size_t magic_at = 0x202;
  constexpr std::string_view elf{"\177ELF"}, bzimage{"HdrS"};
  std::array<std::byte, magic_at + 4> start{};
  const auto size = std::min<std::uint64_t>(file.size(), start.size());
  if (auto ok = file.read(0, std::span{start}.first(size)); !ok) {
    return base::Unexpected{ok.error()};
  }
  const auto has = [&start](std::string_view magic, std::size_t at) {
    return std::memcmp(start.data() + at, magic.data(), magic.size()) == 0;
  };
  if (has(elf, 0)) return KernelKind::elf;
  if (has(bzimage, magic_at)) return KernelKind::bzimage;
  return fail("the " + file.label() +
              " is no kernel: give a Linux bzImage (vmlinuz) or an ELF "
              "file (vmlinux)");
}

Result<EntryState> boot(const BootConfig& config, const AcpiImage& acpi, const GuestRam& ram) {
  auto files = config;
  if (auto ok = keep_open(files); !ok) return base::Unexpected{ok.error()};
  const auto& file = *files.kernel_file;
  const auto kind = identify_kernel(file);
  if (!kind) return base::Unexpected{kind.error()};
  write_gdt(ram);
  write_page_tables(ram);
  write_reset_vector(ram);
  const auto tables = ram.at(acpi.address, acpi.bytes.size());
  CHECK(tables.size() == acpi.bytes.size());
  std::memcpy(tables.data(), acpi.bytes.data(), acpi.bytes.size());
  return *kind == KernelKind::elf ? boot_elf(files, file, acpi, ram)
                                  : boot_bzimage(files, file, acpi, ram);
}

}  // namespace millrace::vmm
