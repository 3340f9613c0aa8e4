"""A disk whose guest's memory is pinned: the daemon says how it stands, and the data are right."""

import json
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import settings
from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon


class Pinned(SystemTest):
    def disk(self, daemon):
        return next(each for each in daemon.ask("query-disks") if each["name"] == "disk")

    def test_a_guest_comes_and_goes(self):
        """Pinned while a guest is there, and transfers use it; nothing is left when it is gone."""
        daemon = Daemon(self.work)
        socket = daemon.disk("disk", path=daemon.image("disk", 16), pin="auto")
        self.use(daemon.start())
        found = self.disk(daemon)["backend"]
        if "cloned-buffers" not in found["ring"]:
            self.assertIn("Linux 6.13", found["pin"]["why"])
            self.assertEqual(found["pin"]["state"], "off")
            self.skipTest(found["pin"]["why"])
        self.assertEqual(found["pin"], {"state": "idle", "bytes": 0, "why": None})
        guest = subprocess.Popen(
            [settings.program("millrace-bench"), "blk", socket, "--verify", "--json", "--seconds",
             "60", "--warm-up", "0"], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            self.until(guest, lambda: self.disk(daemon)["backend"]["pin"]["state"] == "pinned")
            self.assertGreater(self.disk(daemon)["backend"]["pin"]["bytes"], 1 << 20)
            self.until(guest, lambda: self.disk(daemon)["counters"]["pinned"] > 0)
        finally:
            guest.kill()
            guest.communicate()
        self.until(None, lambda: self.disk(daemon)["backend"]["pin"]["state"] == "idle")
        # What is written is what is read, with and without.
        done = subprocess.run(
            [settings.program("millrace-bench"), "blk", socket, "--verify", "--json", "--seconds",
             "0.3"], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(json.loads(done.stdout)["verified_blocks"], (16 << 20) // 4096)
        self.assertEqual(self.disk(daemon)["counters"]["io_errors"], 0)

    def until(self, guest, holds):
        deadline = time.monotonic() + 60
        while not holds():
            if guest is not None and guest.poll() is not None:
                self.fail(f"the bench ended: {guest.communicate()}")
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)


if __name__ == "__main__":
    main()
