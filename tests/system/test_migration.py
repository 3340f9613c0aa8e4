"""A running guest moves from one QEMU to another while it sends, writes and computes."""

import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import scenes
from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.guest import Guest
from tests.rig.process import RigError, run, wait_for

MAC, PEER = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
LOAD = """cat >/tmp/load <<'END'
i=0
while [ ! -e /tmp/stop ]; do
  i=$((i + 1))
  f=/mnt/f$((i % 8))
  dd if=/dev/urandom of=/tmp/m bs=64k count=16 2>/dev/null
  cp /tmp/m $f && sync $f || echo write >>/tmp/bad
  echo 3 >/proc/sys/vm/drop_caches
  cmp -s /tmp/m $f || echo verify >>/tmp/bad
  echo $i >/tmp/rounds
done
touch /tmp/ended
END
sh /tmp/load >/dev/null 2>&1 &
dd if=/dev/urandom of=/tmp/still bs=1M count=32 2>/dev/null; sha256sum /tmp/still >/tmp/still.sum
ping -i 0.2 10.9.0.2 >/tmp/pings 2>&1 &"""


class Migration(SystemTest):
    def two_views(self, image):
        """Two block devices over one image: the daemon of each end locks its own, as on shared
        storage. (A plain file is locked for one user, which is another test.)"""
        devices = []
        for _ in range(2):
            try:
                devices.append(run(["losetup", "--find", "--show", "--direct-io=off",
                                    image]).stdout.strip())
            except (OSError, RigError) as error:
                self.skipTest(f"skipped: no loop devices on this machine: {error}")
            self.addCleanup(run, ["losetup", "-d", devices[-1]], check=False)
        return devices

    def migrate(self, options=""):
        source_side, target_side = Daemon(self.work, "one"), Daemon(self.work, "two")
        views = self.two_views(source_side.image("disk", 64))
        # both NICs of the moving guest are on one switch, where its peer is
        sockets = {"a": (source_side.port("here"), source_side.disk("disk", path=views[0])),
                   "z": (source_side.port("there"), target_side.disk("disk", path=views[1]))}
        peer_socket = source_side.port("peer")
        self.use(source_side)
        self.use(target_side)
        a, z = (self.use(Guest(self.work, name)) for name in ("a", "z"))
        for guest in (a, z):
            net, blk = sockets[guest.name]
            guest.net(net, MAC, 1, options).blk(blk, 1, options)
        z.add("-incoming", f"unix:{self.work / 'move'}")
        peer = self.use(Guest(self.work, "b")).net(peer_socket, PEER)
        a.start(wait=False)
        peer.start()
        a.wait_ready()
        scenes.address(a, MAC, "10.9.0.1")
        scenes.address(peer, PEER, "10.9.0.2")
        scenes.ping(a, "10.9.0.2")
        scenes.make_filesystem(a, "vda")
        a.must(LOAD, 120)
        wait_for("some rounds", lambda: int("0" + a.run("cat /tmp/rounds")[1]) > 2, 60, 0.5)
        before = int(a.must("cat /tmp/rounds"))

        z.start(wait=False)
        a.qmp("migrate-set-parameters", max_bandwidth=100 << 20)
        begun = time.monotonic()
        a.qmp("migrate", uri=f"unix:{self.work / 'move'}")

        def ended():
            status = a.qmp("query-migrate")
            self.assertNotIn(status["status"], ("failed", "cancelled"), status)
            return status if status["status"] == "completed" else None
        status = wait_for("the migration", ended, 180, 0.2)
        self.report(f"{time.monotonic() - begun:.1f} s, pause {status['downtime']} ms, "
                    f"{status['ram']['transferred'] >> 20} MiB sent")
        a.kill()

        wait_for("the guest at its new place", lambda: z.run("true", 60)[0] == 0, 60)
        wait_for("more rounds there",
                 lambda: int(z.must("cat /tmp/rounds")) > before + 3, 90, 0.5)
        z.must("touch /tmp/stop; while [ ! -e /tmp/ended ]; do sleep 0.1; done", 120)
        self.assertNotEqual(z.run("test -e /tmp/bad")[0], 0)
        z.must("sha256sum -c /tmp/still.sum", 60)
        self.assertGreaterEqual(scenes.ping(z, "10.9.0.2"), 3)
        self.assertGreaterEqual(scenes.ping(peer, "10.9.0.1"), 3)
        self.assertEqual(scenes.write_and_verify(z, "vda", 4), 4)
        z.must("umount /mnt && e2fsck -f -n /dev/vda")
        self.assertNotIn("I/O error", z.must("dmesg"))

    def test_split(self):
        self.migrate()

    def test_packed(self):
        self.migrate("packed=on")


if __name__ == "__main__":
    main()
