"""What is left of a kernel that has crashed: dumps as the program crash reads them, and a crash
kernel that a guest brings itself. Stock Debian kernels under millrace-vmm; where this machine's KVM
cannot run them, in the virtual host."""

import os
import re
import shutil
import subprocess
import sys
import uuid

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import assets, inside, settings
from tests.rig.case import SystemTest
from tests.rig.daemon import Daemon
from tests.rig.process import run
from tests.rig.qmp import Qmp
from tests.rig.vmm import Vmm

POWERED_OFF, PANICKED = 0, 4  # the program's exit statuses


def kernel_with_debug_info(release):
    """Where Debian's package linux-image-RELEASE-dbg puts it (1.8 GB: no test installs it); its
    folder is MILLRACE_DEBUG_KERNELS where that is set. None: it is not there."""
    folder = os.environ.get("MILLRACE_DEBUG_KERNELS") or "/usr/lib/debug/boot"
    path = os.path.join(folder, f"vmlinux-{release}")
    return path if os.path.exists(path) else None


class CrashTest(SystemTest):
    def boot(self, **keys):
        self.control = self.work / "vm.control"
        more = ["--control", self.control, *keys.pop("more", ())]
        self.guest = self.use(Vmm(self.work, more=more, **keys))
        return self.guest


class Dumps(CrashTest):
    """The kernel's own note in a dump, and crash with and without a kernel with debug info."""

    def setUp(self):
        super().setUp()
        if not shutil.which("crash"):
            self.skipTest("the program crash is not installed")
        self.core = str(self.work / "core")
        self.mark = f"mark {uuid.uuid4()}"

    def prepare(self, guest):
        """Answers the address that its kernel's text begins at: KASLR's choice."""
        guest.must(f"echo {self.mark} >/dev/kmsg; sleep 1000 >/dev/null 2>&1 &")
        return int(guest.must("awk '$3 == \"_text\" {print $1}' /proc/kallsyms"), 16)

    def note_of(self, core):
        """What the kernel says of itself, as a dictionary."""
        notes = run(["readelf", "--notes", "--wide", core]).stdout
        self.assertNotRegex(notes, "(?i)warning|error")
        self.assertEqual(len(re.findall(r"^ +VMCOREINFO ", notes, re.M)), 1, notes)
        with open(core, "rb") as file:
            text = file.read(65536).split(b"VMCOREINFO\0", 1)[1].lstrip(b"\0").split(b"\0")[0]
        return dict(line.split("=", 1) for line in text.decode().splitlines() if "=" in line)

    def check(self, release, text, panic):
        said = self.note_of(self.core)
        self.assertEqual(said["OSRELEASE"], release)
        offset = int(said["KERNELOFFSET"], 16)
        self.assertEqual(text, 0xffffffff81000000 + offset)
        self.assertEqual(run(["crash", "--osrelease", self.core]).stdout.strip(), release)
        kernel = kernel_with_debug_info(release)
        if kernel:
            self.read_whole(kernel, release, panic)
        else:
            self.report(f"the rest needs the package linux-image-{release}-dbg")

    def read_whole(self, kernel, release, panic):
        """As a person does. (`ps` of Debian's crash 8.0.2 shows of this kernel the idle tasks
        only, of a dump of QEMU's as well; the list of tasks has them all.)"""
        commands = self.work / "commands"
        with open(commands, "w") as file:
            file.write("set scroll off\nsys\nlog\nlist task_struct.tasks -s task_struct.pid,comm "
                       "-h init_task\nbt\nquit\n")
        said = run(["crash", "-s", "-i", commands, kernel, self.core], timeout=550).stdout
        self.assertRegex(said, rf"RELEASE: {re.escape(release)}")
        self.assertRegex(said, r"CPUS: 2\b")
        self.assertRegex(said, r"MEMORY: 25\d")
        self.assertIn(self.mark, said)
        for name in ("swapper/0", "init", "kthreadd", "sleep"):
            self.assertRegex(said, rf'comm = "{name}(\\000|")')
        if panic:
            self.assertRegex(said, 'PANIC: ".*sysrq triggered crash"')
            self.assertRegex(said, r"#\d+ \[\w+\] panic at \w+")
            self.assertRegex(said, r"#\d+ \[\w+\] (sysrq_handle_crash|__handle_sysrq) at \w+")

    def test_of_a_guest_that_runs(self):
        guest = self.boot(cpus=2).start()
        text = self.prepare(guest)
        run([settings.program("millctl"), "vm", self.control, "dump", self.core])
        self.check(guest.kernel, text, panic=False)
        self.assertEqual(guest.stop(), POWERED_OFF)

    def test_of_a_kernel_that_panicked(self):
        guest = self.boot(cpus=2, more=["--dump-on-panic", self.core]).start()
        text = self.prepare(guest)
        guest.must("modprobe pvpanic-mmio")
        guest.send("echo c >/proc/sysrq-trigger")
        self.assertEqual(guest.process.wait(180), PANICKED)
        self.check(guest.kernel, text, panic=True)


class CrashKernel(CrashTest):
    """A guest that brings a crash kernel of its own, as kdump does."""

    # What runs in memory that the first kernel kept free; /proc/vmcore is the rest of it.
    INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
exec >/dev/ttyS0
echo "crash kernel: $(/bin/busybox uname -r), $(/bin/busybox nproc) vCPU"
echo "memory: $(/bin/busybox stat -c %s /proc/vmcore) bytes"
/bin/busybox head -c 16384 /proc/vmcore | /bin/busybox strings |
  /bin/busybox grep -E "OSRELEASE=|CRASHTIME="
/bin/busybox poweroff -f
"""

    def files(self, flavour):
        """A disk with the kernel, its initramfs and what loads them. Answers its image."""
        folder, root = self.work / "files", self.work / "root"
        for path in ("bin", "proc", "dev"):
            os.makedirs(os.path.join(root, path))
        os.mkdir(folder)
        shutil.copy(shutil.which("busybox"), f"{root}/bin/busybox")
        with open(f"{root}/init", "w") as file:
            file.write(self.INIT)
        os.chmod(f"{root}/init", 0o755)
        os.mknod(f"{root}/dev/ttyS0", 0o600 | 0o020000, os.makedev(4, 64))
        os.mknod(f"{root}/dev/console", 0o600 | 0o020000, os.makedev(5, 1))
        subprocess.run(f"find . | cpio -o -H newc --quiet >{folder}/initrd", shell=True, cwd=root,
                       check=True)
        shutil.copy(assets.kernel(flavour)[0], f"{folder}/vmlinuz")
        shutil.copy(settings.program("tests/load-crash-kernel"), f"{folder}/load")
        image = self.work / "files.img"
        run(["mkfs.ext4", "-q", "-O", "^has_journal", "-d", folder, image, "64M"])
        return image

    def test_boots_and_is_told(self):
        flavour = os.environ.get("MILLRACE_KERNEL") or "cloud"
        daemon = Daemon(self.work)
        disk = daemon.disk("files", path=self.files(flavour), readonly=True)
        self.use(daemon)
        guest = self.boot(cpus=2, memory_mb=512,
                          append="crashkernel=192M crash_kexec_post_notifiers").blk(disk)
        guest.start()
        events = self.use(Qmp(self.control, timeout=60, process=guest.process))
        guest.must("modprobe pvpanic-mmio; mount -o ro -t ext4 /dev/vda /mnt")
        guest.must("/mnt/load /mnt/vmlinuz /mnt/initrd 'console=ttyS0 nr_cpus=1 reset_devices "
                   "panic=-1'", 300)
        self.assertEqual(guest.must("cat /sys/kernel/kexec_crash_loaded"), "1")
        began = int(guest.must("date +%s"))
        guest.send("echo c >/proc/sysrq-trigger")
        told = events.wait_event("GUEST_CRASHLOADED")
        self.assertEqual(told["data"], {"action": "run"})
        # It is the guest that goes on: it ends as it likes, and that is no panic.
        self.assertEqual(guest.process.wait(300), POWERED_OFF)
        self.assertEqual([each["event"] for each in events.events
                          if each["event"] in ("GUEST_PANICKED", "RESET")], [])
        console = guest.console()
        self.assertIn(f"crash kernel: {guest.kernel}, 1 vCPU", console)
        # It reads the memory of the kernel that crashed, which was not overwritten.
        size = re.search(r"memory: (\d+) bytes", console)
        self.assertTrue(256 << 20 < int(size.group(1)) < 512 << 20, size)
        self.assertIn(f"OSRELEASE={guest.kernel}", console)
        crashed = int(re.search(r"CRASHTIME=(\d+)", console).group(1))
        self.assertTrue(began <= crashed <= began + 600, (began, crashed))


if __name__ == "__main__":
    inside.main()
