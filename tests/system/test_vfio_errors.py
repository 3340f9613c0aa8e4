"""Functions of the host that break while guests have them. The faults are made by the emulator of
the virtual host, so these tests stand outside of it."""

import os
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import assets, settings
from tests.rig.case import SystemTest, main
from tests.rig.process import RigError
from tests.rig.virtual_host import VirtualHost
from tests.rig.virtual_host_image import image

# One guest with a function and one without. Says when both are up, and what became of them.
TWO_GUESTS = """
import sys
sys.path[:0] = [{source!r}, {source!r} + "/tests/system"]
import test_vfio
from tests.rig.process import Workspace
from tests.rig.qmp import Qmp
from tests.rig.vmm import Vmm
test_vfio.make_functions()
with Workspace("errors") as work, Vmm(work, "b", flavour="generic") as other:
    control = work / "a.control"
    with Vmm(work, "a", flavour="generic",
             more=["--vfio", test_vfio.FIRST, "--control", control]) as guest:
        for each in (guest, other):
            each.start(wait=False)
        guest.wait_ready()
        other.wait_ready()
        guest.must("modprobe igbvf")
        with Qmp(control) as qmp:
            print("both are up", flush=True)
            said = qmp.wait_event("DEVICE_ERROR")["data"]
            print("event of", said["device"], said["address"], flush=True)
        print("status", guest.process.wait(60))
        print("said", guest.log().splitlines()[-1])
    print("the other:", other.must("echo runs on"))
    print("ended with", other.stop())
"""


def setUpModule():
    try:
        image()
        assets.initramfs("generic")
    except (RigError, OSError, subprocess.SubprocessError) as error:
        raise unittest.SkipTest(f"the virtual host cannot be made here: {error}") from error


class Errors(SystemTest):
    def test_an_error_stops_that_guest_only(self):
        os.mkdir(self.work / "shared")
        host = self.use(VirtualHost(self.work, shares=[self.work / "shared"]))
        script = self.work / "shared/guests.py"
        with open(script, "w") as file:
            file.write(TWO_GUESTS.format(source=settings.SOURCE))
        said, _ = host.begin(f"python3 {script}")
        self.wait_for_line(host, said, "both are up")
        # not at the NIC itself: its driver has left its reports off
        host.qmp("human-monitor-command",
                 **{"command-line": "pcie_aer_inject_error rp0 COMP_TIME"})
        deadline = time.monotonic() + 240
        status = host.ended(deadline - time.monotonic())
        with open(said) as file:
            output = file.read()
        self.assertEqual(status, 0, output + host.console()[-2000:])
        self.assertIn("event of vfio0 0000:01:10.0", output)
        self.assertIn("status 1\n", output)
        self.assertRegex(output, r"said millrace-vmm: device vfio0 \(0000:01:10.0\) reported an "
                         "error that it does not come back from: the guest is stopped")
        self.assertIn("the other: runs on\nended with 0", output)

    def wait_for_line(self, host, path, line, seconds=240):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = host.ended(0.5)
            with open(path) as file:
                output = file.read()
            if line in output:
                return
            self.assertIsNone(status, output)
        self.fail(f"not in {seconds} s: {line}\n{output}\n{host.console()[-2000:]}")


if __name__ == "__main__":
    main()
