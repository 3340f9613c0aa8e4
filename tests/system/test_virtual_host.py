"""The virtual host itself: that what it offers is real, and that nothing of it stays behind."""

import contextlib
import glob
import os
import re
import signal
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import settings
from tests.rig.case import SystemTest, main
from tests.rig.process import RigError
from tests.rig.virtual_host import VirtualHost
from tests.rig.virtual_host_image import image

PROGRAM = os.path.join(settings.SOURCE, "tests", "virtual-host")
BOOT_A_GUEST = """
import sys
sys.path.insert(0, {source!r})
from tests.rig import settings
from tests.rig.guest import Guest
from tests.rig.process import Workspace
print("accelerator", settings.accelerator())
with Workspace("nested") as work, Guest(work, "nested") as guest:
    guest.start()
    print(guest.must("dmesg | grep 'Hypervisor detected'"))
    print("kernel", guest.must("uname -r"))
    guest.stop()
print("off")
"""
MAKE_FUNCTIONS = """set -e
pf=/sys/bus/pci/devices/0000:01:00.0
ip link set $(ls $pf/net) up
echo 0 >$pf/sriov_drivers_autoprobe
echo 2 >$pf/sriov_numvfs
for vf in $(readlink -f $pf/virtfn*); do
  echo vfio-pci >$vf/driver_override
  echo ${vf##*/} >/sys/bus/pci/drivers_probe
  echo "driver $(basename $(readlink $vf/driver))"
  group=$(basename $(readlink $vf/iommu_group))
  echo "group of $(ls $vf/iommu_group/devices | wc -l)"
  test -c /dev/vfio/$group
done"""


def setUpModule():
    try:
        image()
    except (RigError, OSError, subprocess.SubprocessError) as error:
        raise unittest.SkipTest(f"the virtual host cannot be made here: {error}") from error


class Inside(SystemTest):
    """One boot, many commands."""

    def setUp(self):
        super().setUp()
        self.shared = self.work / "shared"
        os.mkdir(self.shared)
        self.host = self.use(VirtualHost(self.work, shares=[self.shared]))
        self.report(f"{self.host.seconds_to_boot:.1f} s to the first command")

    def test_devices_and_files(self):
        self.assertEqual(self.host.run("echo one; echo two >&2; exit 5"), (5, "one\ntwo"))
        # this machine's files, which cannot be changed from inside
        self.assertEqual(self.host.must("cat tests/virtual-host"), open(PROGRAM).read().strip())
        mark = f"/var/tmp/{os.path.basename(self.work.path)}"
        self.assertEqual(self.host.must(f"echo inside >{mark} && cat {mark}"), "inside")
        self.assertFalse(os.path.exists(mark))
        self.host.must(f"echo kept >{self.shared}/file")
        with open(os.path.join(self.shared, "file")) as file:
            self.assertEqual(file.read(), "kept\n")
        self.assertEqual(self.host.must("stat -f -c %T /dev/shm /run").split(), ["tmpfs"] * 2)
        self.assertEqual(self.host.must("id -u; test -c /dev/kvm && echo kvm"), "0\nkvm")
        self.assertIn("svm", self.host.must("grep -m1 ^flags /proc/cpuinfo"))
        functions = self.host.must(MAKE_FUNCTIONS).splitlines()
        self.assertEqual(functions, ["driver vfio-pci", "group of 1"] * 2)
        with self.assertRaisesRegex(RigError, "not at its end: sleep"):
            self.host.run("sleep 30", timeout=1)

    def test_stock_kernel_under_kvm(self):
        """The nested guest is the one of the other tests, its accelerator found as they do."""
        script = self.work / "shared/boot.py"
        with open(script, "w") as file:
            file.write(BOOT_A_GUEST.format(source=settings.SOURCE))
        said = self.host.must(f"python3 {script}", timeout=240)
        self.assertIn("accelerator kvm", said)
        self.assertIn("Hypervisor detected: KVM", said)
        self.assertRegex(said, r"kernel \d+\.\d+\.\S*amd64\noff$")

    def test_a_kernel_that_dies_is_told(self):
        with self.assertRaisesRegex(RigError, "(?s)death:\n.*sysrq triggered crash.*\nconsole:"):
            self.host.run("echo c >/proc/sysrq-trigger; sleep 30", timeout=30)


class Program(SystemTest):
    """tests/virtual-host, as a person uses it."""

    def setUp(self):
        super().setUp()
        self.mark = f"MILLRACE_MARK={self.work.path}"  # what we started has it in its environment

    def start(self, *words):
        return subprocess.Popen([PROGRAM, *words], text=True, cwd=settings.SOURCE,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE,
                                env={**os.environ, **dict([self.mark.split("=")])})

    def run_program(self, *words, limit=150):
        """Answers (status, standard output, standard error)."""
        program = self.start(*words)
        output, errors = program.communicate(timeout=limit)
        return program.returncode, output, errors

    def expect_nothing_left(self, errors=""):
        found = re.search(r"booted in .* (/tmp/mill-host-\S+)/", errors)
        self.assertTrue(found, errors)
        self.assertFalse(os.path.exists(found.group(1)))
        left = []
        for environment in glob.glob("/proc/[0-9]*/environ"):
            with contextlib.suppress(OSError), open(environment, "rb") as file:
                if self.mark.encode() in file.read().split(b"\0"):
                    left.append(environment)
        self.assertEqual(left, [])

    def test_status_output_and_log(self):
        log = self.work / "console"
        script = 'echo "$1"; pwd >&2; echo "<2>seen by all" >/dev/kmsg; nproc; exit 7'
        status, output, errors = self.run_program(
            "--verbose", "--cpus", "1", "--memory", "1G", "--keep-log", log, "--",
            "sh", "-c", script, "sh", "a  b")
        self.assertEqual((status, output), (7, "a  b\n1\n"), errors)
        self.assertEqual(errors.splitlines()[1:], [settings.SOURCE])
        with open(log) as file:
            self.assertIn("seen by all", file.read())
        self.expect_nothing_left(errors)

    def test_time_limit(self):
        status, output, errors = self.run_program("--verbose", "--timeout", "30",
                                                  "echo begun; sleep 1000")
        self.assertEqual((status, output), (124, "begun\n"), errors)
        self.assertEqual(errors.splitlines()[1:],
                         ["virtual-host: not done after 30 s: echo begun; sleep 1000"])
        self.expect_nothing_left(errors)

    def test_interrupt(self):
        program = self.start("--verbose", "echo begun; sleep 1000")
        self.assertEqual(program.stdout.readline(), "begun\n")
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=20)
        self.assertEqual(program.returncode, 130)
        self.expect_nothing_left(errors)

    def test_bad_words(self):
        for words, said in ((["--memory", "1X", "ls"], "'1X' is no size of 512M or more"),
                            (["--cpus", "0", "ls"], "'0' is no number from 1 to 255"),
                            (["--timeout", "-1", "ls"], "--timeout"),
                            (["--share", "/no/such", "ls"], "no folder '/no/such' to share"),
                            ([], "COMMAND")):
            status, _, errors = self.run_program(*words)
            self.assertEqual(status, 2)
            self.assertIn(said, errors.splitlines()[-1])
        status, output, errors = self.run_program("--keep-log", "/no/such/log", "ls")
        self.assertEqual((status, output), (125, ""))
        self.assertRegex(errors, "^virtual-host: .*/no/such/log'\n$")


if __name__ == "__main__":
    main()
