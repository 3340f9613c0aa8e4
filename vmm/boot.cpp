#include "vmm/boot.hpp"

#include <array>

#include "vmm/boot_parts.hpp"

namespace millrace::vmm {

using base::fail;
using base::Result;

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
  auto file = BootFile::open(config.kernel, "kernel");
  if (!file) return base::Unexpected{file.error()};
  const auto kind = identify_kernel(*file);
  if (!kind) return base::Unexpected{kind.error()};
  write_gdt(ram);
  write_page_tables(ram);
  write_reset_vector(ram);
  const auto tables = ram.at(acpi.address, acpi.bytes.size());
  CHECK(tables.size() == acpi.bytes.size());
  std::memcpy(tables.data(), acpi.bytes.data(), acpi.bytes.size());
  return *kind == KernelKind::elf ? boot_elf(config, *file, acpi, ram)
                                  : boot_bzimage(config, *file, acpi, ram);
}

}  // namespace millrace::vmm
