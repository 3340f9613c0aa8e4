"""kill -9 of the daemon under verified writes: it comes back, no guest sees an error, no byte is
lost."""

import hashlib
import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import scenes
from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.guest import Guest
from tests.rig.process import wait_for
from tests.rig.qtest import RING_PACKED, BlkDriver, QtestQemu, VirtioPci

KILLS = 20
BLOCK = 4096


class Poked(SystemTest):
    """The driver is ours: writes are in flight at every kill, and each is accounted for."""

    def writes_survive(self, features, options):
        daemon = Daemon(self.work)
        image = daemon.image("disk", 64)
        path = daemon.disk("disk", path=image)
        daemon.start()
        self.addCleanup(lambda: daemon.process.kill())
        machine = self.use(QtestQemu(self.work).blk(path, 1, options).start())
        device = VirtioPci(machine, machine.virtio_devices()[0])
        device.negotiate(features | 1 << 9)
        ring = device.queue(0)
        device.start()
        if features:
            self.assertTrue(device.accepted & features)
        blk = BlkDriver(device, ring)
        chance, expected, done, cut_off = random.Random(1), {}, 0, 0

        def write(number, publish):
            block = chance.randrange(64 * 256 // 16) * 16 + number
            data = hashlib.sha256(f"{round}.{number}".encode()).digest() * (BLOCK // 32)
            return block, data, blk.begin(BlkDriver.OUT, block * 8, data, publish=publish)

        for round in range(KILLS):
            # Some writes are being served at the kill, some begin while nobody is there.
            flying = [write(number, False) for number in range(8)]
            ring.publish()
            time.sleep(chance.choice((0, 0, 0.0005, 0.002)))
            daemon.kill9()
            ring.reap()
            cut_off += sum(request[0] not in ring.done for _, _, request in flying)
            flying += [write(number, True) for number in range(8, 12)]
            daemon.start()
            for block, data, request in flying:
                status, _, used = blk.finish(request, 60)
                self.assertEqual((status, used), (BlkDriver.OK, 1))
                expected[block] = data
                done += 1
        self.assertGreater(cut_off, 0)
        self.assertEqual(blk.flush(), BlkDriver.OK)
        for block, data in expected.items():
            self.assertEqual(blk.read(block * 8, BLOCK), data, f"block {block}")
        self.report(f"{KILLS} kills, {done} writes ({cut_off} cut off by one), "
                    f"{len(expected)} blocks verified")
        daemon.stop()

    def test_split(self):
        self.writes_survive(0, "")

    def test_packed(self):
        self.writes_survive(RING_PACKED, "packed=on")


class Running(SystemTest):
    """A stock guest writes files and pings through it all.

    The NICs' rings are split beside either kind of disk: QEMU asks for no inflight region for a
    NIC, and where a packed ring of a killed backend was, then nobody knows."""

    def guest_survives(self, options):
        daemon = Daemon(self.work)
        disk = daemon.disk("disk", path=daemon.image("disk", 128))
        nets = [daemon.port(name) for name in ("a", "b")]
        daemon.start()
        self.addCleanup(lambda: daemon.process.kill())
        a, b = (self.use(Guest(self.work, name)) for name in ("a", "b"))
        a.net(nets[0], "52:54:00:00:00:0a").blk(disk, 1, options)
        b.net(nets[1], "52:54:00:00:00:0b")
        a.start(wait=False)
        b.start()
        a.wait_ready()
        scenes.address(a, "52:54:00:00:00:0a", "10.9.0.1")
        scenes.address(b, "52:54:00:00:00:0b", "10.9.0.2")
        scenes.ping(a, "10.9.0.2")
        scenes.make_filesystem(a, "vda")
        load = scenes.FileLoad(a, "vda")
        for _ in range(KILLS):
            time.sleep(0.3)
            daemon.kill9()
            daemon.start()
            wait_for("the front-ends to come back", lambda: all(
                each["connected"] for each in daemon.ask("query-sessions")), 30)
        rounds = load.end(self)
        a.must("mount /dev/vda /mnt")
        self.assertEqual(scenes.write_and_verify(a, "vda", 4), 4)
        a.must("umount /mnt && e2fsck -f -n /dev/vda")
        self.assertGreaterEqual(scenes.ping(a, "10.9.0.2"), 3)
        self.report(f"{KILLS} kills, {rounds} rounds of files verified")
        daemon.stop()

    def test_split(self):
        self.guest_survives("")

    def test_packed(self):
        self.guest_survives("packed=on")


if __name__ == "__main__":
    main()
