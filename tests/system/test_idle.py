"""100 NICs and 100 disks, connected and started, their rings filled, with nothing to do: what that
costs, and that none of them sleeps too deep. The measurement itself is bench/idle."""

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import settings
from tests.rig.case import SystemTest, main
from tests.rig.process import run

EACH = 100
SECONDS = 20
MOST_PERCENT = 1.0


class Idle(SystemTest):
    def test_100_ports_and_100_disks(self):
        done = run([settings.program("bench/idle"), "--daemon", settings.program("millraced"),
                    "--devices", EACH, "--seconds", SECONDS, "--json"], SECONDS + 300, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        self.assertEqual(len(lines), 1, done.stdout)
        found = json.loads(lines[0])
        self.report(f"{EACH} ports and {EACH} disks, idle: {found['cpu_percent']} % of a core "
                    f"over {SECONDS} s")
        self.assertEqual(found["packets"], EACH)
        self.assertEqual(found["reads"], EACH)
        self.assertEqual(found["daemon_exit"], 0, done.stdout)
        if not settings.sanitized():
            self.assertLess(found["cpu_percent"], MOST_PERCENT)


if __name__ == "__main__":
    main()
