"""`millctl status --watch` as a person sees it: on a terminal of 80 columns and 24 lines."""

import os
import re
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.process import wait_for
from tests.rig.qtest import BlkDriver, QtestQemu, VirtioPci
from tests.rig.testpmd import Testpmd
from tests.rig.watch import Watch, number, table

A, B = "52:54:00:00:00:0a", "52:54:00:00:00:0b"


class Terminal(SystemTest):
    def watch(self, *options, units=1, **size):
        self.daemon = Daemon(self.work)
        for index in range(units):
            self.daemon.port(f"a-port-name-{index:03}", vlan=10)
            self.daemon.disk(f"a-disk-name-{index:03}", backend="null", size="1GiB")
        self.use(self.daemon)
        wait_for("all to be there", lambda: len(self.daemon.ask("query-sessions")) == 2 * units
                 and "starting" not in str(self.daemon.ask("query-ports")))
        return self.use(Watch(self.daemon, *options, **size))

    def given_back(self, watch):
        self.assertEqual(watch.attributes(), watch.before)
        self.assertEqual(watch.screen.modes, {"?1049": False, "?25": True})

    def test_100_devices(self):
        """Everything fits, what is left out is counted, and nothing on the screen flickers."""
        watch = self.watch("--interval", "0.2", units=50)
        for _ in range(5):
            frame = watch.frame()
            shown = sum(line.startswith("a-") for line in frame)
            more = [int(found) for found in re.findall(r"^\.\.\. (\d+) more$", "\n".join(frame),
                                                       re.MULTILINE)]
            self.assertEqual((len(more), shown + sum(more)), (2, 100), frame)
            self.assertGreaterEqual(shown, 16)
            self.assertTrue(frame[0].startswith("millraced "), frame[0])
            self.assertIn("0 of 100 connected", frame[0])
        screen = watch.screen
        self.assertEqual((screen.wrapped, screen.flickered, screen.cleared), (0, 0, 0))
        self.assertEqual(screen.modes, {"?1049": True, "?25": False})

    def test_narrow(self):
        """What does not fit is cut, and the cut is seen."""
        watch = self.watch("--interval", "0.2", columns=40, rows=10)
        frame = [watch.frame() for _ in range(3)][-1]
        self.assertTrue(any(line.endswith("…") for line in frame), frame)
        self.assertEqual((watch.screen.wrapped, watch.screen.flickered), (0, 0))

    def test_q_ends_it(self):
        watch = self.watch()
        watch.frame()
        self.assertNotEqual(watch.attributes(), watch.before)  # keys come without a line break
        watch.press("q")
        self.assertEqual(watch.end(), (0, ""))
        self.given_back(watch)

    def test_signals_end_it(self):
        watch = self.watch()
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(number), Watch(self.daemon) as watch:
                watch.frame()
                watch.process.signal(number)
                self.assertEqual(watch.end(), (0, ""))
                self.given_back(watch)

    def test_a_daemon_that_goes(self):
        """Status 3, and the line is there to read once the screen is given back."""
        watch = self.watch("--interval", "0.2")
        watch.frame()
        self.daemon.stop()
        self.assertEqual(watch.end(), (3, "millctl: millraced hung up\r\n"))
        self.given_back(watch)


class Load(threading.Thread):
    """A disk's guest: writes and reads one after another, and counts them."""

    def __init__(self, blk):
        super().__init__(daemon=True)
        self.blk, self.done, self.bytes, self.ends = blk, 0, 0, False
        self.waited = []

    def run(self):
        data = bytes(4096)
        while not self.ends:
            begun = time.monotonic_ns()
            self.blk.write(8 * (self.done % 1000), data)
            self.waited.append(time.monotonic_ns() - begun)
            self.done, self.bytes = self.done + 1, self.bytes + len(data)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.ends = True
        self.join()


class Busy(SystemTest):
    """Two guests that flood each other and a disk at work: what the screen says is what the guests
    count themselves over the same span."""

    FRAMES = 5

    def setUp(self):
        super().setUp()
        self.daemon = Daemon(self.work)
        self.daemon.port("aside")
        sockets = {name: self.daemon.port(name) for name in ("pmd-a", "pmd-b")}
        disk = self.daemon.disk("data", backend="ram", size="16MiB")
        self.daemon.disk("also", backend="null", size="1GiB")
        self.use(self.daemon)
        self.guests = {name: self.use(Testpmd(
            self.work, name, [f"net_virtio_user0,path={path},mac={mac},queue_size=1024"],
            options=[f"--eth-peer=0,{peer}"])) for (name, path), mac, peer in zip(
                sockets.items(), (A, B), (B, A))}
        machine = self.use(QtestQemu(self.work).blk(disk).start())
        device = VirtioPci(machine, machine.virtio_devices()[0])
        device.negotiate(0)
        ring = device.queue(0)
        device.start()
        self.load = self.use(Load(BlkDriver(device, ring)))

    def forward(self, **modes):
        for name in modes:
            self.guests[name.replace("_", "-")]("stop")
        for name, mode in modes.items():
            self.guests[name.replace("_", "-")](f"set fwd {mode}")
        for name in modes:
            self.guests[name.replace("_", "-")]("start")

    def counts(self):
        """When it is, and what the guests have counted by then."""
        begun = time.monotonic()
        found = {name: guest.counts() for name, guest in self.guests.items()}
        found["data"] = {"requests": self.load.done, "bytes": self.load.bytes}
        return (begun + time.monotonic()) / 2, found

    def measure(self, watch):
        """The frames of a few seconds, and the guests' own rates over the same span."""
        watch.frame()
        begin, before = self.counts()
        frames = [watch.frame() for _ in range(self.FRAMES)]
        end, after = self.counts()
        return frames, {name: {key: (value - before[name][key]) / (end - begin)
                               for key, value in unit.items()} for name, unit in after.items()}

    def mean(self, frames, kind, name, title):
        return sum(number(table(frame, kind)[name][title]) for frame in frames) / len(frames)

    def drops(self, frames, name):
        """{reason: drops a second}, the mean of the frames."""
        found = {}
        for frame in frames:
            cell = table(frame, "PORT")[name]["DROPS/s"]
            for reason, rate in re.findall(r"(\w+) ([\d.]+\w?)", cell):
                found[reason] = found.get(reason, 0) + number(rate) / len(frames)
        return found

    def first(self, frame):
        return tuple(next(iter(table(frame, kind))) for kind in ("PORT", "DISK"))

    def leads(self, frame, port, disk):
        """Whether these two are first. No port: the one with the most drops."""
        dropped = {name: sum(self.drops([frame], name).values())
                   for name in ("pmd-a", "pmd-b", "aside")}
        port = port or max(dropped, key=dropped.get)
        return self.first(frame) == (port, disk)

    def near(self, shown, counted, what, slack=0.0):
        self.report(f"{what}: {shown:.4g} shown, {counted:.4g} counted by the guest")
        self.assertGreater(counted, 0, what)
        self.assertLessEqual(abs(shown - counted), 0.1 * counted + slack, what)

    def agrees(self, frames, own):
        for name, peer in (("pmd-a", "pmd-b"), ("pmd-b", "pmd-a")):
            for title, key, factor in (("TXpps", "TX-packets", 1), ("TXbps", "TX-bytes", 8),
                                       ("RXpps", "RX-packets", 1), ("RXbps", "RX-bytes", 8)):
                if own[name][key] or self.mean(frames, "PORT", name, title):
                    self.near(self.mean(frames, "PORT", name, title), factor * own[name][key],
                              f"{name} {title}")
            sent, received = own[peer]["TX-packets"], own[name]["RX-packets"]
            drops = self.drops(frames, name)
            self.assertLessEqual(set(drops), {"ring_full"})
            self.assertLessEqual(abs(drops.get("ring_full", 0) - (sent - received)),
                                 0.1 * (sent - received) + 0.05 * sent, name)

    def test_rates_drops_and_latencies(self):
        watch = self.use(Watch(self.daemon, "--interval", "1"))
        self.forward(pmd_a="flowgen", pmd_b="flowgen")
        watch.frame()
        frames, own = self.measure(watch)
        self.agrees(frames, own)
        disk, waits = own["data"], sorted(self.load.waited)
        self.near(self.mean(frames, "DISK", "data", "IOPS"), disk["requests"], "data IOPS")
        self.near(self.mean(frames, "DISK", "data", "MB/s"), disk["bytes"] / 1e6, "data MB/s", 0.1)
        for frame in frames:
            row = table(frame, "DISK")["data"]
            p50, p99, p999 = (number(row[title]) for title in ("p50", "p99", "p99.9"))
            self.assertLess(0, p50)
            self.assertLessEqual(p50, p99)
            self.assertLessEqual(p99, p999)
            self.assertLessEqual(p50, waits[len(waits) * 3 // 4])  # the guest's own wait is longer
            self.assertLessEqual(p999, waits[-1])
            self.assertIn("3 of 5 connected", frame[0])

        # One guest sends on and takes nothing: what is sent to it is what is dropped.
        self.forward(pmd_b="txonly")
        for _ in range(2):
            watch.frame()
        frames, own = self.measure(watch)
        self.assertEqual(own["pmd-b"]["RX-packets"], 0)
        self.agrees(frames, own)
        self.near(self.drops(frames, "pmd-b")["ring_full"], own["pmd-a"]["TX-packets"],
                  "drops of pmd-b")
        self.assertEqual((watch.screen.wrapped, watch.screen.flickered), (0, 0))

        # s sorts: by rate (idle ones last), name (they are first), drops, latency
        self.assertEqual(list(table(frames[-1], "PORT"))[-1], "aside")
        self.assertEqual(list(table(frames[-1], "DISK")), ["data", "also"])
        for port, disk in (("aside", "also"), (None, "also"), ("aside", "data")):
            watch.press("s")
            wait_for(f"{port or 'who drops most'} and {disk} to be first",
                     lambda: self.leads(watch.frame(), port, disk))


if __name__ == "__main__":
    main()
