"""QEMU as the front-end of guests whose memory a NIC reads and writes: what they send leaves
without a copy though QEMU keeps no record of what is in flight for a NIC, a function receives into
their buffers, the daemon is killed, and a guest moves from one function to another. Runs in the
virtual host; its emulator traces the DMA of its NICs."""

import hashlib
import os
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import test_uplink_direct
import test_uplink_failures
import test_uplink_zero_copy
from tests.rig import inside, scenes, settings
from tests.rig.case import long
from tests.rig.daemon import Daemon
from tests.rig.guest import Guest
from tests.rig.pci import give
from tests.rig.process import wait_for

from test_uplink_failures import SPARE
from test_uplink_pci import IGB, IPS, MACS, PEER_IP, shell

PIECE, PIECES = 65536, 64
HELD = 12  # pieces that the guest does not look at before it has moved
# A guest that writes more than a slow migration sends, so that it cannot end.
CHURN = ("(while [ ! -e /tmp/moved ]; do "
         "dd if=/dev/urandom of=/tmp/churn bs=64k count=16; sleep 0.2; done) >/dev/null 2>&1 &")
LISTEN = "sleep 1000 | nc -l -p"  # it would end where its own input does
PORT = 7000  # and the next one


class Exchange:
    """Two connections that the guest makes to the peer, one for each way, with PIECES of random
    bytes each, one every `pause` seconds; the last ones after hurry(). A context manager."""

    def __init__(self, guest, pause=0.1):
        self.guest, self.down, self.got = guest, os.urandom(PIECES * PIECE), hashlib.sha256()
        self.pause, self.errors, self.done = pause, [], [0, 0]  # pieces: to the guest, from it
        self.threads = [threading.Thread(target=self._serve, args=each, daemon=True)
                        for each in ((0, self._give), (1, self._take))]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        self.guest.must(f"dd if=/dev/urandom of=/tmp/up bs={PIECE} count={PIECES} 2>/dev/null")
        self.guest.must(f"nc {PEER_IP} {PORT} </dev/null >/tmp/down 2>/dev/null &\n"
                        f"nc {PEER_IP} {PORT + 1} </tmp/up >/dev/null 2>&1 &")
        return self

    def __exit__(self, *_):
        self.hurry()

    def hurry(self):
        self.pause = 0

    @property
    def pieces(self):
        """Of both ways, the one that has come less far."""
        return min(self.done)

    def _serve(self, way, work):
        try:
            with socket.create_server((PEER_IP, PORT + way)) as listener:
                listener.settimeout(120)
                connection, _ = listener.accept()
            with connection:
                connection.settimeout(180)
                for number in range(PIECES):
                    work(connection, number * PIECE)
                    self.done[way] += 1
                    time.sleep(self.pause)
                    while self.pause and number >= PIECES * 7 // 8:
                        time.sleep(0.1)
        except OSError as error:
            self.errors.append(error)

    def _give(self, connection, at):
        connection.sendall(self.down[at:at + PIECE])

    def _take(self, connection, _):
        left = PIECE
        while left:
            data = connection.recv(left)
            if not data:
                raise OSError("the guest has hung up")
            self.got.update(data)
            left -= len(data)

    def until(self, pieces):
        wait_for(f"{pieces} pieces each way", lambda: self.pieces >= pieces or self.errors, 120,
                 0.1)

    def end(self, case, guest=None):
        """All of it came, both ways, to the byte. `guest`: where it is now."""
        guest = guest or self.guest
        self.hurry()
        for thread in self.threads:
            thread.join(240)
        case.assertEqual((self.errors, self.done), ([], [PIECES, PIECES]))
        case.assertEqual(guest.must("sha256sum </tmp/up").split()[0], self.got.hexdigest())
        wanted = hashlib.sha256(self.down).hexdigest()
        wait_for("what was sent to the guest",
                 lambda: guest.run("sha256sum </tmp/down")[1].split()[0] == wanted, 60, 1)


class QemuWire(test_uplink_failures.Failures, test_uplink_direct.DirectWire):
    """The guests' memory is of huge pages: the emulated igb sends no frame of which one descriptor
    names pages that are not neighbours in the memory of its host, however often it is tried."""

    traces = 0

    def setUp(self):
        super().setUp()
        shell("echo 256 >/proc/sys/vm/nr_hugepages")
        self.assertEqual(shell("cat /proc/sys/vm/nr_hugepages"), "256")

    def machine(self, name, daemon, **keys):
        """A guest of QEMU's with a port of the daemon, which is not started."""
        path = daemon.port(f"net-{name}", mac=MACS[0], **keys)
        # A kernel that clears pages before it gives them to a device would mark them itself.
        guest = Guest(self.work, name, huge=True, append="init_on_alloc=0")
        return self.use(guest).net(path, MACS[0])

    def guests(self, count=1, **keys):
        guest = self.machine("a", self.daemon, **keys)
        self.use(self.daemon)
        guest.start()
        guest.nic = scenes.address(guest, MACS[0], IPS[0])
        return [guest]

    def trace(self):
        """From now on the emulator writes what its NICs do into a file of its own: the virtual host
        sees no more of a file than was there when it looked first."""
        QemuWire.traces += 1
        path = os.path.join(settings.build_folder(), f"qemu-{QemuWire.traces}.trace")
        self.monitor(f"logfile {path}")
        return path

    def sent_of(self, trace):
        """(bytes of large descriptors in the guests' memory, elsewhere)."""
        return self.sort(test_uplink_zero_copy.large_descriptors(trace))

    def sort(self, descriptors, name="wire"):
        regions = [(each["iova"], each["iova"] + each["bytes"])
                   for each in self.one(name)["memory"]]
        theirs = ours = 0
        for at, size in descriptors:
            if any(begin <= at and at + size <= end for begin, end in regions):
                theirs += size
            else:
                ours += size
        return theirs, ours

    def until_mapped(self, name="wire"):
        wait_for("the guest's memory to be mapped", lambda: (
            self.one(name)["memory"] and
            all(each["state"] == "mapped" for each in self.one(name)["memory"])), 120)

    def lent(self, name="wire"):
        return {key: count for key, count in self.one(name)["counters"].items()
                if key.startswith(("tx_zero_copy", "tx_copied"))}

    def killed(self, guest):
        """A daemon that is killed in the midst of a TCP connection, which goes on by the next."""
        with Exchange(guest) as exchange:
            exchange.until(PIECES // 4)
            self.daemon.kill9()
            self.daemon.start()
            self.assertLess(exchange.pieces, PIECES)
            exchange.end(self)
        self.sound(guest)

    def sound(self, guest):
        """Its driver and its kernel have nothing to complain of."""
        self.assertEqual(guest.kernel_log("is not a head|NETDEV WATCHDOG|BUG:|Call Trace"), "")


class ZeroCopy(QemuWire):
    def test_frames_leave_without_a_copy(self):
        """The guest's ring has no inflight region: buffers come back in their order."""
        give(IGB, "vfio-pci")
        self.daemon.uplink("wire", pci=IGB, zero_copy=True)
        (guest,) = self.guests()
        self.reach(guest)
        self.until_mapped()
        trace = self.trace()
        before = self.lent()
        self.fetch_from(guest, IPS[0])
        after = self.lent()
        bytes_lent = after["tx_zero_copy_bytes"] - before["tx_zero_copy_bytes"]
        time.sleep(1)  # the trace is another machine's file
        theirs, ours = self.sent_of(trace)
        self.report(f"{after}; DMA of {theirs} bytes in the guest's memory, {ours} elsewhere")
        self.assertGreater(bytes_lent, test_uplink_zero_copy.MOST)
        self.assertEqual(after["tx_copied_unmapped"], before["tx_copied_unmapped"])
        self.assertGreater(theirs, test_uplink_zero_copy.MOST)
        self.assertLess(ours, theirs / 4)
        self.killed(guest)
        self.until_mapped()
        before = self.lent()["tx_zero_copy_packets"]
        self.fetch_from(guest, IPS[0])
        self.assertGreater(self.lent()["tx_zero_copy_packets"], before)


class Direct(QemuWire):
    def test_both_ways_without_a_copy(self):
        guest = self.serve_igb()
        wanted = self.serve_file()
        trace, before = self.trace(), self.counted()
        self.fetch(guest, wanted)
        self.check_dma(before, trace)
        trace, sent = self.trace(), self.lent()
        self.fetch_from(guest, IPS[0])
        after = self.lent()
        time.sleep(1)  # the trace is another machine's file
        theirs, ours = self.sent_of(trace)
        self.report(f"{after}; sent: {theirs} bytes in the guest's memory, {ours} elsewhere")
        self.assertGreater(after["tx_zero_copy_bytes"] - sent["tx_zero_copy_bytes"],
                           test_uplink_zero_copy.MOST)
        self.assertGreater(theirs, test_uplink_zero_copy.MOST)
        self.assertLess(ours, theirs / 4)
        self.killed(guest)
        self.until_direct(guest)
        self.fetch(guest, wanted)


class Migration(QemuWire):
    def pair(self):
        """The guest, on a function of its own, and the place that it moves to, which has another
        one, of another daemon."""
        self.there = Daemon(self.work, "there")
        self.there.memory = self.daemon.memory
        guests = []
        for name, daemon, address in (("a", self.daemon, IGB), ("z", self.there, SPARE)):
            give(address, "vfio-pci")
            daemon.uplink("wire", pci=address, mac=MACS[0])
            guests.append(self.machine(name, daemon, direct="wire"))
            self.use(daemon)
        a, z = guests
        z.add("-incoming", f"unix:{self.work / 'move'}")
        a.start()
        a.nic = z.nic = scenes.address(a, MACS[0], IPS[0])
        self.until_direct(a)
        z.start(wait=False)
        return a, z

    def hold(self, a):
        """Data that the guest receives now and does not look at before it has moved: what says
        that those pages are to be sent once more is the log of what the NIC wrote. Answers its
        sum."""
        data = os.urandom(HELD * PIECE)
        with socket.create_connection((IPS[0], 5002), 60) as connection:
            for at in range(0, len(data), PIECE):
                connection.sendall(data[at:at + PIECE])
                time.sleep(0.2)
        wait_for("all to be acknowledged", lambda: self.unread(a) > len(data) - 3 * PIECE, 60, 0.5)
        return hashlib.sha256(data).hexdigest()

    def unread(self, guest):
        """Bytes of it in the guest's receive queue; a pipe has the rest."""
        line = guest.run("netstat -tn | grep ':5002 .*ESTABLISHED\\|:5002 .*CLOSE_WAIT'")[1]
        return int(line.split()[1]) if line else 0

    def move(self, a, exchange):
        """Answers the sum of what is held."""
        def state():
            status = a.qmp("query-migrate")
            self.assertNotIn(status["status"], ("failed", "cancelled"), status)
            return status

        begun = time.monotonic()
        a.qmp("migrate-set-parameters", max_bandwidth=64 << 20, downtime_limit=1)
        a.qmp("migrate", uri=f"unix:{self.work / 'move'}")
        wait_for("the first pass over memory", lambda: (
            state()["status"] == "active" and state()["ram"]["dirty-sync-count"] >= 2), 180, 0.2)
        a.qmp("migrate-set-parameters", max_bandwidth=1 << 17)
        passed = time.monotonic() - begun
        before = self.counted()["direct_rx_zero_copy"]
        held = self.hold(a)
        came = self.counted()["direct_rx_zero_copy"] - before
        status = state()
        self.assertEqual(status["status"], "active", status)
        self.assertLess(exchange.pieces, PIECES)
        a.qmp("migrate-set-parameters", max_bandwidth=1 << 30, downtime_limit=300)
        wait_for("the migration", lambda: state()["status"] == "completed", 180, 0.2)
        status = state()
        self.report(f"{time.monotonic() - begun:.1f} s ({passed:.1f} s for the first pass), pause "
                    f"{status['downtime']} ms, {status['ram']['dirty-sync-count']} looks at the "
                    f"log; {came} frames without a copy while what is held came")
        self.assertGreater(came, HELD * PIECE // 1500)
        a.kill()
        return held

    @long("a migration, which takes long in an emulated host")
    def test_a_direct_guest_moves(self):
        """A running guest on a function of its own moves to another one, in the midst of a TCP
        connection both ways; all that it has received is right there."""
        a, z = self.pair()
        a.must(f"sysctl -q -w net.ipv4.tcp_rmem='4096 4194304 8388608'; ({LISTEN} 5002 2>/dev/null "
               "| (while [ ! -e /tmp/moved ]; do sleep 0.2; done; cat >/tmp/held)) &\n" + CHURN)
        exchange = self.use(Exchange(a, 1))
        exchange.until(2)
        held = self.move(a, exchange)
        wait_for("the guest at its new place", lambda: z.run("true", 60)[0] == 0, 60)
        z.must("touch /tmp/moved")
        wait_for("what the guest held unread",
                 lambda: held in z.run("sha256sum </tmp/held")[1], 60, 1)
        self.assertLess(exchange.pieces, PIECES)
        exchange.end(self, z)
        self.assertGreaterEqual(scenes.ping(z, PEER_IP), 3)

        def direct():
            z.run(f"ping -c 100 -i 0.01 -q {PEER_IP}")
            return self.there.ask("query-ports")[0]["counters"]["direct_rx_zero_copy"] > 50
        wait_for("frames without a copy at the new place", direct, 120)
        self.fetch(z, self.serve_file())
        self.fetch_from(z, IPS[0])
        self.sound(z)


if __name__ == "__main__":
    inside.main(memory_mb=4096, devices=test_uplink_failures.devices() + [
        "-trace", "igb_rx_desc_buff_write", "-trace", "e1000e_tx_descr",
        "-D", os.path.join(settings.build_folder(), "qemu.trace")])
