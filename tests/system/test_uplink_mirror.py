"""Mirrors: what a guest sends and gets arrives at an uplink that watches as well, to the byte and
once. The guest's stand-in sends every frame back to its sender; the host has the other ends of two
taps."""

import contextlib
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import pcap
from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.process import wait_for
from tests.rig.raw import raw_socket
from tests.rig.testpmd import Testpmd

GUEST, HOST = "52:54:00:00:00:0a", "02:00:00:00:00:01"
FRAMES = 200
PACKET_OUTGOING = 4


def there(number):
    return pcap.frame(GUEST, HOST, number, 60 + number * 37 % 1455)


def back(number):
    """What the guest makes of it."""
    frame = there(number)
    return frame[6:12] + frame[:6] + frame[12:]


class Wire:
    """The host's end of an uplink; it has nothing to say there by itself."""

    def __init__(self, interface):
        with contextlib.suppress(OSError), open(
                f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6", "w") as file:
            file.write("1")
        self.socket = raw_socket(interface)
        self.seen = []

    def collect(self):
        """Takes what has come from the switch; answers how many frames of the two there are."""
        while True:
            try:
                frame, address = self.socket.recvfrom(2048)
            except BlockingIOError:
                return len(self.seen)
            if address[2] != PACKET_OUTGOING and {frame[:6], frame[6:12]} == {
                    pcap.mac(GUEST), pcap.mac(HOST)}:
                self.seen.append(frame)

    def send(self, frames):
        for number, frame in enumerate(frames):
            self.socket.send(frame)
            if number % 16 == 15:
                time.sleep(0.001)  # a queue of the host is no test of ours


class Mirrors(SystemTest):
    def begin(self, mirror=None):
        names = [f"mm{kind}{os.getpid() % 100_000}" for kind in "hw"]
        self.daemon = Daemon(self.work)
        self.daemon.memory = {"dpdk_mb": 128}
        path = self.daemon.port("guest", mac=GUEST)
        self.daemon.uplink("host", f"net_tap71,iface={names[0]}")
        self.daemon.uplink("watch", f"net_tap72,iface={names[1]}")
        if mirror:
            self.daemon.mirror("m", **mirror)
        self.use(self.daemon)
        self.qmp = self.use(self.daemon.qmp(timeout=60))
        wait_for("the uplinks' links",
                 lambda: all(each["link_up"] for each in self.qmp("query-uplinks")), 20)
        self.host, self.watch = (Wire(name) for name in names)
        self.addCleanup(self.host.socket.close)
        self.addCleanup(self.watch.socket.close)
        guest = self.use(Testpmd(
            self.work, "tp", [f"net_virtio_user0,path={path},mac={GUEST},queue_size=1024"],
            options=("--forward-mode=macswap", "--port-topology=loop")))
        guest("start")
        wait_for("the guest to answer", self.answers, 30)
        self.forget()

    def answers(self):
        self.host.send([there(0)])
        time.sleep(0.2)
        return self.host.collect()

    def forget(self):
        for wire in (self.host, self.watch):
            wait_for("silence", lambda: self.is_silent(wire), 20, 0.1)
            wire.seen.clear()

    @staticmethod
    def is_silent(wire):
        before = wire.collect()
        time.sleep(0.2)
        return wire.collect() == before

    def counters(self):
        (mirror,) = self.qmp("query-mirrors")
        return mirror["counters"]

    def echo(self, copies):
        """Frames to the guest and back; so many at the watcher. Answers those."""
        self.forget()
        self.host.send([there(number) for number in range(FRAMES)])
        wait_for("the guest's answers", lambda: self.host.collect() >= FRAMES, 20, 0.05)
        wait_for("the copies", lambda: self.watch.collect() >= copies, 20, 0.05)
        self.assertEqual(self.host.seen, [back(number) for number in range(FRAMES)])
        self.assertTrue(self.is_silent(self.watch))
        self.assertEqual(len(self.watch.seen), copies)
        return self.watch.seen

    def test_both_ways_from_the_configuration(self):
        """Every frame once, in the order of its direction, also where both its ports are
        watched; who watches has nothing else, and is not heard."""
        self.begin({"from": ["guest", "host"], "to": "watch"})
        before = self.counters()
        copies = self.echo(2 * FRAMES)
        host = pcap.mac(HOST)
        self.assertEqual([frame for frame in copies if frame[6:12] == host],
                         [there(number) for number in range(FRAMES)])
        self.assertEqual([frame for frame in copies if frame[:6] == host],
                         [back(number) for number in range(FRAMES)])
        after = self.counters()
        self.assertEqual(after["frames"] - before["frames"], 2 * FRAMES)
        self.assertEqual(after["bytes"] - before["bytes"],
                         2 * sum(len(there(number)) for number in range(FRAMES)))
        self.assertEqual(after["dropped"], 0)
        received = self.qmp("query-counters")["ports"]["guest"]["rx_packets"]
        self.watch.send([there(0)])
        wait_for("it to be refused", lambda: self.qmp(
            "query-counters")["uplinks"]["watch"]["drop_isolated"] >= 1, 10)
        self.assertEqual(self.qmp("query-counters")["ports"]["guest"]["rx_packets"], received)

    def test_directions_at_run_time(self):
        """millctl adds, lists and removes; each direction by itself."""
        self.begin()
        for direction, frame in (("in", back), ("out", there)):
            with self.subTest(direction):
                self.daemon.millctl("add", "mirror", "name=m", "from=guest", "to=watch",
                                    f"direction={direction}")
                copies = self.echo(FRAMES)
                self.assertEqual(copies, [frame(number) for number in range(FRAMES)])
                listed = self.daemon.millctl("mirrors").stdout
                self.assertRegex(listed, rf"m +guest +watch +{direction} +{FRAMES} ")
                self.daemon.millctl("remove", "mirror", "m")
                self.assertEqual(self.qmp("query-mirrors"), [])
                self.echo(0)

    def test_it_ends_with_its_destination(self):
        """And the guest goes on; names that are there no more are refused."""
        self.begin({"from": ["guest"], "to": "watch"})
        self.echo(2 * FRAMES)
        self.qmp("uplink-remove", name="watch")
        self.assertEqual(self.qmp("query-mirrors"), [])
        self.host.seen.clear()
        self.host.send([there(number) for number in range(FRAMES)])
        wait_for("the guest's answers", lambda: self.host.collect() >= FRAMES, 20, 0.05)
        again = self.daemon.millctl("add", "mirror", "name=m", "from=guest", "to=watch",
                                    check=False)
        self.assertEqual(again.stdout, "millctl: mirror m: there is no port or uplink watch; "
                                       "add it first\n")


if __name__ == "__main__":
    main()
