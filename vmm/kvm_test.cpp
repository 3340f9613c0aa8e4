// What needs /dev/kvm runs a guest of a few instructions, which any KVM can; without it, it is
// skipped.
#include <elf.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "vmm/kvm_cpuid.hpp"
#include "vmm/machine.hpp"

namespace millrace::vmm {

namespace {

TEST(KvmSystem, SaysWhyItCannotBeUsed) {
  const auto absent = KvmSystem::open("/nowhere/kvm");
  ASSERT_FALSE(absent);
  EXPECT_NE(absent.error().message.find("/nowhere/kvm does not exist"), std::string::npos);
  const auto other = KvmSystem::open("/dev/null");
  ASSERT_FALSE(other);
  EXPECT_NE(other.error().message.find("is no KVM"), std::string::npos);
}

TEST(KvmSystem, KnowsTheProcessorsThatRunGuests) {
  EXPECT_TRUE(has_virtualization_flag("x: y\nflags\t\t: fpu vmx sse\n"));
  EXPECT_TRUE(has_virtualization_flag("flags : fpu svm"));
  EXPECT_FALSE(has_virtualization_flag("flags : fpu vmx_no svml\nflags : vmx\n"));
  EXPECT_FALSE(has_virtualization_flag("bugs : vmx \n"));
  EXPECT_FALSE(has_virtualization_flag(""));
}

const kvm_cpuid_entry2* find(const std::vector<kvm_cpuid_entry2>& leaves, std::uint32_t function,
                             std::uint32_t index = 0) {
  for (const auto& leaf : leaves) {
    if (leaf.function == function && leaf.index == index) return &leaf;
  }
  return nullptr;
}

TEST(Cpuid, MakesOnePackageOfCores) {
  std::vector<kvm_cpuid_entry2> supported(5);
  supported[0].function = 0;
  supported[0].eax = 0x1f;
  supported[1].function = 1;
  supported[1].ecx = 1u << 5 | 1u << 15 | 1u << 21;  // VMX, PDCM, x2APIC
  supported[2].function = 0x8000'0001;
  supported[2].ecx = 1u << 2;  // SVM
  supported[3].function = 0x4000'0000;
  supported[3].eax = 0x4000'0001;
  supported[4].function = 0x8000'0008;
  supported[4].eax = 48;
  const auto leaves = guest_cpuid(supported, {5, 6, true, 2'000'000});
  const auto* const features = find(leaves, 1);
  EXPECT_EQ(features->ebx >> 24, 5u);
  EXPECT_EQ(features->ebx >> 16 & 0xff, 8u);
  EXPECT_EQ(features->ecx, 1u << 21 | 1u << 24 | 1u << 31);
  EXPECT_EQ(features->edx >> 28 & 1, 1u);
  for (const std::uint32_t function : {0xbu, 0x1fu}) {
    EXPECT_EQ(find(leaves, function, 0)->ebx, 1u);
    EXPECT_EQ(find(leaves, function, 1)->eax, 3u);
    EXPECT_EQ(find(leaves, function, 1)->ebx, 6u);
    EXPECT_EQ(find(leaves, function, 2)->ecx, 2u);
    EXPECT_EQ(find(leaves, function, 1)->edx, 5u);
  }
  EXPECT_EQ(find(leaves, 0x8000'0001)->ecx, 0u);
  EXPECT_EQ(find(leaves, 0x8000'0008)->ecx, 5u | 3u << 12);
  EXPECT_EQ(find(leaves, 0x4000'0010)->eax, 2'000'000u);
  // One vCPU, an old processor.
  supported[0].eax = 4;
  const auto single = guest_cpuid(supported, {});
  EXPECT_EQ(find(single, 1)->edx >> 28 & 1, 0u);
  EXPECT_EQ(find(single, 1)->ecx >> 24 & 1, 0u);
  EXPECT_EQ(find(single, 0)->eax, 0xbu);
  EXPECT_EQ(find(single, 0xb, 1)->eax, 0u);
  EXPECT_EQ(find(single, 0x1f), nullptr);
}

class MachineTest : public testing::Test {
 protected:
  static constexpr std::uint64_t address = 2 << 20, bell = 0xd000'0000;

  void SetUp() override {
    if (auto opened = KvmSystem::open(); opened) {
      system.emplace(*std::move(opened));
    } else {
      GTEST_SKIP() << opened.error().message;
    }
    folder = std::filesystem::temp_directory_path() / "millrace-kvm-XXXXXX";
    ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  }
  void TearDown() override {
    if (!folder.empty()) std::filesystem::remove_all(folder);
  }

  // An ELF file with nothing but this code.
  MachineConfig config_of(const std::string& code) {
    std::string bytes(0x1000, '\0');
    Elf64_Ehdr header{};
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    header.e_type = ET_EXEC;
    header.e_machine = EM_X86_64;
    header.e_phoff = sizeof header;
    header.e_phentsize = sizeof(Elf64_Phdr);
    header.e_phnum = 1;
    header.e_entry = address;
    std::memcpy(bytes.data(), &header, sizeof header);
    Elf64_Phdr load{};
    load.p_type = PT_LOAD;
    load.p_offset = 0x1000;
    load.p_paddr = address;
    load.p_filesz = load.p_memsz = code.size();
    std::memcpy(bytes.data() + sizeof header, &load, sizeof load);
    const auto path = folder + "/kernel";
    std::ofstream{path, std::ios::binary} << bytes << code;
    MachineConfig config;
    config.boot.kernel = path;
    config.ram.bytes = 64 << 20;
    return config;
  }
  Ending run(const MachineConfig& config, const std::vector<Console*>& consoles = {}) {
    auto machine = Machine::make(*system, config, consoles);
    EXPECT_TRUE(machine) << machine.error().message;
    if (!machine) return Ending::failed;
    EXPECT_TRUE((*machine)->start());
    pollfd poll{(*machine)->ended_fd(), POLLIN, 0};
    EXPECT_EQ(::poll(&poll, 1, 60'000), 1);
    return (*machine)->ending();
  }

  std::optional<KvmSystem> system;
  std::string folder;
};

// mov dx, PORT; mov al, VALUE; out dx, al
std::string out_byte(std::uint16_t port, std::uint8_t value) {
  const std::array<char, 7> code{0x66,
                                 static_cast<char>(0xba),
                                 static_cast<char>(port & 0xff),
                                 static_cast<char>(port >> 8),
                                 static_cast<char>(0xb0),
                                 static_cast<char>(value),
                                 static_cast<char>(0xee)};
  return {code.data(), code.size()};
}

const std::string halt{"\xf4\xeb\xfd", 3};  // hlt, and again
const auto power_off = out_byte(0x600, 5 << 2 | 1 << 5);

TEST_F(MachineTest, WritesToItsConsoleAndPowersOff) {
  base::EventLoop loop;
  auto console = Console::make(loop, folder + "/log", [] {});
  ASSERT_TRUE(console);
  const auto code = out_byte(0x3f8, 'h') + out_byte(0x3f8, 'i') + power_off + halt;
  EXPECT_EQ(run(config_of(code), {console->get()}), Ending::power_off);
  console->reset();  // what the loop has not put out, goes out at its end
  std::ifstream file{folder + "/log"};
  std::string line;
  std::getline(file, line);
  EXPECT_EQ(line, "hi");
}

TEST_F(MachineTest, EveryWayOfResettingIsAReset) {
  EXPECT_EQ(run(config_of(out_byte(0xcf9, 6) + halt)), Ending::reset);
  EXPECT_EQ(run(config_of(out_byte(0x64, 0xfe) + halt)), Ending::reset);
  EXPECT_EQ(run(config_of(std::string{"\x0f\x0b"} + halt)), Ending::reset);  // ud2, no handlers
  EXPECT_EQ(run(config_of(out_byte(0x505, 1) + halt)), Ending::panicked);
}

TEST_F(MachineTest, ACrashKernelIsToldAndNoEnd) {
  auto config = config_of(out_byte(0x505, 2) + out_byte(0x505, 2) + power_off + halt);
  std::atomic<int> told{0};
  config.on_crash_loaded = [&told] { ++told; };
  EXPECT_EQ(run(config), Ending::power_off);
  EXPECT_EQ(told, 1);
}

TEST_F(MachineTest, ADoorbellIsAnEventfdAndNoExit) {
  auto config = config_of(
      // mov eax, 0xd0000000; mov [rax], eax
      std::string{"\xb8\x00\x00\x00\xd0\x89\x00", 7} + power_off + halt);
  const base::Fd eventfd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  std::unique_ptr<MsiVector> vector;
  const auto make = [&](Doorbells& doorbells, Interrupts& interrupts,
                        const GuestRam&) -> base::Result<std::unique_ptr<PciFunction>> {
    EXPECT_TRUE(doorbells.assign(bell, 0, eventfd.get()));
    EXPECT_FALSE(doorbells.assign(bell, 0, eventfd.get()));
    doorbells.remove(bell + 8, 4, eventfd.get());  // there is none
    auto made = interrupts.make_vector();
    EXPECT_TRUE(made);
    vector = *std::move(made);
    EXPECT_FALSE(vector->pending());
    const std::uint64_t one = 1;
    EXPECT_EQ(::write(vector->eventfd(), &one, sizeof one), 8);
    EXPECT_TRUE(vector->pending());
    EXPECT_TRUE(vector->connect({0xfee0'0000, 0x40}));
    EXPECT_FALSE(vector->pending());
    EXPECT_TRUE(vector->connect({0xfee0'0000, 0x41}));
    // What was latched went to the guest: nothing is left when it is masked again.
    vector->disconnect();
    EXPECT_FALSE(vector->pending());
    vector.reset();
    return std::make_unique<PciFunction>(PciIdentity{.vendor = 1, .device = 1});
  };
  config.functions.push_back({"bell", make});
  EXPECT_EQ(run(config), Ending::power_off);
  std::uint64_t count = 0;
  EXPECT_EQ(::read(eventfd.get(), &count, sizeof count), 8);
  EXPECT_EQ(count, 1u);
}

TEST_F(MachineTest, StopsWhileItRunsAndWithVcpusThatNeverStarted) {
  auto config = config_of(std::string{"\xeb\xfe", 2});  // for ever
  config.cpus = 3;
  auto machine = Machine::make(*system, config, {});
  ASSERT_TRUE(machine) << machine.error().message;
  ASSERT_TRUE((*machine)->start());
  (*machine)->stop();
  config.cpus = 0;
  EXPECT_FALSE(Machine::make(*system, config, {}));
  config.cpus = cpus_max + 1;
  EXPECT_FALSE(Machine::make(*system, config, {}));
}

// Counts at 3 MiB, for ever.
class PausedTest : public MachineTest {
 protected:
  void SetUp() override {
    MachineTest::SetUp();
    if (IsSkipped()) return;
    // inc qword [0x300000], and again
    config = config_of({"\x48\xff\x04\x25\x00\x00\x30\x00\xeb\xf6", 10});
    config.cpus = 2;  // the second one never starts
  }
  void make() {
    auto made = Machine::make(*system, config, {});
    ASSERT_TRUE(made) << made.error().message;
    machine = *std::move(made);
    ASSERT_TRUE(machine->start());
  }
  [[nodiscard]] std::uint64_t count() const {
    auto* const word = reinterpret_cast<std::uint64_t*>(machine->ram().at(0x30'0000, 8).data());
    return std::atomic_ref{*word}.load();
  }
  void wait_beyond(std::uint64_t than) {
    while (count() <= than) std::this_thread::yield();
  }

  MachineConfig config;
  std::unique_ptr<Machine> machine;
};

TEST_F(PausedTest, StandsStillUntilItIsResumed) {
  make();
  for (int round = 0; round < 50; ++round) {
    wait_beyond(count());
    machine->pause();
    const auto before = count();
    const auto states = machine->cpu_states();
    ASSERT_TRUE(states) << states.error().message;
    ASSERT_EQ(states->size(), 2u);
    EXPECT_GE(states->front().rip, address);
    EXPECT_LT(states->front().rip, address + 10);
    EXPECT_NE(states->front().cr[0], 0u);
    EXPECT_NE(states->front().cs.flags, 0u);
    std::this_thread::sleep_for(std::chrono::milliseconds{1});
    EXPECT_EQ(count(), before);
    machine->resume();
    wait_beyond(before);
  }
  for (const int thread : machine->thread_ids()) EXPECT_GT(thread, 0);
  machine->pause();
  machine.reset();
}

TEST_F(PausedTest, MayStartSo) {
  config.paused = true;
  make();
  machine->pause();
  EXPECT_EQ(count(), 0u);
  machine->resume();
  wait_beyond(0);
  machine->stop();
  EXPECT_TRUE(machine->cpu_states()) << "registers of a machine that has ended, for a dump";
}

// mov dx, PORT; in al, dx; and what to do with it
std::string in_byte(std::uint16_t port, const std::string& more) {
  const std::array<char, 5> code{0x66, static_cast<char>(0xba), static_cast<char>(port & 0xff),
                                 static_cast<char>(port >> 8), static_cast<char>(0xec)};
  return std::string{code.data(), code.size()} + more;
}

// The guest waits for three vCPUs and for the event of new memory, and looks how large that is.
TEST_F(MachineTest, TellsTheGuestOfWhatIsAdded) {
  auto config = config_of(in_byte(0xa00, {"\x3c\x03\x75\xfb", 4}) +  // cmp al, 3; jne: again
                          in_byte(0x603, {"\xa8\x04\x74\xfb", 4}) +  // test al, 4; jz: again
                          in_byte(0xb04, {"\x3c\x02\x74\x07", 4}) +  // cmp al, 2; je: power off
                          out_byte(0xcf9, 6) + power_off + halt);
  config.cpus_most = 3;
  config.ram.bytes_most = config.ram.bytes + (512 << 20);
  config.ram.slots = 1;
  auto machine = Machine::make(*system, config, {});
  ASSERT_TRUE(machine) << machine.error().message;
  EXPECT_FALSE((*machine)->add_cpus(1)) << "it does not run";
  EXPECT_FALSE((*machine)->add_memory(128 << 20)) << "it does not run";
  ASSERT_TRUE((*machine)->start());
  EXPECT_FALSE((*machine)->add_cpus(0));
  EXPECT_TRUE((*machine)->add_cpus(2));
  EXPECT_EQ((*machine)->add_cpus(1).error().message,
            "the guest has 3 vCPUs and room for 0 more: start it with --cpus 3,max=N");
  EXPECT_FALSE((*machine)->add_memory(1 << 20));
  EXPECT_TRUE((*machine)->add_memory(256 << 20));
  EXPECT_FALSE((*machine)->add_memory(128 << 20)) << "there is one slot";
  pollfd poll{(*machine)->ended_fd(), POLLIN, 0};
  ASSERT_EQ(::poll(&poll, 1, 60'000), 1);
  EXPECT_EQ((*machine)->ending(), Ending::power_off);
  EXPECT_FALSE((*machine)->add_cpus(1)) << "it has ended";
  // The next machine of the same guest begins with it.
  config.cpus = (*machine)->cpus();
  config.memory_added = (*machine)->memory_added();
  machine->reset();
  const auto next = Machine::make(*system, config, {});
  ASSERT_TRUE(next) << next.error().message;
  EXPECT_EQ((*next)->cpus(), 3u);
  EXPECT_EQ((*next)->memory_added(), std::vector<std::uint64_t>{256 << 20});
}

TEST_F(MachineTest, AProcessorModelIsWholeOrRefused) {
  auto config = config_of(power_off + halt);
  for (const auto* const model : cpu_models()) {
    config.cpu_model = model;
    const auto leaves = processor_cpuid(*system, model);
    if (leaves) {
      EXPECT_EQ(run(config), Ending::power_off);
    } else {
      const auto machine = Machine::make(*system, config, {});
      ASSERT_FALSE(machine);
      EXPECT_EQ(machine.error().message, leaves.error().message);
      EXPECT_TRUE(leaves.error().message.starts_with("--cpu " + std::string{model->name} + ": "));
    }
  }
}

}  // namespace

}  // namespace millrace::vmm
