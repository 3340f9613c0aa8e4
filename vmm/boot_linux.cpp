#include <sys/random.h>

#include <algorithm>
#include <array>

#include "base/error.hpp"
#include "vmm/boot_parts.hpp"

namespace millrace::vmm {

using base::fail;
using base::fail_errno;
using base::Result;

namespace {

// The zero page and the set-up header in it: Linux Documentation/arch/x86/{zero-page,boot}.rst.
constexpr std::size_t acpi_rsdp_at = 0x70, e820_count_at = 0x1e8, setup_sectors_at = 0x1f1,
                      header_at = 0x1f1, boot_flag_at = 0x1fe, jump_at = 0x200, magic_at = 0x202,
                      version_at = 0x206, loader_type_at = 0x210, load_flags_at = 0x211,
                      initrd_address_at = 0x218, initrd_size_at = 0x21c, command_line_at = 0x228,
                      initrd_last_at = 0x22c, relocatable_at = 0x234, load_options_at = 0x236,
                      command_line_size_at = 0x238, setup_data_at = 0x250,
                      preferred_address_at = 0x258, init_size_at = 0x260, header_end = 0x268,
                      e820_at = 0x2d0, zero_page_size = 0x1000;
constexpr std::size_t e820_entry = 20, e820_entries_max = 128;
constexpr std::uint32_t magic = 0x5372'6448;  // "HdrS"
constexpr std::uint16_t boot_flag = 0xaa55, version_needed = 0x020c, option_64_bits = 1 << 0;
constexpr std::uint8_t loader_unknown = 0xff, flag_loaded_high = 1 << 0;
constexpr std::uint64_t entry_64 = 0x200, sector = 512;

template <class T>
T field(std::span<const std::byte> header, std::size_t at) {
  CHECK(at + sizeof(T) <= header.size());
  T value;
  std::memcpy(&value, header.data() + at, sizeof value);
  return value;
}

struct Image {
  std::array<std::byte, header_end> start{};  // the file's first bytes
  std::uint64_t payload = 0;                  // where in the file the part for long mode begins
  std::uint64_t address = 0, init_size = 0;   // where it goes, and what it needs there
};

Result<Image> examine_image(const BootFile& file) {
  Image image;
  if (file.size() < image.start.size()) return fail("the " + file.label() + " is cut short");
  if (auto ok = file.read(0, image.start); !ok) return base::Unexpected{ok.error()};
  const std::span start{image.start};
  if (field<std::uint16_t>(start, boot_flag_at) != boot_flag ||
      field<std::uint32_t>(start, magic_at) != magic) {
    return fail("the " + file.label() + " is no Linux bzImage");
  }
  const auto version = field<std::uint16_t>(start, version_at);
  if (version < version_needed ||
      (field<std::uint16_t>(start, load_options_at) & option_64_bits) == 0 ||
      (field<std::uint8_t>(start, load_flags_at) & flag_loaded_high) == 0) {
    return fail("the " + file.label() +
                " has no 64-bit entry: give a kernel for x86-64, Linux 3.8 "
                "or newer");
  }
  const auto sectors = field<std::uint8_t>(start, setup_sectors_at);
  image.payload = (1 + std::uint64_t{sectors == 0 ? std::uint8_t{4} : sectors}) * sector;
  image.address = field<std::uint64_t>(start, preferred_address_at);
  image.init_size = field<std::uint32_t>(start, init_size_at);
  if (image.payload >= file.size() || file.size() - image.payload <= entry_64) {
    return fail("the " + file.label() + " is cut short: there is no kernel behind its header");
  }
  return image;
}

// What the kernel overwrites while it unpacks itself, in RAM below the hole.
Result<std::uint64_t> end_of(const Image& image, const BootFile& file, const GuestRam& ram) {
  const auto size = std::max(image.init_size, file.size() - image.payload);
  const auto& memory = ram.regions().front();
  if (image.address < low::end || image.address >= memory.size ||
      size > memory.size - image.address) {
    return fail("the " + file.label() + " needs " +
                std::to_string((image.address + size + (1 << 20) - 1) >> 20) +
                " MiB of memory to start, and the guest has " + std::to_string(memory.size >> 20) +
                " MiB: give it more memory");
  }
  return image.address + size;
}

// A random seed as a node of the set-up data list, so that the guest has good random numbers from
// its first moment on.
struct SeedNode {
  std::uint64_t next = 0;
  std::uint32_t type = 9;  // SETUP_RNG_SEED
  std::uint32_t length = 32;
  std::array<std::byte, 32> seed{};
};
static_assert(sizeof(SeedNode) == 48);

}  // namespace

Result<void> write_linux_parameters(const GuestRam& ram, const LinuxParameters& parameters) {
  std::array<std::byte, zero_page_size> page{};
  const auto put = [&page](std::size_t at, const auto& value) {
    std::memcpy(page.data() + at, &value, sizeof value);
  };
  std::ranges::copy(parameters.header, page.begin() + header_at);
  put(boot_flag_at, boot_flag);
  put(magic_at, magic);
  put(loader_type_at, loader_unknown);
  put(load_flags_at,
      static_cast<std::uint8_t>(std::to_integer<unsigned>(page[load_flags_at]) | flag_loaded_high));
  put(initrd_address_at, static_cast<std::uint32_t>(parameters.initrd.address));
  put(initrd_size_at, static_cast<std::uint32_t>(parameters.initrd.size));
  put(command_line_at, static_cast<std::uint32_t>(low::command_line));
  put(acpi_rsdp_at, parameters.rsdp);
  put(setup_data_at, low::setup_data);
  const auto map = make_memory_map(ram);
  CHECK(map.size() <= e820_entries_max);
  put(e820_count_at, static_cast<std::uint8_t>(map.size()));
  for (std::size_t i = 0; i < map.size(); ++i) {
    put(e820_at + i * e820_entry, map[i].address);
    put(e820_at + i * e820_entry + 8, map[i].size);
    put(e820_at + i * e820_entry + 16, map[i].type);
  }
  store_at(ram, low::boot_parameters, page);

  SeedNode node;
  if (::getrandom(node.seed.data(), node.seed.size(), 0) !=
      static_cast<ssize_t>(node.seed.size())) {
    return fail_errno("no random seed for the guest");
  }
  store_at(ram, low::setup_data, node);
  return {};
}

Result<EntryState> boot_bzimage(const BootConfig& config, const BootFile& file,
                                const AcpiImage& acpi, const GuestRam& ram) {
  auto image = examine_image(file);
  if (!image) return base::Unexpected{image.error()};
  const auto end = end_of(*image, file, ram);
  if (!end) return base::Unexpected{end.error()};
  const std::span<const std::byte> start{image->start};
  auto ok = file.load(image->payload, file.size() - image->payload, ram, image->address);
  if (ok) {
    ok = write_command_line(ram, config.command_line,
                            field<std::uint32_t>(start, command_line_size_at));
  }
  if (!ok) return base::Unexpected{ok.error()};
  const auto initrd =
      load_initrd(ram, config.initrd_file.get(), *end, field<std::uint32_t>(start, initrd_last_at));
  if (!initrd) return base::Unexpected{initrd.error()};
  // The header's own length is in the jump over it.
  const auto last =
      std::min<std::size_t>(magic_at + field<std::uint8_t>(start, jump_at + 1), header_end);
  const LinuxParameters parameters{start.subspan(header_at, last - header_at), *initrd,
                                   acpi.address};
  if (auto written = write_linux_parameters(ram, parameters); !written) {
    return base::Unexpected{written.error()};
  }
  return EntryState{EntryMode::long_mode, image->address + entry_64, low::boot_parameters,
                    low::stack,           low::page_tables,          low::gdt};
}

}  // namespace millrace::vmm
