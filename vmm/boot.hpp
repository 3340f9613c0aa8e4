// Boot: puts a kernel, its initrd and what they are told into the guest's memory.
//
// Kernels: Linux bzImage, entered at its 64-bit entry (Linux Documentation/arch/x86/boot.rst);
// ELF with a PVH note, entered in protected mode (Xen's x86/HVM direct boot); any other 64-bit ELF,
// entered in long mode with the boot parameters of the Linux protocol. Thread: one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.hpp"
#include "vmm/acpi.hpp"
#include "vmm/boot_file.hpp"
#include "vmm/entry_state.hpp"
#include "vmm/ram.hpp"

namespace millrace::vmm {

struct BootConfig {
  std::string kernel;
  std::string initrd;  // empty: none
  std::string command_line;
  // Kept open for one start after the other, by keep_open(). Null: boot() opens the paths.
  std::shared_ptr<const BootFile> kernel_file{}, initrd_file{};
};

// Opens the files: from then on they are what boots, whatever becomes of the paths.
[[nodiscard]] base::Result<void> keep_open(BootConfig& config);

enum class KernelKind { bzimage, elf };

// What the file is, by its first bytes. Fails for what is no kernel.
[[nodiscard]] base::Result<KernelKind> identify_kernel(const BootFile& file);

// Loads all of it. One clear line for what is no kernel, or does not fit.
[[nodiscard]] base::Result<EntryState> boot(const BootConfig& config, const AcpiImage& acpi,
                                            const GuestRam& ram);

}  // namespace millrace::vmm
