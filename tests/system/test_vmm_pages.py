"""A guest's memory from the host's pools of huge pages, that which is added while it runs too, and
what an IOMMU makes of it. The pools are made when the machine starts, so all of it runs in the
virtual host, whose emulated IOMMU traces what it translates."""

import os
import re
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import test_vfio
from tests.rig import inside, settings
from tests.rig.case import SystemTest
from tests.rig.daemon import Daemon
from tests.rig.process import wait_for
from tests.rig.qmp import Qmp, QmpError
from tests.rig.vmm import Vmm

POWERED_OFF = 0
GIB_PAGES, MIB_PAGES = 2, 256  # of 1 GiB, of 2 MiB
TRACE = os.path.join(settings.build_folder(), "pages.trace")
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


class Iommu(test_vfio.Functions):
    """The entries of the IOMMU's tables that a function's DMA went by while its guest used it.
    Second-level entries of Intel's: VT-d specification, 9.8."""

    LARGE, FRAME = 1 << 7, (1 << 52) - (1 << 12)
    GIB, MIB = 1 << 30, 1 << 20
    macs = {"0000:01:10.0": "52:54:00:00:07:02", "0000:01:10.2": "52:54:00:00:07:03",
            "0000:01:10.4": "52:54:00:00:07:04"}

    def use_memory(self, address, memory, *pages):
        """Boots a guest whose memory is of such pages, and has it talk through that function."""
        guest = self.guest("--vfio", address, *pages, name=address[-1])
        guest.command[guest.command.index("--memory") + 1] = memory
        guest.start()
        self.take_up(guest, self.macs[address])
        self.ping(guest)
        for size in (100, 1400, 8000):
            guest.must(f"ping -c 10 -i 0.05 -s {size} {test_vfio.HOST_IP}")
        self.assertEqual(guest.stop(), POWERED_OFF)

    def translations(self):
        """By function: {entry: the 2 MiB that it was used for}. To be asked once: the virtual
        host's view of the file does not grow after that."""
        time.sleep(1)  # the trace is another machine's file
        names = {f"0x{0x100 + (int(each[8:10], 16) << 3) + int(each[-1]):x}": each
                 for each in self.macs}
        out = {each: {} for each in self.macs}
        with open(TRACE, errors="replace") as file:
            for sid, iova, entry in re.findall(
                    r"sid (0x\w+) iova (0x\w+) slpte (0x\w+)", file.read()):
                if sid in names:
                    blocks = out[names[sid]].setdefault(int(entry, 16), set())
                    blocks.add(int(iova, 16) // (2 * self.MIB))
        return out

    def test_pages(self):
        """A guest on a page of 1 GiB is one entry of the IOMMU's, on pages of 2 MiB one entry for
        each; on the host's ordinary pages there are smaller ones."""
        on_gib, on_mib, on_any = self.macs
        self.use_memory(on_gib, "1024M", "--pages", "1G")
        self.use_memory(on_mib, "256M", "--pages", "2M")
        self.use_memory(on_any, "256M")
        seen = self.translations()
        self.report({address: f"{len(entries)} entries for "
                     f"{len(set().union(*entries.values()))} times 2 MiB"
                     for address, entries in seen.items()})
        ((entry, blocks),) = seen[on_gib].items()
        self.assertTrue(entry & self.LARGE)
        self.assertEqual((entry & self.FRAME) % self.GIB, 0)
        self.assertGreater(len(blocks), 1)
        self.assertGreater(len(seen[on_mib]), 1)
        for entry, blocks in seen[on_mib].items():
            self.assertTrue(entry & self.LARGE)
            self.assertEqual(((entry & self.FRAME) % (2 * self.MIB), len(blocks)), (0, 1))
        self.assertGreater(len([each for each in seen[on_any] if not each & self.LARGE]), 1)


if __name__ == "__main__":
    inside.main(("cloud", "generic"), memory_mb=4608, append=POOLS, devices=[
        "-trace", "vtd_iotlb_page_*", "-D", TRACE])
