"""A running guest moves from one QEMU to another while it sends, receives, writes and reads."""

import os
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import pcap, scenes, settings
from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.guest import Guest
from tests.rig.process import RigError, run, wait_for

MAC, PEER = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
HERE, THERE = "10.9.0.1", "10.9.0.2"
RARP, ARP = 0x8035, 0x0806
COLD_FILES, HELD_PIECES = 32, 12
LISTEN = "sleep 1000 | nc -l -p"  # it would end where its own input does

# In the guest that moves, from before the move until after it. What goes wrong is in /tmp/bad.
# - disk: files written, flushed and read back past the cache
# - net: a stream that the peer sends over and over, compared piece by piece
# - memory: a file that nobody touches
BUSY = f"""
cat >/tmp/load <<'END'
i=0
while [ ! -e /tmp/stop ]; do
  i=$((i + 1)); f=/mnt/r$((i % 8))
  dd if=/dev/urandom of=/tmp/m bs=64k count=8 2>/dev/null
  cp /tmp/m $f && sync $f || echo write >>/tmp/bad
  dd if=$f bs=64k iflag=direct 2>/dev/null | cmp -s - /tmp/m || echo verify >>/tmp/bad
  echo $i >/tmp/rounds; sleep 0.1
done
touch /tmp/ended
END
cat >/tmp/take <<'END'
n=0
while dd bs=64k count=1 iflag=fullblock of=/tmp/piece 2>/dev/null && [ -s /tmp/piece ]; do
  cmp -s /tmp/piece /tmp/wanted || echo stream >>/tmp/bad
  n=$((n + 1)); echo $n >/tmp/pieces
done
END
dd if=/dev/urandom of=/tmp/still bs=1M count=24 2>/dev/null; sha256sum /tmp/still >/tmp/still.sum
sh /tmp/load >/dev/null 2>&1 &
{LISTEN} 5001 2>/dev/null | sh /tmp/take &
ping -i 0.2 {THERE} >/tmp/pings 2>&1 &"""
SEND_STREAM = f"""touch /tmp/on
(while [ -e /tmp/on ]; do cat /tmp/wanted; sleep 0.2; done | nc {HERE} 5001) >/dev/null 2>&1 &"""

# What the devices write between a page's first copy and its last, and nobody looks at before the
# guest has moved: files read into the page cache, and data in a socket's receive queue. (In large
# pieces: the driver writes a note of its own into the first buffer of each packet.)
COLD = f"""
sysctl -q -w net.ipv4.tcp_rmem='4096 4194304 8388608'
for i in $(seq {COLD_FILES}); do dd if=/dev/urandom of=/mnt/cold$i bs=512k count=1 2>/dev/null; done
sha256sum /mnt/cold* >/tmp/cold.sums
sync; echo 3 >/proc/sys/vm/drop_caches
({LISTEN} 5002 2>/dev/null | (while [ ! -e /tmp/moved ]; do sleep 0.2; done; cat >/tmp/held)) &"""
READ_COLD = f"for i in $(seq {COLD_FILES}); do cat /mnt/cold$i >/dev/null; sleep 0.1; done"
SEND_HELD = f"""
(for i in $(seq {HELD_PIECES}); do
  dd if=/tmp/held bs=64k count=1 skip=$((i - 1)) 2>/dev/null; sleep 0.3
done | nc {HERE} 5002) >/dev/null 2>&1 &"""


def announcements(frames):
    """Kinds of broadcast in which the moved address introduces itself: RARP (RFC 903) as the
    back-end sends it, ARP as a guest sends it that announces itself."""
    kinds = []
    for frame in frames:
        kind, = struct.unpack_from(">H", frame, 12)
        if frame[:6] == b"\xff" * 6 and frame[6:12] == pcap.mac(MAC) and (
                kind == RARP or kind == ARP and frame[28:32] == frame[38:42]):
            kinds.append(kind)
    return kinds


def binary():
    """The QEMU to migrate with. Without KVM one before 9.0 misses writes of the guest's own while
    it migrates, and the guest crashes at its new place (its emulator's TLB was not told that the
    dirty bits had been cleared; "physmem: Fix migration dirty bitmap coherency with TCG memory
    access" in 9.0): there it is Debian 13's."""
    if settings.accelerator() == "tcg" and settings.qemu_version(settings.qemu()) < (9, 0):
        return "10"
    return None


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

    def machines(self, net_options, blk_options):
        """The guest, the place it moves to, and a peer; the switch's floods are captured."""
        self.switch, target_side = Daemon(self.work, "one"), Daemon(self.work, "two")
        views = self.two_views(self.switch.image("disk", 96))
        # both NICs of the moving guest are on one switch, where its peer is
        sockets = {"a": (self.switch.port("here"), self.switch.disk("disk", path=views[0])),
                   "z": (self.switch.port("there"), target_side.disk("disk", path=views[1]))}
        peer_socket = self.switch.port("peer")
        self.switch.uplink("capture", f"net_pcap0,tx_pcap={self.work / 'flood.pcap'}")
        self.use(self.switch)
        self.use(target_side)
        # A kernel that clears pages before it gives them to a device would mark them itself.
        a, z = (self.use(Guest(self.work, name, append="init_on_alloc=0", binary=binary()))
                for name in ("a", "z"))
        for guest in (a, z):
            net, blk = sockets[guest.name]
            guest.net(net, MAC, 1, net_options).blk(blk, 1, blk_options)
        z.add("-incoming", f"unix:{self.work / 'move'}")
        peer = self.use(Guest(self.work, "b")).net(peer_socket, PEER)
        a.start(wait=False)
        peer.start()
        a.wait_ready()
        scenes.address(a, MAC, HERE)
        scenes.address(peer, PEER, THERE)
        scenes.ping(a, THERE)
        return a, z, peer

    def make_busy(self, a, peer):
        """Starts all traffic. Answers the checksum of what the guest shall hold unread."""
        scenes.make_filesystem(a, "vda")
        peer.must(f"dd if=/dev/urandom of=/tmp/held bs=64k count={HELD_PIECES} 2>/dev/null; "
                  "dd if=/dev/urandom of=/tmp/wanted bs=64k count=1 2>/dev/null")
        a.must(f"{LISTEN} 5000 >/tmp/wanted 2>/dev/null &")
        peer.must(f"sleep 0.5; nc {HERE} 5000 </tmp/wanted", 60)
        wait_for("what to compare with", lambda: a.run("stat -c %s /tmp/wanted")[1] == "65536")
        a.must(COLD, 120)
        a.must(BUSY, 120)
        for port in ("5001", "5002"):
            wait_for("a listener", lambda port=port: f":{port}" in a.must("netstat -ltn"))
        peer.must(SEND_STREAM)
        wait_for("some rounds", lambda: min(self.progress(a)) > 2, 60, 0.5)
        return peer.must("sha256sum </tmp/held")

    def progress(self, guest):
        """Rounds over the disk, pieces of the stream, replies to pings."""
        text = guest.must("cat /tmp/rounds /tmp/pieces; grep -c 'bytes from' /tmp/pings; :")
        words = text.split()
        return [int(word) for word in words] if len(words) == 3 else [0, 0, 0]

    def move(self, a, peer):
        """Until all memory has been sent once; then so slowly that it cannot end, while the guest
        is given what it does not look at: those pages are sent again only because the log says
        that a device wrote them. Then to the end. Answers the progress and the number of captured
        frames just before that."""
        def state():
            status = a.qmp("query-migrate")
            self.assertNotIn(status["status"], ("failed", "cancelled"), status)
            return status

        a.qmp("migrate-set-parameters", max_bandwidth=64 << 20, downtime_limit=1)
        a.qmp("migrate", uri=f"unix:{self.work / 'move'}")
        begun = time.monotonic()
        # The first look at the log comes before the first pass, the second one ends it.
        wait_for("the first pass over memory", lambda: (
            state()["status"] == "active" and state()["ram"]["dirty-sync-count"] >= 2), 120, 0.1)
        a.qmp("migrate-set-parameters", max_bandwidth=1 << 20)  # the guest writes more than that
        passed = time.monotonic() - begun
        peer.must(SEND_HELD)
        a.must(READ_COLD, 300)
        time.sleep(HELD_PIECES * 0.3)
        status = state()
        self.assertEqual(status["status"], "active", status)
        before = self.progress(a), len(pcap.read(self.work / "flood.pcap"))
        a.qmp("migrate-set-parameters", max_bandwidth=1 << 30, downtime_limit=300)

        def ended():
            status = state()
            return status if status["status"] == "completed" else None
        status = wait_for("the migration", ended, 180, 0.2)
        self.report(f"{time.monotonic() - begun:.1f} s ({passed:.1f} s for the first pass), pause "
                    f"{status['downtime']} ms, {status['ram']['dirty-sync-count']} looks at the "
                    f"log, {status['ram']['transferred'] >> 20} MiB sent")
        a.kill()
        return before

    def migrate(self, announcement, net_options="", blk_options=""):
        a, z, peer = self.machines(net_options, blk_options)
        held = self.make_busy(a, peer)
        z.start(wait=False)
        before, floods = self.move(a, peer)

        wait_for("the guest at its new place", lambda: z.run("true", 60)[0] == 0, 60)
        # first, while the files are in the page cache: from memory
        self.assertEqual(z.must("sha256sum -c /tmp/cold.sums | grep -c OK", 120), str(COLD_FILES))
        z.must("touch /tmp/moved")
        wait_for("what the guest held unread",
                 lambda: z.run("sha256sum </tmp/held")[1] == held, 60)
        wait_for("more of all traffic", lambda: all(
            now > then + 3 for now, then in zip(self.progress(z), before)), 90, 0.5)
        self.assertIn(announcement, wait_for("the address at its new port", lambda: announcements(
            pcap.read(self.work / "flood.pcap")[floods:]), 30))
        ports = {each["mac"]: each["port"] for each in self.switch.ask("query-addresses")}
        self.assertEqual(ports[MAC], "there")

        peer.must("rm /tmp/on")
        z.must("touch /tmp/stop; while [ ! -e /tmp/ended ]; do sleep 0.1; done", 120)
        self.assertEqual(z.run("cat /tmp/bad 2>/dev/null")[1], "")
        z.must("sha256sum -c /tmp/still.sum", 60)
        self.assertGreaterEqual(scenes.ping(z, THERE), 3)
        self.assertGreaterEqual(scenes.ping(peer, HERE), 3)
        self.assertEqual(scenes.write_and_verify(z, "vda", 4), 4)
        scenes.unmount(z)
        z.must("e2fsck -f -n /dev/vda")
        self.assertNotRegex(z.must("dmesg"), "I/O error|EXT4-fs error|is not a head")

    def test_split(self):
        self.migrate(ARP)

    def test_packed(self):
        self.migrate(RARP, "packed=on,guest_announce=off", "packed=on")


if __name__ == "__main__":
    main()
