// A guest without an operating system: it finds a virtio disk on the PCI bus, writes a sector and
// reads it back, sees the disk's interrupt pending, takes it, and resets the disk, twice. What it
// found out it writes to the serial port, a line for each step; then it switches itself off.
//
// Compiled to integer instructions without libraries, loaded at 2 MiB, entered in long mode with
// 4 GiB of identity-mapped memory. Virtio 1.2 §2.7 (split ring), §4.1 (PCI), §5.2 (disk).
#include "base/endian.hpp"
#include "virtio/wire/pci.hpp"

namespace {

namespace wire = millrace::virtio::wire;
using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

constexpr u16 serial_port = 0x3f8, power_port = 0x600, config_address = 0xcf8, config_data = 0xcfc;
constexpr u8 power_off = 5 << 2 | 1 << 5;
constexpr u32 table_address = 0xd000'0000, structures_address = 0xd010'0000;  // free for BARs
constexpr u32 vector = 0x45;
constexpr u64 patience = 20'000'000;  // polls; an instruction may take a microsecond

void out8(u16 port, u8 value) {
  asm volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}
void out32(u16 port, u32 value) {
  asm volatile("outl %0, %1" ::"a"(value), "Nd"(port));
}
u32 in32(u16 port) {
  u32 value;
  asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}
void write_msr(u32 index, u64 value) {
  asm volatile("wrmsr" ::"c"(index), "a"(static_cast<u32>(value)),
               "d"(static_cast<u32>(value >> 32)));
}
u64 read_msr(u32 index) {
  u32 low, high;
  asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
  return u64{high} << 32 | low;
}

void say(const char* text) {
  while (*text != 0) out8(serial_port, static_cast<u8>(*text++));
  out8(serial_port, '\n');
}
[[noreturn]] void end() {
  out8(power_port, power_off);
  while (true) asm volatile("hlt");
}
[[noreturn]] void failed(const char* what) {
  say("failed:");
  say(what);
  end();
}

template <class T>
volatile T& at(u64 address) {
  return *reinterpret_cast<volatile T*>(address);
}

// --- PCI ---

u32 config(unsigned slot, unsigned offset) {
  out32(config_address, 0x8000'0000u | slot << 11 | (offset & 0xfcu));
  return in32(config_data);
}
void set_config(unsigned slot, unsigned offset, u32 value) {
  out32(config_address, 0x8000'0000u | slot << 11 | (offset & 0xfcu));
  out32(config_data, value);
}
u8 config_byte(unsigned slot, unsigned offset) {
  return static_cast<u8>(config(slot, offset) >> offset % 4 * 8);
}

struct Disk {
  unsigned slot = 0;
  u64 common = 0, notify = 0, device = 0;
  u32 notify_step = 0;
};

void find_structures(Disk& disk) {
  for (u8 capability = config_byte(disk.slot, 0x34); capability != 0;
       capability = config_byte(disk.slot, capability + 1u)) {
    if (config_byte(disk.slot, capability) != wire::pci_capability_id) continue;
    const auto type = config_byte(disk.slot, capability + wire::pci_capability_type);
    const auto bar = config_byte(disk.slot, capability + wire::pci_capability_bar);
    const auto offset = config(disk.slot, capability + wire::pci_capability_offset);
    const u64 address = u64{structures_address} + offset;
    if (bar != 4) continue;
    if (type == static_cast<u8>(wire::PciCapability::common)) disk.common = address;
    if (type == static_cast<u8>(wire::PciCapability::device)) disk.device = address;
    if (type != static_cast<u8>(wire::PciCapability::notify)) continue;
    disk.notify = address;
    disk.notify_step = config(disk.slot, capability + wire::pci_capability_extra);
  }
}

Disk find_disk() {
  constexpr u32 identity = 0x1042u << 16 | wire::pci_vendor;
  constexpr u32 memory_and_master = 6;
  Disk disk;
  for (unsigned slot = 1; slot < 32 && disk.slot == 0; ++slot) {
    if (config(slot, 0) == identity) disk.slot = slot;
  }
  if (disk.slot == 0) failed("no disk on the bus");
  set_config(disk.slot, 0x10, 0xffff'ffff);
  if ((config(disk.slot, 0x10) & ~0xfu) == 0) failed("BAR 0 has no size");
  set_config(disk.slot, 0x10, table_address);
  set_config(disk.slot, 0x20, structures_address);
  set_config(disk.slot, 0x24, 0);
  set_config(disk.slot, 0x04, memory_and_master);
  find_structures(disk);
  if (disk.common == 0 || disk.notify == 0 || disk.device == 0) failed("no virtio structures");
  return disk;
}

// --- Interrupts: off but for a moment, so that they are first seen pending, then taken ---

void enable_local_apic() {
  constexpr u32 apic_base = 0x1b, spurious = 0x80f;
  write_msr(apic_base, read_msr(apic_base) | 3u << 10);  // on, as x2APIC
  write_msr(spurious, 0x1ff);
}
struct Gate {
  u16 low, selector;
  u8 stack, type;
  u16 middle;
  u32 high, zero;
};
struct __attribute__((packed)) GateTable {
  u16 limit;
  u64 base;
};
Gate gates[256];

// Counts, and tells the local APIC that it is done (the x2APIC's register 0xb).
extern "C" {
volatile u32 taken = 0;
void on_interrupt();
}
asm(R"(
on_interrupt:
  push %rax
  push %rcx
  push %rdx
  incl taken(%rip)
  mov $0x80b, %ecx
  xor %eax, %eax
  xor %edx, %edx
  wrmsr
  pop %rdx
  pop %rcx
  pop %rax
  iretq
)");

void install_handler() {
  constexpr u16 code_selector = 0x10;
  constexpr u8 interrupt_gate = 0x8e;
  const auto address = reinterpret_cast<u64>(&on_interrupt);
  gates[vector] = {static_cast<u16>(address),
                   code_selector,
                   0,
                   interrupt_gate,
                   static_cast<u16>(address >> 16),
                   static_cast<u32>(address >> 32),
                   0};
  const GateTable table{sizeof gates - 1, reinterpret_cast<u64>(gates)};
  asm volatile("lidt %0" ::"m"(table));
}

bool pending() {
  constexpr u32 requests = 0x820;  // eight registers of 32 vectors
  return (read_msr(requests + vector / 32) >> vector % 32 & 1) != 0;
}

void take_one() {
  taken = 0;
  asm volatile("sti");
  for (u64 polls = 0; taken == 0; ++polls) {
    if (polls == patience) failed("the interrupt is pending and not taken");
  }
  asm volatile("cli");
}

void route_interrupts(const Disk& disk) {
  constexpr u32 mask_of_one = 1, enable = 1u << 31;
  for (unsigned entry = 0; entry < 2; ++entry) {
    const u64 place = table_address + entry * 16;
    at<u32>(place) = 0xfee0'0000;
    at<u32>(place + 4) = 0;
    at<u32>(place + 8) = vector;
    at<u32>(place + 12) = entry == 1 ? 0 : mask_of_one;
  }
  for (u8 capability = config_byte(disk.slot, 0x34); capability != 0;
       capability = config_byte(disk.slot, capability + 1u)) {
    if (config_byte(disk.slot, capability) != 0x11) continue;
    set_config(disk.slot, capability, config(disk.slot, capability) | enable);
    return;
  }
  failed("no MSI-X");
}

// --- The disk ---

constexpr u16 ring_size = 8;
struct alignas(16) Descriptor {
  u64 address;
  u32 size;
  u16 flags, next;
};
struct alignas(4096) Ring {
  Descriptor descriptors[ring_size];
  struct alignas(2) {
    u16 flags, index, ring[ring_size];
  } available;
  struct alignas(4096) {
    u16 flags, index;
    struct {
      u32 id, size;
    } ring[ring_size];
  } used;
};
struct Request {
  u32 type, reserved;
  u64 sector;
};

Ring ring;
Request request;
u8 data[512];
u8 status;

template <class T>
volatile T& field(const Disk& disk, unsigned long offset) {
  return at<T>(disk.common + offset);
}

void clear_ring() {
  auto* const bytes = reinterpret_cast<volatile u8*>(&ring);
  for (unsigned long i = 0; i < sizeof ring; ++i) bytes[i] = 0;
}

void negotiate(const Disk& disk) {
  using wire::PciCommon;
  constexpr u32 version_1 = 1;  // bit 32, the first of the second word
  auto& device_status = field<u8>(disk, offsetof(PciCommon, status));
  device_status = wire::device_status::acknowledge;
  device_status = device_status | wire::device_status::driver;
  field<u32>(disk, offsetof(PciCommon, device_feature_select)) = 1;
  if ((field<u32>(disk, offsetof(PciCommon, device_feature)) & version_1) == 0) {
    failed("VIRTIO_F_VERSION_1 is not offered");
  }
  field<u32>(disk, offsetof(PciCommon, driver_feature_select)) = 0;
  field<u32>(disk, offsetof(PciCommon, driver_feature)) = 0;
  field<u32>(disk, offsetof(PciCommon, driver_feature_select)) = 1;
  field<u32>(disk, offsetof(PciCommon, driver_feature)) = version_1;
  device_status = device_status | wire::device_status::features_ok;
  if ((device_status & wire::device_status::features_ok) == 0) failed("the features are refused");
}

void start_queue(const Disk& disk) {
  using wire::PciCommon;
  clear_ring();
  field<u16>(disk, offsetof(PciCommon, queue_select)) = 0;
  field<u16>(disk, offsetof(PciCommon, queue_size)) = ring_size;
  field<u16>(disk, offsetof(PciCommon, queue_vector)) = 1;
  if (field<u16>(disk, offsetof(PciCommon, queue_vector)) != 1) failed("no vector for the queue");
  const auto put = [&](unsigned long offset, const void* what) {
    const auto address = reinterpret_cast<u64>(what);
    field<u32>(disk, offset) = static_cast<u32>(address);
    field<u32>(disk, offset + 4) = static_cast<u32>(address >> 32);
  };
  put(offsetof(PciCommon, queue_descriptors), ring.descriptors);
  put(offsetof(PciCommon, queue_driver), &ring.available);
  put(offsetof(PciCommon, queue_device), &ring.used);
  field<u16>(disk, offsetof(PciCommon, queue_enable)) = 1;
  auto& device_status = field<u8>(disk, offsetof(PciCommon, status));
  device_status = device_status | wire::device_status::driver_ok;
}

// One request of one sector, from the kick to the used index.
void transfer(const Disk& disk, bool write, u16 count) {
  constexpr u16 next = 1, writable = 2;
  request = {write ? 1u : 0u, 0, 3};
  status = 0xff;
  ring.descriptors[0] = {reinterpret_cast<u64>(&request), sizeof request, next, 1};
  ring.descriptors[1] = {reinterpret_cast<u64>(data), sizeof data,
                         static_cast<u16>(write ? next : next | writable), 2};
  ring.descriptors[2] = {reinterpret_cast<u64>(&status), 1, writable, 0};
  ring.available.ring[(count - 1) % ring_size] = 0;
  asm volatile("" ::: "memory");
  at<u16>(reinterpret_cast<u64>(&ring.available.index)) = count;
  const auto offset = field<u16>(disk, offsetof(wire::PciCommon, queue_notify_offset));
  at<u16>(disk.notify + u64{offset} * disk.notify_step) = 0;
  const auto& used = at<u16>(reinterpret_cast<u64>(&ring.used.index));
  for (u64 polls = 0; used != count; ++polls) {
    if (polls == patience) failed("the disk does not answer");
  }
  asm volatile("" ::: "memory");
  if (at<u8>(reinterpret_cast<u64>(&status)) != 0) failed("the disk refuses a request");
}

void write_and_read_back(const Disk& disk, u8 mark) {
  for (unsigned i = 0; i < sizeof data; ++i) data[i] = static_cast<u8>(mark + i);
  transfer(disk, true, 1);
  for (unsigned i = 0; i < sizeof data; ++i) data[i] = 0;
  transfer(disk, false, 2);
  for (unsigned i = 0; i < sizeof data; ++i) {
    if (data[i] != static_cast<u8>(mark + i)) failed("other data comes back");
  }
}

void reset(const Disk& disk) {
  auto& device_status = field<u8>(disk, offsetof(wire::PciCommon, status));
  device_status = 0;
  for (u64 polls = 0; device_status != 0; ++polls) {
    if (polls == patience) failed("the disk does not reset");
  }
  if (field<u16>(disk, offsetof(wire::PciCommon, queue_enable)) != 0) {
    failed("a queue is still enabled after a reset");
  }
}

}  // namespace

extern "C" [[noreturn]] void _start() {
  enable_local_apic();
  install_handler();
  const auto disk = find_disk();
  say("discovered");
  if (pending()) failed("an interrupt is pending too early");
  route_interrupts(disk);
  for (u8 round = 1; round <= 2; ++round) {
    reset(disk);
    negotiate(disk);
    say("negotiated");
    start_queue(disk);
    write_and_read_back(disk, static_cast<u8>(0x5a + round));
    say("served");
    for (u64 polls = 0; !pending(); ++polls) {
      if (polls == patience) failed("no interrupt comes");
    }
    say("interrupt pending");
    take_one();
    if (pending()) failed("an interrupt is still pending after it was taken");
    say("interrupted");
    reset(disk);
    say("reset");
  }
  end();
}
