"""100 NICs and 100 disks, connected and started, their rings filled by a driver, with nothing to
do: what that costs, and that none of them sleeps too deep."""

import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import pcap, settings
from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.process import wait_for
from tests.rig.qtest import EVENT_IDX, BlkDriver, NetDriver, QtestQemu, VirtioPci

EACH = 100
SECONDS = int(os.environ.get("MILLRACE_IDLE_SECONDS", "60"))
MOST_PERCENT = 1.0


def mac(number):
    return f"52:54:00:01:00:{number:02x}"


class Idle(SystemTest):
    def machine(self, daemon):
        """All devices in one machine: eight functions in a slot."""
        ports = [daemon.port(f"p{number}") for number in range(EACH)]
        disks = [daemon.disk(f"d{number}", backend="ram", size="1MiB") for number in range(EACH)]
        self.use(daemon)
        machine = QtestQemu(self.work, memory_mb=256)
        for number, path in enumerate(ports + disks):
            where = f"addr={2 + number // 8:#x}.{number % 8},multifunction=on"
            if number < EACH:
                machine.net(path, mac(number), 1, f"vectors=0,{where}")
            else:
                machine.blk(path, 1, f"vectors=0,{where}")
        return self.use(machine.start(240))

    def drivers(self, machine):
        nets, blks = [], []
        for where in machine.virtio_devices():
            device = VirtioPci(machine, where)
            if len(nets) < EACH:
                device.negotiate(EVENT_IDX | NetDriver.MRG_RXBUF | NetDriver.MAC)
                pair = device.queue(0, 64), device.queue(1, 64)
                device.start()
                nets.append(NetDriver(device, *pair))
            else:
                device.negotiate(EVENT_IDX)
                ring = device.queue(0, 64)
                device.start()
                blks.append(BlkDriver(device, ring))
        self.assertEqual((len(nets), len(blks)), (EACH, EACH))
        return nets, blks

    def test_100_ports_and_100_disks(self):
        daemon = Daemon(self.work, mode="adaptive")
        machine = self.machine(daemon)
        nets, blks = self.drivers(machine)
        for blk in blks:  # each has been used once
            self.assertEqual(blk.write(0, b"\1" * 512), BlkDriver.OK)
        nets[0].transmit(pcap.frame("ff:ff:ff:ff:ff:ff", mac(0), 1, 100))
        for number, net in enumerate(nets[1:], 1):
            wait_for(f"the first frame at port {number}", net.received)
        self.assertEqual(sum(each["connected"] for each in daemon.ask("query-sessions")), 2 * EACH)

        time.sleep(1)
        begun, used = time.monotonic(), daemon.process.cpu_seconds()
        time.sleep(SECONDS)
        share = 100 * (daemon.process.cpu_seconds() - used) / (time.monotonic() - begun)
        self.report(f"{EACH} ports and {EACH} disks, idle: {share:.2f} % of a core over "
                    f"{SECONDS} s")

        for number, blk in enumerate(blks):
            self.assertEqual(blk.read(0, 512), b"\1" * 512, f"disk {number}")
        for sender in (0, 1):
            frame = pcap.frame("ff:ff:ff:ff:ff:ff", mac(sender), 2, 200)
            nets[sender].transmit(frame)
            for number, net in enumerate(nets):
                if number != sender:
                    frames = wait_for(f"a frame at port {number}", net.received)
                    self.assertEqual(frames, [frame])
        if not settings.sanitized():
            self.assertLess(share, MOST_PERCENT)


if __name__ == "__main__":
    main()
