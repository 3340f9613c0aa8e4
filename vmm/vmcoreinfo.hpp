// VMCOREINFO: the note in which a Linux kernel says what a reader of its memory has to know: its
// release, where it runs (KASLR), sizes and places of its structures. The kernel makes it at its
// start, at the beginning of a page, as an ELF note that is ready to be copied into a core file
// (Linux kernel/crash_core.c, Documentation/admin-guide/kdump/vmcoreinfo.rst).
//
// It is found by its first bytes: no device, no driver in the guest. What is found is a guest's
// word: it is copied and bounded, and nothing but the guest's own dump depends on it. Thread: any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "vmm/cpu_state.hpp"

namespace millrace::vmm {

// A note's most bytes: header, name, text of at most a page.
inline constexpr std::size_t vmcoreinfo_size_max = 12 + 12 + 4096;

// Whether bytes begin like the note; 34 of them are looked at, fewer are none.
[[nodiscard]] bool begins_vmcoreinfo(std::span<const std::byte> bytes);
// The note that bytes begin with, of a multiple of four bytes; empty: none that is whole.
[[nodiscard]] std::vector<std::byte> vmcoreinfo_of(std::span<const std::byte> bytes);

// Reads eight bytes of guest-physical memory; nothing where there is none.
using ReadGuestWord = std::function<std::optional<std::uint64_t>(std::uint64_t address)>;

// Of all notes that were found, the one of the kernel that runs: memory may hold older ones, of a
// kernel before a kexec, and copies. That kernel's page table maps its text as some vCPU's does.
// Where that tells nothing (every vCPU in a process whose table hides the kernel), a note that is
// the only one. Empty: none, or no telling which.
[[nodiscard]] std::vector<std::byte> choose_vmcoreinfo(
    std::span<const std::vector<std::byte>> notes, std::span<const CpuState> cpus,
    const ReadGuestWord& read);

}  // namespace millrace::vmm
