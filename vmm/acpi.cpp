#include "vmm/acpi.hpp"

#include <algorithm>
#include <numeric>

#include "base/check.hpp"
#include "vmm/ioapic.hpp"
#include "vmm/power.hpp"

namespace millrace::vmm {

using base::fail;
using base::Result;

namespace {

// Little-endian fields, one after the other.
class Fields {
 public:
  Fields& u8(unsigned value) { return put(value, 1); }
  Fields& u16(unsigned value) { return put(value, 2); }
  Fields& u32(std::uint64_t value) { return put(value, 4); }
  Fields& u64(std::uint64_t value) { return put(value, 8); }
  Fields& zeros(std::size_t count) {
    bytes_.append(count, '\0');
    return *this;
  }
  Fields& text(const std::string& text, std::size_t size) {
    CHECK(text.size() <= size);
    bytes_ += text;
    bytes_.append(size - text.size(), ' ');
    return *this;
  }
  // Generic address structure, §5.2.3.2: one byte in the port space.
  Fields& port(unsigned address) { return u8(1).u8(8).u8(0).u8(1).u64(address); }
  [[nodiscard]] const std::string& bytes() const { return bytes_; }

 private:
  Fields& put(std::uint64_t value, unsigned size) {
    for (unsigned i = 0; i < size; ++i) bytes_ += static_cast<char>(value >> (8 * i) & 0xff);
    return *this;
  }
  std::string bytes_;
};

constexpr auto oem = "MILLRC", oem_table = "MILLRACE";

char checksum_of(const std::string& bytes) {
  const auto sum = std::accumulate(bytes.begin(), bytes.end(), 0u, [](unsigned total, char byte) {
    return total + static_cast<unsigned char>(byte);
  });
  return static_cast<char>(0u - sum);
}

// §5.2.9.
std::string make_fadt_body(std::uint64_t dsdt) {
  constexpr unsigned header = 36;
  // IA-PC boot flags, §5.2.9.3: no VGA, no CMOS clock, no ASPM; and no keyboard controller.
  constexpr unsigned boot_flags = 1 << 2 | 1 << 4 | 1 << 5;
  // Fixed feature flags: WBINVD works, buttons are devices, a reset register, hardware-reduced.
  constexpr unsigned flags = 1 << 0 | 1 << 4 | 1 << 5 | 1 << 10 | 1 << 20;
  constexpr unsigned reset_port = 0xcf9, reset_value = 6, minor_version = 5;
  constexpr std::size_t boot_flags_at = 109, sleep_control_at = 244, size = 276;
  Fields fields;
  fields.u32(0).u32(dsdt);
  fields.zeros(boot_flags_at - header - fields.bytes().size());
  fields.u16(boot_flags).u8(0).u32(flags).port(reset_port).u8(reset_value).u16(0).u8(minor_version);
  fields.u64(0).u64(dsdt);
  fields.zeros(sleep_control_at - header - fields.bytes().size());
  fields.port(PowerPorts::port + PowerPorts::sleep_control);
  fields.port(PowerPorts::port + PowerPorts::sleep_status);
  fields.text("MILLRACE", 8);  // hypervisor vendor
  CHECK(fields.bytes().size() == size - header);
  return fields.bytes();
}

// §5.2.12.
std::string make_madt_body(unsigned cpus, unsigned most) {
  constexpr unsigned local_apic = 0, io_apic = 1, local_nmi = 4, local_x2apic = 9;
  constexpr unsigned first_x2apic_id = 255, enabled = 1, online_capable = 2;
  Fields fields;
  fields.u32(local_apic_address).u32(0);
  for (unsigned cpu = 0; cpu < std::max(cpus, most); ++cpu) {
    const auto flags = cpu < cpus ? enabled : online_capable;
    if (cpu < first_x2apic_id) {
      fields.u8(local_apic).u8(8).u8(cpu).u8(cpu).u32(flags);
    } else {
      fields.u8(local_x2apic).u8(16).u16(0).u32(cpu).u32(flags).u32(cpu);
    }
  }
  fields.u8(io_apic).u8(12).u8(0).u8(0).u32(Ioapic::base_address).u32(0);
  fields.u8(local_nmi).u8(6).u8(0xff).u16(0).u8(1);  // every processor, line 1
  return fields.bytes();
}

// PCI Firmware 3.3 §4.1.2.
std::string make_mcfg_body(unsigned buses) {
  const auto last_bus = buses - 1;
  return Fields{}.u64(0).u64(PciRoot::ecam_address).u16(0).u8(0).u8(last_bus).u32(0).bytes();
}

// §5.2.5.3: the first checksum covers 20 bytes, the second all 36.
std::string make_rsdp(std::uint64_t xsdt) {
  auto bytes = Fields{}.text("RSD PTR ", 8).u8(0).text(oem, 6).u8(2).u32(0).bytes();
  bytes[8] = checksum_of(bytes);
  bytes += Fields{}.u32(36).u64(xsdt).u8(0).zeros(3).bytes();
  bytes[32] = checksum_of(bytes);
  return bytes;
}

}  // namespace

std::string make_acpi_table(const char* signature, unsigned revision, const std::string& body) {
  constexpr std::size_t header = 36, checksum_at = 9;
  auto table = Fields{}
                   .text(signature, 4)
                   .u32(header + body.size())
                   .u8(revision)
                   .u8(0)
                   .text(oem, 6)
                   .text(oem_table, 8)
                   .u32(1)
                   .text("MILL", 4)
                   .u32(1)
                   .bytes() +
               body;
  table[checksum_at] = checksum_of(table);
  return table;
}

Result<AcpiImage> make_acpi(const Platform& platform) {
  constexpr std::size_t rsdp_room = 64, alignment = 16;
  AcpiImage image{std::string(rsdp_room, '\0'), low::acpi};
  const auto add = [&](const std::string& table) {
    const auto at = image.address + image.bytes.size();
    image.bytes += table;
    image.bytes.resize((image.bytes.size() + alignment - 1) / alignment * alignment);
    return at;
  };
  const auto dsdt = add(make_acpi_table("DSDT", 2, make_dsdt_body(platform)));
  const auto fadt = add(make_acpi_table("FACP", 6, make_fadt_body(dsdt)));
  const auto madt =
      add(make_acpi_table("APIC", 5, make_madt_body(platform.cpus, platform.cpus_most)));
  const auto mcfg = add(make_acpi_table("MCFG", 1, make_mcfg_body(platform.buses)));
  const auto xsdt = add(make_acpi_table("XSDT", 1, Fields{}.u64(fadt).u64(madt).u64(mcfg).bytes()));
  const auto rsdp = make_rsdp(xsdt);
  image.bytes.replace(0, rsdp.size(), rsdp);
  if (image.bytes.size() > low::acpi_end - low::acpi) {
    return fail("the ACPI tables of " + std::to_string(platform.cpus) + " vCPUs do not fit");
  }
  return image;
}

}  // namespace millrace::vmm
