"""A guest's memory from the host's pools of huge pages, that which is added while it runs too. The
pools are made when the machine starts, so all of it runs in the virtual host."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import inside
from tests.rig.case import SystemTest
from tests.rig.daemon import Daemon
from tests.rig.process import wait_for
from tests.rig.qmp import Qmp, QmpError
from tests.rig.vmm import Vmm

POWERED_OFF = 0
GIB_PAGES, MIB_PAGES = 2, 256  # of 1 GiB, of 2 MiB
POOLS = f"hugepagesz=1G hugepages={GIB_PAGES} hugepagesz=2M hugepages={MIB_PAGES}"


def free_pages(kilobytes):
    with open(f"/sys/kernel/mm/hugepages/hugepages-{kilobytes}kB/free_hugepages") as file:
        return int(file.read())


class Pages(SystemTest):
    """The daemon serves a disk of a guest whose memory grows by as much as it began with."""

    def boot(self, pages, memory, most):
        self.control = self.work / "vm.control"
        daemon = Daemon(self.work)
        guest = Vmm(self.work, more=["--pages", pages, "--control", self.control])
        guest.command[guest.command.index("--memory") + 1] = f"{memory},max={most},slots=1"
        guest.blk(daemon.disk("disk", path=daemon.image("disk", 64)))
        self.use(daemon)
        return self.use(guest).start()

    def add(self, guest, size):
        """Answers "ok", or why it was refused."""
        with Qmp(self.control, process=guest.process) as control:
            try:
                control("device_add", driver="dimm", size=size)
            except QmpError as error:
                return error.text
        return "ok"

    def total_mb(self, guest):
        return int(guest.must("grep MemTotal /proc/meminfo").split()[1]) >> 10

    def check(self, pages, kilobytes, count, size_mb):
        """`count`: pages of the pool, all of which the guest has in the end."""
        guest = self.boot(pages, f"{size_mb}M", f"{2 * size_mb}M")
        before = self.total_mb(guest)
        self.assertEqual(free_pages(kilobytes), count // 2)
        self.assertEqual(self.add(guest, f"{size_mb}M"), "ok")
        self.assertEqual(free_pages(kilobytes), 0)
        guest.must("i=0; while :; do for b in /sys/devices/system/memory/memory*/state; do "
                   "[ $(cat $b) = online ] || echo online_kernel >$b; done; "
                   f"[ $(awk '/MemTotal/ {{print int($2 / 1024)}}' /proc/meminfo) -gt "
                   f"{before + size_mb - 40} ] && break; sleep 0.2; i=$((i + 1)); "
                   "[ $i -lt 100 ] || exit 1; done")
        # More than the guest began with, so much of it lies in what was added; and the daemon's
        # transfers go there.
        guest.must("mkdir -p /tmp/m && mount -t tmpfs -o size=90% m /tmp/m && "
                   f"dd if=/dev/zero of=/tmp/m/fill bs=1M count={before} 2>&1 | cat >/dev/null; "
                   "dd if=/dev/urandom of=/tmp/m/data bs=1M count=16 2>/dev/null && "
                   "dd if=/tmp/m/data of=/dev/vda bs=1M oflag=direct 2>/dev/null && "
                   "dd if=/dev/vda of=/tmp/m/back bs=1M count=16 iflag=direct 2>/dev/null && "
                   "cmp /tmp/m/data /tmp/m/back", 300)
        self.assertEqual(guest.kernel_log("BUG:|WARNING:|I/O error"), "")
        with open(f"/proc/{guest.process.pid}/smaps") as file:
            sizes = [line.split()[1] for line in file if line.startswith("KernelPageSize:")]
        self.assertEqual(sizes.count(str(kilobytes)), 2)
        self.assertEqual(guest.stop(), POWERED_OFF)
        wait_for("the pages to come back", lambda: free_pages(kilobytes) == count)

    def test_of_1_gib(self):
        self.check("1G", 1 << 20, GIB_PAGES, 1024)

    def test_of_2_mib(self):
        self.check("2M", 2048, MIB_PAGES, 256)

    def test_pools_that_are_too_small(self):
        """One line, and the guest goes on."""
        guest = self.boot("2M", "384M", "768M")
        self.assertRegex(self.add(guest, "384M"), "cannot take 384 MiB of guest memory from the "
                         "host's pool of huge pages of 2.00 MiB: too few are free; "
                         "enlarge the pool")
        self.assertEqual(free_pages(2048), MIB_PAGES - 192)
        self.assertEqual(self.add(guest, "128M"), "ok")
        self.assertEqual(free_pages(2048), 0)
        guest.must("true")
        self.assertEqual(guest.stop(), POWERED_OFF)


if __name__ == "__main__":
    inside.main(memory_mb=4608, append=POOLS)
