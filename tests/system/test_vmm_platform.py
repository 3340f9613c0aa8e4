"""What a guest's hardware is: named processor models, the clock, vCPUs and memory that come while
it runs. Stock Debian kernels under millrace-vmm; where this machine's KVM cannot run them, in the
virtual host."""

import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import assets, inside, settings
from tests.rig.case import SystemTest, long
from tests.rig.daemon import Daemon
from tests.rig.process import RigError, run
from tests.rig.qmp import Qmp, QmpError
from tests.rig.vmm import Vmm

POWERED_OFF = 0
DISK_MB = 256

# What Linux itself makes of what it finds: no bit of CPUID has these names.
SYNTHETIC = {"rep_good", "nopl", "xtopology", "cpuid", "tsc_known_freq", "extd_apicid", "vmmcall",
             "pti", "3dnowprefetch"}
# These two are the host's clock's, in every model.
CLOCK = {"constant_tsc", "nonstop_tsc"}
LEVEL_2 = set("""fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx
    fxsr sse sse2 syscall nx rdtscp lm pni ssse3 cx16 sse4_1 sse4_2 x2apic popcnt
    tsc_deadline_timer hypervisor lahf_lm tsc_adjust arat ht""".split())
LEVEL_3 = LEVEL_2 | set("""fma movbe xsave avx f16c rdrand abm fsgsbase bmi1 avx2 smep bmi2 erms
    xsaveopt""".split())
LEVEL_4 = LEVEL_3 | set("avx512f avx512dq avx512cd avx512bw avx512vl smap xsavec".split())
MODELS = {"x86-64-v2": LEVEL_2, "x86-64-v3": LEVEL_3, "x86-64-v4": LEVEL_4}


class Platform(SystemTest):
    def boot(self, name="vm", **more):
        return self.use(Vmm(self.work, name, **more)).start()


class Models(Platform):
    def flags(self, guest):
        return set(guest.must("grep -m1 ^flags /proc/cpuinfo").split(":")[1].split())

    def missing(self, model):
        """The line with which the model is refused on this host; None: it is not."""
        empty = self.work / "empty"  # an initrd that ends the program, after the processor's turn
        open(empty, "w").close()
        done = run([settings.program("millrace-vmm"), "--kernel", Vmm(self.work).command[2],
                    "--cpu", model, "--console", "none", "--cmdline", "x", "--memory", "64M",
                    "--initrd", empty], check=False, timeout=60)
        found = re.search(f"millrace-vmm: (--cpu {model}: .*)", done.stdout)
        return found.group(1) if found else None

    def check_model(self, model):
        refused = self.missing(model)
        if refused:
            self.report(refused)
            self.assertRegex(refused, r": this host has no [\w, ]+: choose [\w-]+")
            return
        guest = self.boot(model, cpus=2, more=["--cpu", model])
        self.assertEqual(self.flags(guest) - SYNTHETIC - CLOCK, MODELS[model])
        self.assertIn(f"millrace {model}", guest.must("grep -m1 'model name' /proc/cpuinfo"))
        self.assertRegex(guest.must("grep -m1 'address sizes' /proc/cpuinfo"), "39 bits physical")
        self.assertEqual(guest.kernel_log("BUG:|WARNING:|Firmware Bug"), "")
        self.assertEqual(guest.stop(), POWERED_OFF)

    @long("level 3 is as far from this processor")
    def test_level_2(self):
        self.check_model("x86-64-v2")

    def test_level_3(self):
        self.check_model("x86-64-v3")

    def test_level_4(self):
        self.check_model("x86-64-v4")


class Clock(Platform):
    def test_what_the_guest_makes_of_it(self):
        """KVM's clock is used; the TSC is trusted where KVM says that it may be, and never found
        to be out of step; every paravirtual feature is in use."""
        guest = self.boot(cpus=2, append='dyndbg="file arch/x86/kernel/kvm.c +p"')
        log = guest.kernel_log("TSC|tsc|kvm|stealtime|async PF|clocksource")
        invariant = "constant_tsc" in guest.must("grep -m1 ^flags /proc/cpuinfo").split()
        self.report(f"invariant TSC: {invariant}; "
                    + "; ".join(re.findall(r".*(?:TSC|tsc|kvm-clock|kvm-guest).*", log)))
        self.assertNotRegex(log, "Measured .* cycles TSC warp|clocksource_watchdog|check_tsc_sync")
        if invariant:
            self.assertNotIn("Marking TSC unstable", log)
        # The second vCPU comes up late enough to be heard; and PV EOI is what it says is not there.
        for word in ("stealtime: cpu 1", "setup async PF for cpu 1", "kvm-guest: setup PV IPIs",
                     "kvm-guest: PV spinlocks enabled", "kvm-guest: setup PV sched yield",
                     "kvm-guest: KVM setup pv remote TLB flush"):
            self.assertTrue(word in log, f"the boot log does not say: {word}")
        steal = guest.must("grep '^cpu ' /proc/stat").split()
        self.assertTrue(steal[8].isdecimal())
        self.assertEqual(guest.stop(), POWERED_OFF)


class GrowingVmm(Vmm):
    """A guest to which vCPUs and memory are added over its control socket."""

    def __init__(self, work, memory="256M", options=(), **more):
        self.control = os.path.join(str(work.path), "vm.control")
        super().__init__(work, more=["--control", self.control, *options], **more)
        self.command[self.command.index("--memory") + 1] = memory

    def add(self, driver, **what):
        """Answers "ok", or why it was refused."""
        with Qmp(self.control, process=self.process) as control:
            try:
                control("device_add", driver=driver, **what)
            except QmpError as error:
                return error.text
        return "ok"


class HotAdd(SystemTest):
    def boot(self, **more):
        return self.use(GrowingVmm(self.work, **more)).start()

    def clean(self, guest):
        self.assertEqual(guest.kernel_log(
            "BUG:|WARNING:|ACPI Error|ACPI BIOS|Already enumerated|TSC warp"), "")

    def test_vcpus(self):
        """From 1 to 4, in two steps; the guest takes each into use, and it works there."""
        self.check_vcpus()

    @long("another kernel")
    def test_vcpus_6_12(self):
        try:
            assets.initramfs("cloud-6.12")
        except RigError as error:
            self.skipTest(str(error).splitlines()[0])
        self.check_vcpus(flavour="cloud-6.12")

    def check_vcpus(self, **more):
        guest = self.boot(cpus="1,max=4", **more)
        self.assertEqual(guest.must("nproc; cat /sys/devices/system/cpu/possible").split(),
                         ["1", "0-3"])
        for count, total in ((1, 2), (2, 4)):
            self.assertEqual(guest.add("cpu", count=count), "ok")
            for cpu in range(total - count, total):
                online = f"/sys/devices/system/cpu/cpu{cpu}/online"
                guest.must(f"i=0; while [ ! -e {online} ]; do sleep 0.1; i=$((i + 1)); "
                           f"[ $i -lt 200 ] || exit 1; done; "
                           f"[ $(cat {online}) = 1 ] || echo 1 >{online}")
            self.assertEqual(guest.must("nproc"), str(total))
        guest.must("for i in 0 1 2 3; do taskset -c $i dd if=/dev/zero bs=64k count=64 2>/dev/null "
                   "| md5sum >/dev/null || exit 1; done")
        counts = guest.must("grep LOC: /proc/interrupts").split()[1:5]
        self.assertTrue(all(int(count) > 0 for count in counts), counts)
        self.assertIn("the guest has 4 vCPUs and room for 0 more", guest.add("cpu"))
        self.assertEqual(guest.must("cat /sys/devices/system/cpu/cpu3/topology/core_id"), "3")
        self.clean(guest)
        self.assertEqual(guest.stop(), POWERED_OFF)

    def online_memory(self, guest, megabytes):
        """Until the guest has that much, blocks that it does not take into use by itself too."""
        guest.must("i=0; while :; do for b in /sys/devices/system/memory/memory*/state; do "
                   "[ $(cat $b) = online ] || echo online_kernel >$b; done; "
                   f"[ $(awk '/MemTotal/ {{print int($2 / 1024)}}' /proc/meminfo) -gt {megabytes} ]"
                   " && break; sleep 0.2; i=$((i + 1)); [ $i -lt 100 ] || exit 1; done")

    def test_memory(self):
        """Two pieces; a disk's blocks are read into the new memory, and are what they were."""
        daemon = Daemon(self.work)
        guest = self.use(GrowingVmm(self.work, memory="256M,max=1280M,slots=3"))
        image = daemon.image("disk", DISK_MB)
        with open(image, "r+b") as file:
            for number in range(DISK_MB // 4):
                file.seek(number << 22)
                file.write(os.urandom(1 << 12) * 1024)
        digest = run(["sha256sum", image]).stdout.split()[0]
        guest.blk(daemon.disk("disk", path=image))
        self.use(daemon)
        guest.start()
        self.assertEqual(guest.add("dimm", size="512M"), "ok")
        self.online_memory(guest, 256 + 512 - 140)
        self.assertEqual(guest.add("dimm", size="256M"), "ok")
        self.online_memory(guest, 256 + 512 + 256 - 140)
        # More of it is kept than there was memory at first, so much of it lies in what was added.
        # (What is kept of a disk goes with its last user.)
        got, cached = guest.must(
            "exec 3</dev/vda; sha256sum </dev/vda; awk '/^(Cached|Buffers):/ {n += $2} "
            "END {print int(n / 1024)}' /proc/meminfo", 240).split("-")
        self.assertEqual(got.strip(), digest)
        self.assertGreater(int(cached), DISK_MB - 32)
        guest.must("dd if=/dev/urandom of=/tmp/file bs=1M count=32 2>/dev/null && "
                   "dd if=/tmp/file of=/dev/vda bs=1M conv=fsync 2>/dev/null && "
                   "echo 3 >/proc/sys/vm/drop_caches && cmp -n 33554432 /tmp/file /dev/vda", 120)
        self.assertNotEqual(guest.add("dimm", size="100M"), "ok")
        self.assertNotEqual(guest.add("dimm", size="512M"), "ok")
        self.clean(guest)
        self.assertEqual(guest.kernel_log("I/O error"), "")
        self.report(f"{int(cached)} MiB of the disk kept by a guest of 256 MiB + 768 MiB")
        self.assertEqual(guest.stop(), POWERED_OFF)

    @long("another 20 s")
    def test_kept_over_a_reset(self):
        guest = self.boot(cpus="1,max=2", memory="256M,max=512M,slots=1",
                          options=["--reboot", "restart"])
        self.assertEqual([guest.add("cpu"), guest.add("dimm", size="256M")], ["ok", "ok"])
        guest.reboot()
        self.assertEqual(guest.must("nproc"), "2")
        self.online_memory(guest, 512 - 140)
        self.clean(guest)
        self.assertEqual(guest.stop(), POWERED_OFF)


class Many(Platform):
    def test_64_vcpus(self):
        if not os.environ.get("MILLRACE_FULL"):
            self.skipTest("64 vCPUs on an emulated machine: with --full")
        guest = self.use(Vmm(self.work, cpus=64, memory_mb=1024)).start(900)
        self.assertEqual(guest.must("nproc"), "64")
        self.assertEqual(guest.kernel_log("BUG:|WARNING:"), "")
        self.assertEqual(guest.stop(300), POWERED_OFF)


if __name__ == "__main__":
    inside.main(("cloud", "cloud-6.12"))
