"""Memory of a stock guest that grows and shrinks while it runs (virtio-mem), served by the daemon.
Where this machine's KVM cannot run stock guests, all of it runs in the virtual host."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import inside
from tests.rig.case import SystemTest, long
from tests.rig.daemon import Daemon
from tests.rig.process import wait_for
from tests.rig.vmm import Vmm

POWERED_OFF = 0
# Of all that is there; more than that is what the guest's kernel keeps for itself.
BOOT_MB, REGION_MB = 256, 1024


class Mem(SystemTest):
    """A guest of 256 MiB that may have 1 GiB more."""

    def setUp(self):
        super().setUp()
        self.daemon = Daemon(self.work)

    def boot(self, more=(), flavour=None, **keys):
        """New memory is for what can be moved away again, so that all of it can be taken back."""
        socket_path = self.daemon.companion("mem", "m0", **keys)
        disk = self.daemon.disk("d0", path=self.daemon.image("d0", 64))
        self.use(self.daemon)
        guest = self.use(Vmm(self.work, memory_mb=BOOT_MB, flavour=flavour, more=more,
                             append="memhp_default_state=online_movable"))
        guest.companion("virtio-mem", socket_path, size=f"{REGION_MB}M").blk(disk)
        guest.start()
        self.total = self.total_mb(guest)
        return guest

    def figures(self):
        return next(each["counters"] for each in self.daemon.ask("query-companions")
                    if each["name"] == "m0")

    def resize(self, megabytes):
        self.daemon.millctl("mem", "m0", f"{megabytes}MiB")

    def settle(self, guest, megabytes):
        """Waits until the guest has that much of the region, and sees it as memory."""
        wait_for(f"{megabytes} MiB to be plugged",
                 lambda: self.figures()["plugged_bytes"] == megabytes << 20, 90)
        wait_for("the guest to see it",
                 lambda: abs(self.total_mb(guest) - self.total - megabytes) <= 8, 60)

    def total_mb(self, guest):
        return int(guest.must("grep MemTotal /proc/meminfo").split()[1]) >> 10

    def resident_mb(self, guest):
        """What of the region the host has pages for: the blocks of its file."""
        folder = f"/proc/{guest.process.pid}/fd"
        for number in os.listdir(folder):
            path = os.path.join(folder, number)
            if os.readlink(path).startswith("/memfd:guest-managed"):
                return os.stat(path).st_blocks * 512 >> 20
        raise AssertionError("the guest has no managed memory")

    def fill(self, guest, megabytes):
        guest.must("mkdir -p /tmp/m && mount -t tmpfs -o size=2g m /tmp/m && "
                   f"dd if=/dev/zero of=/tmp/m/fill bs=1M count={megabytes} 2>&1 | cat >/dev/null",
                   120)

    def check_disk(self, guest):
        """Transfers between the disk and memory that was added, past every cache."""
        guest.must("dd if=/dev/urandom of=/tmp/m/data bs=1M count=16 2>/dev/null && "
                   "dd if=/tmp/m/data of=/dev/vda bs=1M oflag=direct 2>/dev/null && "
                   "dd if=/dev/vda of=/tmp/m/back bs=1M count=16 iflag=direct 2>/dev/null && "
                   "cmp /tmp/m/data /tmp/m/back", 120)

    def empty(self, guest):
        guest.must("umount /tmp/m; echo 3 >/proc/sys/vm/drop_caches")

    def check_log(self, guest):
        self.assertNotRegex(guest.must("dmesg"), "I/O error|BUG:|WARNING:|Call Trace|broken")

    def test_grows_and_shrinks(self):
        """More than the guest began with is used and verified, and given back."""
        guest = self.boot()
        guest.must("modprobe virtio_mem")
        self.assertEqual(self.figures()["plugged_bytes"], 0)
        self.assertEqual(self.resident_mb(guest), 0)
        self.resize(512)
        self.settle(guest, 512)
        idle = self.resident_mb(guest)
        self.fill(guest, 320)
        self.check_disk(guest)
        used = self.resident_mb(guest)
        self.assertGreater(used, 128)
        self.empty(guest)
        self.resize(128)
        self.settle(guest, 128)
        after = self.resident_mb(guest)
        self.assertLessEqual(after, 128)
        self.resize(0)
        self.settle(guest, 0)
        self.assertEqual(self.resident_mb(guest), 0)
        self.report(f"{guest.kernel}: of 512 MiB plugged the host has {idle} MiB when idle, {used} "
                    f"in use, {after} of 128 after it shrank, 0 in the end; a region of "
                    f"{REGION_MB} MiB costs nothing before")
        # What comes back is good memory.
        self.resize(256)
        self.settle(guest, 256)
        self.fill(guest, 200)
        self.check_disk(guest)
        self.check_log(guest)
        self.assertEqual(guest.stop(), POWERED_OFF)

    def test_daemon_killed(self):
        """What is plugged and what was asked for outlive the daemon, in the midst of it too."""
        guest = self.boot(requested="128MiB")
        guest.must("modprobe virtio_mem")
        self.settle(guest, 128)
        self.resize(384)
        self.settle(guest, 384)
        self.fill(guest, 200)
        self.daemon.kill9()
        self.daemon.start()
        wait_for("the record", lambda: self.figures()["plugged_bytes"] == 384 << 20, 30)
        self.assertEqual(self.figures()["requested_bytes"], 384 << 20)
        self.check_disk(guest)
        self.empty(guest)
        for megabytes in (1024, 64, 512):
            self.resize(megabytes)
            self.daemon.kill9()
            self.daemon.start()
            self.settle(guest, megabytes)
        self.assertEqual(self.figures()["wrong_requests"], 0)
        self.check_log(guest)
        self.assertEqual(guest.stop(), POWERED_OFF)

    @long("another life of the guest")
    def test_reboot(self):
        """A machine's reset takes all of it; the kernel that comes asks for it anew."""
        guest = self.boot(more=["--reboot", "restart"], requested="256MiB")
        guest.must("modprobe virtio_mem")
        self.settle(guest, 256)
        guest.reboot()
        self.assertEqual(self.figures()["plugged_bytes"], 0)
        self.assertEqual(self.total_mb(guest), self.total)
        guest.must("modprobe virtio_mem")
        self.settle(guest, 256)
        self.check_log(guest)
        self.assertEqual(guest.stop(), POWERED_OFF)

    @long("another kernel")
    def test_6_12(self):
        guest = self.boot(flavour="cloud-6.12", requested="256MiB")
        guest.must("modprobe virtio_mem")
        self.settle(guest, 256)
        self.resize(0)
        self.settle(guest, 0)
        self.assertEqual(self.resident_mb(guest), 0)
        self.check_log(guest)
        self.assertEqual(guest.stop(), POWERED_OFF)


if __name__ == "__main__":
    inside.main()
