"""millrace-vmm and the daemon on this machine's own KVM, whatever kind it is: the guest without an
operating system (tests/freestanding) needs no processor that runs guests by itself."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import settings
from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.process import run

POWERED_OFF = 0
ROUND = ["negotiated", "served", "interrupt pending", "interrupted", "reset"]


class Native(SystemTest):
    def setUp(self):
        super().setUp()
        try:
            os.close(os.open("/dev/kvm", os.O_RDWR))
        except OSError as error:
            self.skipTest(f"skipped: no /dev/kvm here: {error.strerror}")
        self.guest = os.path.join(settings.build_folder(), "tests", "guest.elf")

    def start(self, daemon, *more):
        return run([settings.program("millrace-vmm"), "--kernel", self.guest, "--memory", "64M",
                    "--disk", f"socket={daemon.socket('disk')}", *more], check=False)

    def test_a_disk_from_discovery_to_reset_in_the_sandbox(self):
        daemon = Daemon(self.work)
        daemon.disk("disk", backend="ram", size="1MiB")
        self.use(daemon)
        console, socket = self.work / "console", self.work / "socket"
        # What a sanitizer does at the end (ptrace, /proc) is not on the list of a guest's program.
        more = ["--sandbox", "off"] if settings.sanitized() else []
        done = self.start(daemon, "--console", console, "--second-console", f"socket:{socket}",
                          *more)
        self.assertEqual(done.returncode, POWERED_OFF, done.stdout)
        with open(console) as file:
            self.assertEqual(file.read().split("\n"), ["discovered", *ROUND * 2, ""])
        self.assertEqual("sandbox" in done.stdout, bool(more), done.stdout)
        self.assertFalse(os.path.exists(socket), "the console's socket is left behind")
        self.assertIn("the sandbox is off", self.start(daemon, "--sandbox", "off").stdout)


if __name__ == "__main__":
    main()
