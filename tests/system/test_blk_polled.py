"""A disk on a device whose queues are polled: QEMU's NVMe in the virtual host."""

import json
import os
import shlex
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import settings
from tests.rig.case import SystemTest, main
from tests.rig.process import RigError
from tests.rig.virtual_host import VirtualHost
from tests.rig.virtual_host_image import image

NAMESPACE_MB = 64
# The driver reads the number of polled queues when it takes a device, which may get another name.
BIND = """set -e
device=$(basename /sys/bus/pci/drivers/nvme/0000:*)
echo {polled} >/sys/module/nvme/parameters/poll_queues
echo $device >/sys/bus/pci/drivers/nvme/unbind
echo $device >/sys/bus/pci/drivers/nvme/bind
for _ in $(seq 200); do ls /dev/nvme*n1 >/dev/null 2>&1 && break; sleep 0.1; done
name=$(basename /dev/nvme*n1)
echo $name $(cat /sys/block/$name/queue/io_poll)"""
# Answers what the bench and then the daemon say. A daemon that does not start says why.
SERVE = """set -e
cd {folder}
{millraced} --config mill.toml >mill.log 2>&1 & daemon=$!
for _ in $(seq 300); do test -S disk.sock && break; kill -0 $daemon || break; sleep 0.1; done
test -S disk.sock || {{ cat mill.log; exit 1; }}
{bench} blk disk.sock --verify --span 8MiB --depth 32 --seconds 0.5 --warm-up 0 --json {options}
echo ,
{millctl} --socket ctl.sock --json disks
{millctl} --socket ctl.sock quit
wait $daemon"""


def setUpModule():
    try:
        image()
    except (RigError, OSError, subprocess.SubprocessError) as error:
        raise unittest.SkipTest(f"the virtual host cannot be made here: {error}") from error


class Polled(SystemTest):
    def setUp(self):
        super().setUp()
        self.shared = self.work / "shared"
        os.mkdir(self.shared)
        namespace = self.work / "nvme"
        with open(namespace, "wb") as file:
            file.truncate(NAMESPACE_MB << 20)
        host = VirtualHost(self.work, shares=[self.shared]).add(
            "-drive", f"file={namespace},if=none,id=n1,format=raw",
            "-device", "nvme,serial=mill,drive=n1")
        self.host = self.use(host)

    def bind(self, polled):
        """Has the device taken with that many polled queues. Answers what the kernel says of it."""
        name, polls = self.host.must(BIND.format(polled=polled)).split()
        self.device = f"/dev/{name}"
        return polls

    def serve(self, options="", **keys):
        """Answers (status, output) of a daemon with this disk and a bench at it."""
        folder = self.host.must("mktemp -d")
        keys = {"name": "disk", "socket": f"{folder}/disk.sock", "path": self.device, **keys}
        lines = ["[control]", f'socket = "{folder}/ctl.sock"', "[[disk]]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
        text = shlex.quote("\n".join(lines) + "\n")
        self.host.must(f"printf %s {text} >{folder}/mill.toml")
        programs = {name: settings.program(name) for name in ("millraced", "millctl")}
        script = SERVE.format(folder=folder, options=options, **programs,
                              bench=settings.program("millrace-bench"))
        return self.host.run(script, timeout=180)

    def served(self, options="", **keys):
        """Answers what the bench measured, and the disk as the daemon sees it."""
        status, output = self.serve(options, **keys)
        self.assertEqual(status, 0, output)
        figures, disks = json.loads(f"[{output}]")
        self.assertEqual(figures["verified_blocks"], (8 << 20) // 4096)
        return figures, disks[0]

    def test_completions_are_polled_for(self):
        """Every direct transfer is; what is written is read; nothing else is; "off" is off."""
        self.assertEqual(self.bind(polled=1), "1")
        figures, disk = self.served("--write 30")
        self.assertIn("iopoll", disk["backend"]["ring"])
        self.assertTrue(disk["backend"]["direct"])
        moved = disk["counters"]["read_requests"] + disk["counters"]["write_requests"]
        self.assertGreaterEqual(moved, 2 * figures["verified_blocks"] + figures["operations"])
        self.assertEqual(disk["counters"]["polled"], moved)
        self.assertEqual(disk["counters"]["io_errors"], 0)
        _, disk = self.served(iopoll="off")
        self.assertNotIn("iopoll", disk["backend"]["ring"])
        self.assertEqual(disk["counters"]["polled"], 0)

    def test_a_device_without_such_queues(self):
        """It is served as before; who insists is told what to do."""
        self.assertEqual(self.bind(polled=0), "0")
        _, disk = self.served()
        self.assertNotIn("iopoll", disk["backend"]["ring"])
        self.assertEqual(disk["counters"]["polled"], 0)
        status, output = self.serve(iopoll="on")
        self.assertNotEqual(status, 0)
        self.assertIn(f"{self.device} lies on a device without queues to poll", output)
        self.assertIn('use iopoll = "auto"', output)


if __name__ == "__main__":
    main()
