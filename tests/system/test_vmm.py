"""millrace-vmm under real KVM: stock Debian guests, every queue of theirs served by the daemon.
Where this machine's KVM cannot run them, all of it runs in the virtual host."""

import os
import re
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import assets, inside, scenes, settings
from tests.rig.case import SystemTest, long
from tests.rig.daemon import Daemon
from tests.rig.peers import HugePages
from tests.rig.process import RigError, run, wait_for
from tests.rig.vmm import Vmm

FLAVOURS = ("cloud", "generic", "cloud-6.12", "generic-6.12")
MACS = ["52:54:00:00:00:0a", "52:54:00:00:00:0b"]
IPS = ["10.9.0.1", "10.9.0.2"]
CONTROLLED = (17, 18, 19, 22, 23)  # feature bits: CTRL_VQ, CTRL_RX, CTRL_VLAN, MQ, CTRL_MAC_ADDR
POWERED_OFF, FAILED, USAGE, RESET = 0, 1, 2, 3  # the program's exit statuses


class Boot(SystemTest):
    """Guests without devices: kernel, processors, memory, how they end."""

    def boot(self, name="vm", **more):
        guest = self.use(Vmm(self.work, name, **more))
        return guest.start()

    def check_flavour(self, flavour):
        """The image as Debian has it."""
        try:
            assets.initramfs(flavour)
        except RigError as error:
            self.skipTest(str(error).splitlines()[0])
        guest = Vmm(self.work, flavour=flavour)
        guest.command[guest.command.index("--kernel") + 1] = assets.kernel(flavour)[0]
        self.use(guest).start()
        self.assertEqual(guest.must("uname -r"), guest.kernel)
        self.report(f"{guest.kernel}: {guest.seconds_to_boot:.1f} s to its init")
        self.check_processors_and_memory(guest, 1, 256)
        self.assertEqual(guest.stop(), POWERED_OFF)

    def test_cloud(self):
        self.check_flavour("cloud")

    @long("another flavour of the kernel; test_elf boots it, too")
    def test_generic(self):
        self.check_flavour("generic")

    def test_cloud_6_12(self):
        self.check_flavour("cloud-6.12")

    @long("the fourth kernel")
    def test_generic_6_12(self):
        self.check_flavour("generic-6.12")

    def test_elf(self):
        """The ELF file inside a stock kernel's image, entered by its PVH note."""
        guest = self.boot(flavour="generic")
        self.assertEqual(guest.must("uname -r"), guest.kernel)
        self.assertEqual(guest.must("cat /proc/sys/kernel/bootloader_type"), str(0xb0))  # PVH, KVM
        self.assertEqual(guest.stop(), POWERED_OFF)

    def boot_all(self, *guests):
        """At the same time: each waits for its processors most of the while."""
        for guest in guests:
            self.use(guest).start(wait=False)
        return [guest.wait_ready() for guest in guests]

    def check_processors_and_memory(self, guest, cpus, megabytes):
        self.assertEqual(guest.must("nproc"), str(cpus))
        total = int(guest.must("grep MemTotal /proc/meminfo").split()[1]) // 1024
        self.assertGreater(total, megabytes * 15 // 16 - 120)
        self.assertLess(total, megabytes)
        # Every processor runs, and takes interrupts of its own timer.
        guest.must(f"for i in $(seq 0 {cpus - 1}); do taskset -c $i true || exit 1; done")
        counts = guest.must("grep LOC: /proc/interrupts").split()[1:cpus + 1]
        self.assertTrue(all(int(count) > 0 for count in counts), counts)

    def test_processors_and_memory(self):
        """Also memory above the hole below 4 GiB."""
        two, four = self.boot_all(Vmm(self.work, "two", cpus=2, memory_mb=1024),
                                  Vmm(self.work, "four", cpus=4, memory_mb=3584))
        self.check_processors_and_memory(two, 2, 1024)
        self.check_processors_and_memory(four, 4, 3584)
        top = four.must("grep 'System RAM' /proc/iomem | tail -1").split("-")[0]
        self.assertGreaterEqual(int(top, 16), 1 << 32)
        self.check_boot_log(two)
        self.assertEqual([two.stop(), four.stop()], [POWERED_OFF] * 2)

    def check_boot_log(self, guest):
        """KVM's help for guests is used, legacy devices are neither there nor missed."""
        log = guest.kernel_log("KVM|kvm|TSC|x2apic|i8042|calib|Firmware|BUG|WARNING|BIOS|ACPI "
                               "Error|ECAM|MMCONFIG")
        for word in ("Hypervisor detected: KVM", "kvm-clock: Using msrs", "x2apic enabled",
                     "TSC deadline timer available", "kvm-guest: PV spinlocks enabled",
                     "kvm-guest: setup PV IPIs", "kvm-guest: KVM setup pv remote TLB flush"):
            self.assertTrue(word in log, f"the boot log does not say: {word}")
        self.assertEqual(guest.must("cat /sys/devices/system/clocksource/clocksource0/"
                                    "current_clocksource"), "kvm-clock")
        for word in ("Unable to calibrate", "i8042: No controller", "APIC calibration not",
                     "Firmware Bug", "BUG:", "WARNING:", "MP-BIOS bug", "ACPI Error"):
            self.assertFalse(word in log, f"the boot log says: {word}")
        self.assertTrue(re.search("ECAM|MMCONFIG", log), "no ECAM in the boot log")

    def test_reset_ends_the_program_or_restarts_the_guest(self):
        once, again = self.boot_all(Vmm(self.work, "once"),
                                    Vmm(self.work, "again", more=["--reboot", "restart"]))
        once.send("reboot -f")
        self.assertEqual(once.process.wait(180), RESET)
        first = again.boot_id
        again.must("echo lost >/tmp/mark")
        again.reboot()
        self.assertNotEqual(again.boot_id, first)
        self.assertNotEqual(again.run("cat /tmp/mark")[0], 0)
        self.assertEqual(again.stop(), POWERED_OFF)

    def test_terminated(self):
        """SIGTERM presses the power button; a guest that does not listen is stopped in the end."""
        guest = self.boot()
        guest.process.signal(15)
        self.assertEqual(guest.process.wait(180), FAILED)
        self.assertIn("stopped before it had powered itself off", guest.log())


class Memory(SystemTest):
    """Where a guest's memory comes from."""

    def boot(self, *options):
        """A guest for each list of options, all at the same time, each with a disk."""
        daemon = Daemon(self.work)
        guests = []
        for number, more in enumerate(options):
            guests.append(self.use(Vmm(self.work, f"vm{number}", more=more)))
            guests[-1].blk(daemon.disk(f"d{number}", path=daemon.image(f"d{number}", 64)))
        self.use(daemon)
        for guest in guests:
            guest.start(wait=False)
        return [guest.wait_ready() for guest in guests]

    def resident(self, guest):
        """MiB of shared memory that the process has."""
        with open(f"/proc/{guest.process.pid}/status") as file:
            return int(re.search(r"RssShmem:\s+(\d+) kB", file.read()).group(1)) >> 10

    def check_disk(self, guest):
        scenes.make_filesystem(guest, "vda")
        self.assertEqual(scenes.write_and_verify(guest, "vda", 8), 4)

    def test_huge_pages(self):
        """The daemon serves a guest whose memory is the host's pool of 2 MiB pages."""
        with HugePages(160):
            before = HugePages.free()
            guest, = self.boot(["--pages", "2M"])
            self.check_disk(guest)
            self.assertGreater(before - HugePages.free(), 16)
            self.assertEqual(guest.stop(), POWERED_OFF)
            wait_for("the pages to come back", lambda: HugePages.free() == before)
        few = run([settings.program("millrace-vmm"), "--kernel", assets.kernel("cloud")[0],
                   "--pages", "2M", "--console", "none"], check=False)
        self.assertEqual(few.returncode, FAILED)
        self.assertRegex(few.stdout, "millrace-vmm: .*pool of huge pages of 2.*nr_hugepages")

    def test_populated_as_touched_or_at_the_start(self):
        """As it is touched; or with --prefault, here on a node."""
        lazy, eager = self.boot([], ["--prefault", "--numa-node", "0"])
        self.assertLess(self.resident(lazy), 200)
        self.assertGreaterEqual(self.resident(eager), 250)
        with open(f"/proc/{eager.process.pid}/numa_maps") as file:
            self.assertRegex(file.read(), r"bind:0 file=/memfd:")
        self.check_disk(eager)
        self.assertEqual([lazy.stop(), eager.stop()], [POWERED_OFF] * 2)


class Refused(SystemTest):
    """Bad input: one clear line, the right status, nothing left."""

    def refuse(self, status, said, *words):
        done = run([settings.program("millrace-vmm"), *words], check=False, timeout=60)
        lines = [line for line in done.stdout.splitlines() if line.startswith("millrace-vmm: ")]
        self.assertEqual((done.returncode, len(lines)), (status, 1), done.stdout)
        self.assertRegex(lines[0], said)

    def test_bad_kernel_and_initrd(self):
        vmlinuz = assets.kernel("cloud")[0]
        big = self.work / "big"
        with open(big, "wb") as file:
            file.truncate(300 << 20)
        text = self.work / "text"
        with open(text, "w") as file:
            file.write("no kernel at all\n" * 1000)
        self.refuse(FAILED, "/no/such", "--kernel", "/no/such")
        self.refuse(FAILED, text, "--kernel", text)
        self.refuse(FAILED, "kernel", "--kernel", self.work.path)
        self.refuse(FAILED, "/no/such", "--kernel", vmlinuz, "--initrd", "/no/such")
        self.refuse(FAILED, "initrd", "--kernel", vmlinuz, "--initrd", big)
        self.refuse(FAILED, "memory", "--kernel", vmlinuz, "--memory", "32M")

    def test_bad_devices(self):
        vmlinuz = assets.kernel("cloud")[0]
        for status, word, said in ((USAGE, "sock=x", "sock"), (USAGE, "mac=no", "socket=PATH"),
                                   (USAGE, "socket=x,queues=0", "queues"),
                                   (FAILED, "socket=x,mac=no", "mac=no")):
            self.refuse(status, said, "--kernel", vmlinuz, "--net", word)
        nobody = self.work / "nobody"
        self.refuse(FAILED, nobody, "--kernel", vmlinuz, "--disk", f"socket={nobody},wait=no")


class Devices(SystemTest):
    """Two guests and the daemon between them."""

    def setUp(self):
        super().setUp()
        self.daemon = Daemon(self.work)

    def pair(self, cpus=1, more=(), **keys):
        """Guest a with packed rings, guest b with split ones."""
        guests = []
        for number, name in enumerate("ab"):
            packed = name == "a"
            guest = self.use(Vmm(self.work, name, cpus=cpus, more=more))
            if keys.get("control_queue"):
                keys["mac"] = MACS[number]
            guest.net(self.daemon.port(f"net-{name}", packed=packed, **keys), MACS[number])
            disk = self.daemon.disk(f"disk-{name}", path=self.daemon.image(f"disk-{name}", 64),
                                    packed=packed)
            guests.append(guest.blk(disk))
        self.use(self.daemon)
        for guest in guests:
            guest.start(wait=False)
        for number, guest in enumerate(guests):
            guest.wait_ready()
            guest.nic = scenes.address(guest, MACS[number], IPS[number])
        return guests

    def test_net_and_disk(self):
        """Between packed rings and split ones."""
        a, b = self.pair(cpus=2)
        self.assertGreaterEqual(scenes.ping(a, IPS[1]), 3)
        self.assertGreaterEqual(scenes.ping(b, IPS[0]), 3)
        scenes.checked_transfer(a, b, IPS[0])
        scenes.checked_transfer(b, a, IPS[1])
        for guest in (a, b):
            scenes.make_filesystem(guest, "vda")
            self.assertEqual(scenes.write_and_verify(guest, "vda", 8), 4)
            guest.must("umount /mnt && e2fsck -f -n /dev/vda")
            self.assertEqual(guest.kernel_log("I/O error|BUG:|WARNING:"), "")
        for device in self.daemon.ask("query-ports") + self.daemon.ask("query-disks"):
            rings = "packed" if device["name"].endswith("-a") else "split"
            self.assertEqual({queue["format"] for queue in device["virtqueues"]
                              if queue["enabled"]}, {rings}, device["name"])
        self.assertEqual([a.stop(), b.stop()], [POWERED_OFF] * 2)

    @long("the hot-plug and sandbox tests restart guests, too")
    def test_restart(self):
        a, b = self.pair(more=["--reboot", "restart"])
        scenes.make_filesystem(a, "vda")
        a.must("echo kept >/mnt/file && sync && umount /mnt")
        for _ in range(2 if os.environ.get("MILLRACE_FULL") else 1):
            a.reboot()
            self.assertEqual(a.must("mkdir -p /mnt; mount /dev/vda /mnt; cat /mnt/file; "
                                    "umount /mnt"), "kept")
            scenes.address(a, MACS[0], IPS[0])
            self.assertGreaterEqual(scenes.ping(b, IPS[0]), 3)
        self.assertEqual([a.stop(), b.stop()], [POWERED_OFF] * 2)

    def port(self, name):
        return next(port for port in self.daemon.ask("query-ports") if port["name"] == name)

    def filtered(self, name):
        return self.port(name)["counters"]["filtered"]

    def test_control_queue(self):
        """The driver's commands reach the daemon: pairs in use, its address, what it receives."""
        a, b = self.pair(cpus=2, control_queue=True, queues=2)
        offered = a.must(f"cat /sys/class/net/{a.nic}/device/features")
        self.assertEqual({offered[bit] for bit in CONTROLLED}, {"1"})
        for pairs in (2, 1, 2):
            a.must(f"ethtool -L {a.nic} combined {pairs}")
            scenes.checked_transfer(b, a, IPS[1], 2)
        strange = "52:54:00:99:99:99"
        a.must(f"/usr/sbin/ip neigh add 10.9.0.77 lladdr {strange} dev {a.nic}")
        for promiscuous in (False, True, False):
            b.must(f"ip link set {b.nic} promisc {'on' if promiscuous else 'off'}")
            before, seen = self.filtered("net-b"), scenes.packets(b, b.nic)[1]
            a.run("ping -c 10 -i 0.1 -W 1 10.9.0.77")
            self.assertEqual(self.filtered("net-b") - before >= 10, not promiscuous)
            if promiscuous:
                self.assertGreaterEqual(scenes.packets(b, b.nic)[1] - seen, 10)
        b.must(f"ip link set {b.nic} address {strange} && ip addr add 10.9.0.77/24 dev {b.nic}")
        a.must(f"/usr/sbin/ip neigh del 10.9.0.77 dev {a.nic}")
        self.assertGreaterEqual(scenes.ping(a, "10.9.0.77"), 3)
        self.assertEqual([a.stop(), b.stop()], [POWERED_OFF] * 2)

    @long("the control queue has a test without it")
    def test_vlan_filter(self):
        """A driver is given tagged frames of those VLANs that it asked for."""
        a, b = self.pair(control_queue=True, trunk=[10, 20])

        def add(guest, vlan, ip):
            guest.must(f"/usr/sbin/ip link add link {guest.nic} name v{vlan} type vlan id {vlan}; "
                       f"ip link set v{vlan} up && ip addr add {ip}/24 dev v{vlan}")
        add(a, 10, "10.10.0.1")
        add(b, 10, "10.10.0.2")
        add(a, 20, "10.20.0.1")
        self.assertGreaterEqual(scenes.ping(a, "10.10.0.2"), 3)
        before = self.filtered("net-b")
        self.assertNotEqual(a.run("ping -c 3 -W 1 10.20.0.2")[0], 0)
        self.assertGreater(self.filtered("net-b"), before)
        add(b, 20, "10.20.0.2")
        self.assertGreaterEqual(scenes.ping(a, "10.20.0.2"), 3)
        b.must("ip link del v20")
        before = self.filtered("net-b")
        a.run("ping -c 3 -W 1 10.20.0.2")
        self.assertGreater(self.filtered("net-b"), before)
        self.assertGreaterEqual(scenes.ping(a, "10.10.0.2"), 3)
        self.assertEqual([a.stop(), b.stop()], [POWERED_OFF] * 2)

    def test_queues_are_reset_one_by_one(self):
        """A guest that changes the length of its rings resets each queue and starts it anew, while
        the device goes on."""
        a, b = self.pair(ring_reset=True, control_queue=True)
        for length in (64, 128, 32):
            a.must(f"ethtool -G {a.nic} rx {length} tx {length}")
            self.assertEqual({queue["size"] for queue in self.port("net-a")["virtqueues"][:2]},
                             {length})
            self.assertGreaterEqual(scenes.ping(a, IPS[1]), 3)
            scenes.checked_transfer(a, b, IPS[0], 2)
        self.assertEqual([a.stop(), b.stop()], [POWERED_OFF] * 2)

    def test_daemon_killed(self):
        """kill -9 of the daemon under verified writes and a running ping: the guests wait, with
        packed rings and with split ones."""
        a, b = self.pair()
        loads = []
        for guest in (a, b):
            scenes.make_filesystem(guest, "vda")
            loads.append(scenes.FileLoad(guest, "vda"))
        b.must(f"ping -i 0.2 {IPS[0]} >/tmp/ping 2>&1 &")
        for _ in range(3):
            time.sleep(2)
            self.daemon.kill9()
            self.daemon.start()
            wait_for("the guests to come back", lambda: all(
                each["connected"] for each in self.daemon.ask("query-sessions")), 180)
        b.must("killall -INT ping; while pidof ping; do sleep 0.1; done")
        rounds = [load.end(self) for load in loads]
        sent, received = re.search(r"(\d+) packets transmitted, (\d+) packets received",
                                   b.must("cat /tmp/ping")).groups()
        self.report(f"3 kills, {rounds} rounds of files verified, {received} of {sent} pings")
        self.assertGreater(int(received), int(sent) // 2)
        self.assertGreaterEqual(scenes.ping(b, IPS[0]), 3)
        self.assertEqual([a.stop(), b.stop()], [POWERED_OFF] * 2)


if __name__ == "__main__":
    inside.main(FLAVOURS, memory_mb=6144)
