"""millrace-bench as a client: what it measures is right, what it says is clear."""

import json
import os
import pty
import struct
import subprocess
import sys
from xml.etree import ElementTree

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from bench.table import compare, guests, kept, virtio_user
from bench.table.contestants import Millrace
from bench.table.lines import PERCENTILES, Client
from tests.rig import pcap, peers, settings
from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.process import RigError


class Bench(SystemTest):
    def bench(self, *words):
        """Answers (status, standard output, standard error)."""
        done = subprocess.run([settings.program("millrace-bench"), *map(str, words)], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
        return done.returncode, done.stdout, done.stderr

    def figures(self, *words):
        status, out, err = self.bench(*words, "--json", "--seconds", 0.3, "--warm-up", 0.1)
        self.assertEqual((status, err), (0, ""))
        return json.loads(out)

    def refused(self, piece, *words):
        status, out, err = self.bench(*words)
        self.assertNotEqual(status, 0)
        self.assertIn(piece, out + err)
        self.assertLessEqual(len((out + err).strip().splitlines()), 2, out + err)

    def daemon(self):
        daemon = Daemon(self.work)
        self.nics = [daemon.port(name) for name in ("a", "b")]
        self.disk = daemon.disk("disk", path=daemon.image("disk", 16))
        self.read_only = daemon.disk("ro", path=daemon.image("ro", 16), readonly=True)
        return self.use(daemon.start())

    def test_disk(self):
        """What is written is what is read, in both ring formats, and the daemon counts the same."""
        daemon, done = self.daemon(), 0
        for options in ((), ("--packed",), ("--depth", 1, "--size", 512, "--span", 1 << 20),
                        ("--size", 65536, "--write", 50), ("--sequential",)):
            with self.subTest(options=options):
                seen = self.figures("blk", self.disk, "--verify", *options)
                size = int(options[options.index("--size") + 1]) if "--size" in options else 4096
                span = options[-1] if "--span" in options else 16 << 20
                self.assertEqual(seen["verified_blocks"], span // size)
                self.assertGreater(seen["operations"], 0)
                done += 2 * seen["verified_blocks"] + seen["operations"]
                self.assertEqual(seen["bytes"], seen["operations"] * size)
                latency = seen["latency_us"]
                self.assertLessEqual(0 < latency["p50"] and latency["p50"], latency["p99"])
        counted = next(each for each in daemon.ask("query-disks") if each["name"] == "disk")
        counters = counted["counters"]
        self.assertGreaterEqual(counters["read_requests"] + counters["write_requests"], done)

    def test_live_display(self):
        """On a terminal a line of figures is written over itself while it runs, and wiped before
        the result; where that goes to a file there is the result alone."""
        self.daemon()
        terminal, slave = pty.openpty()
        self.addCleanup(os.close, terminal)
        for words, unit in (("net", *self.nics), "pps"), (("blk", self.disk), "IOPS"):
            with self.subTest(unit=unit):
                done = subprocess.run(
                    [settings.program("millrace-bench"), *words, "--seconds", "1.2"], text=True,
                    stdout=subprocess.PIPE, stderr=slave, timeout=120)
                self.assertEqual(done.returncode, 0)
                self.assertRegex(done.stdout, rf"^[\d.]+ \w?{unit}, .*; \d+ kicks in 1\.2 s\n")
                shown = os.read(terminal, 1 << 16).decode().split("\r")
                lines, wiped = shown[1:-2], shown[-2:]
                self.assertGreaterEqual(len(lines), 2, shown)
                for line in lines:
                    self.assertRegex(line, rf"^ *[\d.]+ s  [\d.]+ \w?{unit} +p50 +[\d.]+ us  p99 ")
                self.assertEqual(wiped, [" " * 60, ""])

    def test_zeros(self):
        """--zeros takes a disk that reads as zeros, and no other."""
        path = self.work / "contents.img"
        with open(path, "wb") as file:
            file.truncate(1 << 20)
            file.seek(0x7F000)
            file.write(b"\1")
        daemon = Daemon(self.work)
        nulls = [daemon.disk(f"null{number}", backend="null", size="16 MiB") for number in range(2)]
        contents = daemon.disk("contents", path=str(path))
        self.use(daemon.start())
        for options in ((), ("--packed",), ("--depth", 1, "--span", 1 << 20)):
            seen = self.figures("blk", *nulls, "--zeros", *options)
            self.assertEqual(seen["verified_blocks"], 2 * (256 if options[:-1] else 4096))
        self.refused("block 127 does not read as zeros", "blk", contents, "--zeros")

    def test_frames(self):
        """Frames of all kinds arrive as they were sent, in both ring formats."""
        self.daemon()
        for options in ((), ("--packed",), ("--size", 1514), ("--size", 9000),
                        ("--tso", "--size", 65000), ("--tso", "--size", 65000, "--packed"),
                        ("--rate", 10000), ("--ring", 64, "--burst", 7)):
            with self.subTest(options=options):
                seen = self.figures("net", *self.nics, "--check-every", 1, *options)
                self.assertEqual(seen["wrong"], 0)
                self.assertGreater(seen["operations"], 0)
                size = int(options[options.index("--size") + 1]) if "--size" in options else 64
                self.assertEqual(seen["bytes"], seen["operations"] * size)

    def test_back_end_that_connects(self):
        """With --listen the sockets are the bench's, and the back-end comes to them."""
        daemon = Daemon(self.work)
        nics = [daemon.port(name, mode="connect") for name in ("a", "b")]
        disk = daemon.disk("disk", mode="connect", path=daemon.image("disk", 16))
        self.use(daemon.start())
        self.assertGreater(self.figures("blk", disk, "--listen")["operations"], 0)
        self.assertEqual(self.figures("net", *nics, "--listen")["wrong"], 0)

    def test_refusals(self):
        """One line says what is wrong."""
        daemon = self.daemon()
        self.refused("nobody", "blk", daemon.socket("nobody"))
        self.refused("read-only", "blk", self.read_only, "--write", 100)
        self.refused("multiple of 512", "blk", self.disk, "--size", 1000)
        self.refused("depth", "blk", self.disk, "--depth", 0)
        self.refused("60 to 65549", "net", *self.nics, "--size", 20)
        self.refused("power of two", "net", *self.nics, "--ring", 1000)
        self.refused("--core", "blk", self.disk, "--core", 1023)
        self.refused("second socket", "net", self.nics[0])
        self.refused("leave the second socket out", "net", *self.nics, "--out")
        self.refused("in pairs", "net", *self.nics, self.nics[0])
        self.refused("--expect", "net", *self.nics, "--expect", "frames.pcap")
        self.refused("--verify", "blk", self.disk, "--zeros", "--verify")
        self.refused("--gap", "blk", self.disk, "--gap", 100)
        self.refused("--file", "limit", "uring")
        self.refused("memcpy", "limit", "nothing")

    def test_many_ends(self):
        """Pairs of NICs take turns, bystanders get nothing, and so do many disks; frames go to as
        many addresses as were asked for, in memory of many slots."""
        daemon = Daemon(self.work)
        nics = [daemon.port(f"n{number}", addresses_max=4096) for number in range(6)]
        disks = [daemon.disk(f"d{number}", backend="ram", size="16 MiB") for number in range(5)]
        self.use(daemon.start())
        self.figures("net", *nics, "--check-every", 1)
        received = [self.received(daemon, f"n{number}") for number in range(6)]
        for to in (1, 3, 5):
            self.assertGreater(received[to], 0)
        self.figures("net", *nics[:2], "--idle", *nics[2:], "--check-every", 1)
        self.figures("net", *nics[:2], "--addresses", 2000, "--check-every", 1)
        known = [each for each in daemon.ask("query-addresses") if each["port"] == "n1"]
        self.assertGreaterEqual(len(known), 2000)
        self.figures("net", *nics[:2], "--slots", 500, "--check-every", 1)
        seen = self.figures("blk", *disks, "--depth", 2, "--verify")
        self.assertEqual(seen["verified_blocks"], 5 * 4096)
        for disk in daemon.ask("query-disks"):
            self.assertGreaterEqual(disk["counters"]["read_requests"], 4096)

    def received(self, daemon, name):
        port = next(each for each in daemon.ask("query-ports") if each["name"] == name)
        return port["counters"]["rx_packets"]

    def test_one_way(self):
        """Frames that go out of one NIC, and those that come in, are the daemon's as well."""
        path, others = self.work / "frames.pcap", self.work / "others.pcap"
        frames = [pcap.frame(kept.HERE, kept.THERE, number, 64) for number in range(3)]
        pcap.write(path, frames[:2])
        pcap.write(others, frames[1:])
        daemon = Daemon(self.work)
        nic = daemon.port("a")
        daemon.uplink("endless", f"net_pcap0,rx_pcap={path},infinite_rx=1")
        self.use(daemon.start())
        seen = self.figures("net", nic, "--in", "--size", 64)
        self.assertEqual(seen["bytes"], 64 * seen["operations"])
        self.assertGreaterEqual(self.received(daemon, "a"), seen["operations"])
        seen = self.figures("net", nic, "--in", "--size", 64, "--expect", path)
        self.assertEqual(seen["wrong"], 0)
        self.assertGreater(seen["operations"], 0)
        status, _, err = self.bench("net", nic, "--in", "--seconds", 0.2, "--expect", others)
        self.assertEqual((status, "not what was sent" in err), (1, True), err)
        self.refused("not a capture", "net", nic, "--in", "--expect", __file__)
        seen = self.figures("net", nic, "--out", "--size", 64, "--rate", 5000)
        self.assertLess(abs(seen["per_second"] - 5000), 1000)
        for more in ((), ("--inflight",)):
            seen = self.figures("net", nic, "--out", "--size", 64, *more)
            self.assertGreater(seen["operations"], 0)

    def while_connected(self, look, *words):
        """What `look` answers between set-up and load, and the load's figures."""
        command = [settings.program("millrace-bench"), *map(str, words), "--json", "--wait",
                   "--seconds", "0.3", "--warm-up", "0.1"]
        with Client(command, self.work / "client.log") as client:
            client.ready()
            return look(), client.result()

    def test_stock(self):
        """With --stock the rings are used as Linux's drivers use them: event index and tables, in
        both formats, and for disks an inflight region; all arrives as it was sent."""
        daemon = self.daemon()

        def looked(kind, name):
            found = next(each for each in daemon.ask(f"query-{kind}") if each["name"] == name)
            with open(f"/proc/{daemon.process.pid}/maps") as file:
                return int(found["features"], 16) >> 28 & 3, "millrace-inflight" in file.read()
        for options in ((), ("--packed",), ("--depth", 1, "--size", 512, "--span", 1 << 20),
                        ("--size", 65536, "--write", 50), ("--depth", 1, "--packed")):
            with self.subTest(options=options):
                seen, figures = self.while_connected(
                    lambda: looked("disks", "disk"), "blk", self.disk, "--verify", "--stock",
                    *options)
                self.assertEqual(seen, (3, True))
                self.assertGreater(figures["verified_blocks"], 0)
                self.assertGreater(figures["operations"], 0)
        large = ("--tso", "--size", 65000)
        for options in ((), ("--packed",), large, (*large, "--packed"), ("--tso", "--size", 1514),
                        (*large, "--slots", 40), (*large, "--ring", 64, "--burst", 7),
                        ("--rate", 10000), ("--tso", "--size", 65549, "--rate", 2000)):
            with self.subTest(options=options):
                seen, figures = self.while_connected(
                    lambda: looked("ports", "b"), "net", *self.nics, "--check-every", 1, "--stock",
                    *options)
                self.assertEqual(seen, (3, False))
                self.assertEqual(figures["wrong"], 0)
                self.assertGreater(figures["operations"], 0)
        self.assertEqual(self.while_connected(lambda: looked("disks", "disk"), "blk", self.disk)[0],
                         (0, False))

    def test_limits(self):
        """What the machine does alone: the work that was asked for is done."""
        path = os.path.join("/var/tmp", f"bench-{os.getpid()}.img")
        self.addCleanup(lambda: os.path.exists(path) and os.unlink(path))
        with open(path, "wb") as file:
            file.write(os.urandom(1 << 20))
        for words in (("memcpy", "--size", 4096), ("driver", "--out", "--size", 64),
                      ("driver", "--in", "--size", 1514), ("switch", "--size", 64),
                      ("switch", "--size", 1514), ("uring", "--file", path),
                      ("uring", "--file", path, "--write", 100, "--depth", 1)):
            with self.subTest(words=words):
                seen = self.figures("limit", *words)
                self.assertGreater(seen["operations"], 0)
                size = words[words.index("--size") + 1] if "--size" in words else 4096
                self.assertEqual(seen["bytes"], seen["operations"] * size)
                if words[0] == "switch":  # some frames in each run are compared byte by byte
                    self.assertEqual(seen["wrong"], 0)
                    self.assertGreater(seen["cycles"], 0)
        with open(path, "rb") as file:  # what was written is what the buffers had
            self.assertTrue(b"\x5a" * 4096 in file.read())
        seen = self.figures("limit", "wakeup", "--gap", 200)
        self.assertGreater(seen["latency_us"]["p50"], 0)


class Table(SystemTest):
    """millrace-bench compare and report."""

    def words(self, *words, status=0, timeout=240):
        done = subprocess.run([settings.program("millrace-bench"), *map(str, words)], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout)
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        return done.stdout, done.stderr

    def refused(self, piece, *words):
        _, err = self.words(*words, status=1)
        self.assertIn(piece, err)
        self.assertEqual(len(err.strip().splitlines()), 1, err)

    def test_a_row_and_its_report(self):
        """One row beside ourselves, measured, written, and made a page and a table of."""
        if len(os.sched_getaffinity(0)) < 2:
            self.skipTest("a comparison takes two cores")
        result, page, table = (self.work / name for name in ("r.json", "r.html", "r.md"))
        out, _ = self.words("compare", "N7", "--rounds", 2, "--seconds", 0.2, "--json", result)
        self.assertIn("| N7 |", out)
        with open(result) as file:
            seen = json.load(file)
        row, = seen["rows"]
        self.assertEqual(row["row"], "N7")
        for side in ("ours", "theirs"):
            self.assertIn("frames", row["verified"][side])
            self.assertGreater(row[side]["cycles"], 0)
            self.assertIn("millrace-bench net", row[side]["command"])
        self.assertEqual(len(row["rounds"]), 2)
        ratios = [each["ours"]["cycles"] / each["theirs"]["cycles"] for each in row["rounds"]]
        self.assertAlmostEqual(row["compared"]["median"], sum(ratios) / 2)
        self.assertEqual(row["met"], row["compared"]["median"] <= row["goal"])
        self.assertIn("model", seen["machine"]["processor"])
        self.words("report", result, "--html", page, "--markdown", table)
        with open(table) as file:
            self.assertIn(out.splitlines()[2], file.read())  # the line that was shown
        with open(page) as file:
            self.check_page(file.read())

    def check_page(self, text):
        root = ElementTree.fromstring(text.replace("<!doctype html>", "").replace(
            '<meta charset="utf-8">', "").replace(
                '<meta name="viewport" content="width=device-width, initial-scale=1">', "").replace(
                    "<br>", "<br/>"))
        self.assertGreaterEqual(len(list(root.iter("svg"))), 1)
        self.assertNotIn("http", text)  # nothing from elsewhere

    def contestants(self, row, **keys):
        """What a row knows, and two of our daemons: one whose sockets clients come to, one that
        comes to the clients'. `keys` are port b's own."""
        if len(os.sched_getaffinity(0)) < 2:
            self.skipTest("a comparison takes two cores")
        bench = compare.Bench(compare.parse([row, "--seconds", "0.2"]), self.work)

        def daemon(mode):
            def set_up(daemon):
                daemon.port("a", mode=mode)
                daemon.port("b", mode=mode, **keys)
            return self.use(Millrace(bench.work, bench.core, set_up, name=mode))
        each = daemon("listen"), daemon("connect")
        each[1].options = ("--listen",)
        return bench, each

    def counted(self, contestant, name, counter):
        return contestant.daemon.ask("query-counters")["ports"][name][counter]

    def test_frames_of_testpmd(self):
        """dpdk-testpmd's frames arrive as they were sent; those that are counted are the daemon's,
        and go to an address that it has learnt. Both kinds of socket, both ring formats."""
        bench, each = self.contestants("F1")
        self.use(peers.HugePages(64))
        for contestant, packed in zip(each, (False, True)):
            with self.subTest(packed=packed), \
                    virtio_user.TestpmdSide(contestant, 1514, packed) as side:
                self.assertEqual(side.verify(bench), f"{virtio_user.VERIFIED} frames")
                side.once(bench)  # and starts the client, which sends a few frames of its own
                before = self.counted(contestant, "b", "rx_packets")
                seen = side.once(bench)
                arrived = self.counted(contestant, "b", "rx_packets") - before
                self.assertGreater(seen["per_second"], 0)
                self.assertGreater(seen["cycles"], 0)
                # Each time a ring's worth at most is left that the client has not looked at.
                self.assertLessEqual(abs(arrived - seen["all_operations"]), virtio_user.RING)
                learnt = {entry["mac"]: entry["port"]
                          for entry in contestant.daemon.ask("query-addresses")}
                self.assertEqual((learnt[virtio_user.FROM], learnt[virtio_user.TO]), ("a", "b"))

    def test_frames_that_do_not_arrive(self):
        """A switch that brings no frame from one NIC to the other is no contestant."""
        bench, (contestant, _) = self.contestants("F1", vlan=5)
        self.use(peers.HugePages(64))
        with virtio_user.TestpmdSide(contestant, 64) as side:
            with self.assertRaisesRegex(RigError, "in vain for frames .* at millraced"):
                side.verify(bench)

    def test_round_trips_of_linux(self):
        """A pair of guests exchanges as many pings as were asked for, and a file, through each of
        the contestants that it has NICs at, and through no other."""
        bench, each = self.contestants("F2")
        pair = self.use(guests.GuestPair(bench.work, each))
        pair.keep_to(bench.client_core)
        for contestant, other in (each, each[::-1]):
            side = guests.PingSide(pair, contestant)
            other.pause()
            self.assertIn("bytes", side.verify(bench))
            before = self.counted(contestant, "a", "tx_packets")
            seen = side.once(bench)
            self.assertEqual(seen["all_operations"], 200)
            self.assertGreaterEqual(self.counted(contestant, "a", "tx_packets") - before, 200)
            latency = [seen["latency_us"][name] for name in PERCENTILES]
            self.assertGreater(latency[0], 0)
            self.assertEqual(latency, sorted(latency))
            other.resume()

    def test_clients_of_others(self):
        """The rows of foreign clients, beside the peer itself."""
        if not os.path.exists(peers.OVS):
            self.skipTest("there is no OVS with DPDK")
        result = self.work / "r.json"
        self.words("compare", "F1", "F2", "--rounds", 1, "--seconds", 0.2, "--json", result)
        with open(result) as file:
            rows = json.load(file)["rows"]
        self.assertEqual([(row["row"], row["figure"]) for row in rows],
                         3 * [("F1", "cycles"), ("F1", "rate")] +
                         2 * [("F2", "p50"), ("F2", "p99")])
        for row in rows:
            for side in ("ours", "theirs"):
                self.assertGreater(row[side][row["figure"]], 0)
                self.assertRegex(row["verified"][side], "^800 frames|bytes through TCP")

    def test_payloads_of_every_side(self):
        """No row counts what was not verified before: all but the bare machine."""
        if not os.path.exists(peers.OVS):
            self.skipTest("there is no OVS with DPDK")
        result = self.work / "r.json"
        wanted = ("N1", "N3", "N4", "B1", "B2", "B5", "I1")
        self.words("compare", *wanted, "--rounds", 1, "--seconds", 0.1, "--json", result)
        with open(result) as file:
            rows = json.load(file)["rows"]
        self.assertEqual({row["row"] for row in rows}, set(wanted))
        self.assertEqual({row["row"] for row in rows if ", rings as stock" in row["title"]},
                         {"N1", "N3", "B1"})
        for row in rows:
            for side, seen in row["verified"].items():
                bare = row[side]["name"] == "eventfd"
                self.assertRegex(seen, "^nothing" if bare else "^[1-9][0-9]* (frames|blocks)|^a f")

    def test_frames_that_left(self):
        """Frames that leave by an uplink are compared with those that were sent, each with each."""
        sent = [struct.pack("<QQ", number, 12345) for number in range(4)]
        bare, at = kept.sent(100), kept.STAMP.start
        frames = [bare[:at] + stamp + bare[at:] for stamp in sent]
        kept.check(frames, 100, "it")
        broken = frames[1][:-1] + b"x"
        for wrong, piece in (([frames[0], broken], "frame 1 left it otherwise"),
                             ([frames[0], frames[2]], "frame 2 left it where frame 1"),
                             ([frames[0], frames[0]], "frame 0 left it where frame 1"),
                             ([frames[0][:-1]], "frame 0 left it otherwise")):
            with self.assertRaisesRegex(RigError, piece):
                kept.check(wrong, 100, "it")

    def test_report_of_all_kinds(self):
        """Ratios, differences, figures of their own, latencies, and what could not be measured."""
        side = {"name": "one", "command": "x", "rate": 2e6, "cycles": 100, "p50": 10, "p99": 20,
                "p100": 900}
        common = {"note": "", "ours": side, "theirs": {**side, "name": "two <&>", "p50": 30},
                  "rounds": [], "verified": {}, "stolen_s": 0.5, "met": True,
                  "compared": {"median": 0.4, "least": 0.3, "most": 0.5}}
        rows = [{**common, "row": "N1", "title": "a", "figure": "cycles", "unit": "cycles",
                 "kind": "most", "goal": 0.5},
                {**common, "row": "N5", "title": "b", "figure": "p50", "unit": "us",
                 "kind": "most", "goal": 0.1, "met": False},
                {**common, "row": "B1", "title": "c", "figure": "rate", "unit": "/s",
                 "kind": "least", "goal": 0.1},
                {**common, "row": "B4", "title": "d", "figure": "p50", "unit": "us",
                 "kind": "added", "goal": 2},
                {**common, "row": "I1", "title": "e", "figure": "cycles", "unit": "cycles",
                 "kind": "value", "goal": 760},
                {"row": "N2", "title": "f", "error": "there is no OVS: apt-get install it",
                 "stolen_s": 0}]
        result, page = self.work / "r.json", self.work / "r.html"
        with open(result, "w") as file:
            json.dump({"millrace_bench": 1, "machine": {"processor": {
                "model": "m", "cores": 2, "flags": []}, "kernel": "k"}, "versions": {},
                "build": {}, "command": "c", "seconds": 1, "stolen_s": 0, "rows": rows}, file)
        out, _ = self.words("report", result, "--html", page, "--markdown", "/dev/stdout")
        self.assertIn("| 100 cycles, 2.00 M/s | two <&> 100 cycles, 2.00 M/s |", out)
        for piece in ("at most 0.50 |", "at most 0.10, **missed**", "at least 0.10",
                      "at most 2 us more", "at most 760 cycles", "apt-get install it"):
            self.assertIn(piece, out)
        with open(page) as file:
            text = file.read()
        self.check_page(text)
        self.assertEqual(text.count('class="curve ours"'), 1 + 1)  # of N5 and B4
        self.assertEqual(text.count('class="missed"/>'), 1)
        picture = self.work / "r.svg"
        self.words("report", result, "--svg", picture)
        root = ElementTree.parse(picture).getroot()
        self.assertEqual(root.tag, "{http://www.w3.org/2000/svg}svg")
        bars = [each.get("class") for each in root.iter("{http://www.w3.org/2000/svg}rect")]
        self.assertEqual(bars, ["met", "missed", "met"])

    def test_published(self):
        """The table and the picture in bench/results are the report of the run that is kept there;
        README.md has a line of every row, SPECIFICATION.md every ratio."""
        folder = os.path.join(settings.SOURCE, "bench/results")

        def text_of(path):
            with open(os.path.join(folder, path)) as file:
                return file.read()
        picture = self.work / "r.svg"
        out, _ = self.words("report", f"{folder}/compare.json", "--svg", picture, "--markdown",
                            "/dev/stdout")
        self.assertIn(f"\n\n{out}\n", text_of("README.md"))
        self.assertEqual(text_of(picture), text_of("compare.svg"))
        readme, promises = (text_of(f"../../{name}.md") for name in ("README", "SPECIFICATION"))
        for row in compare.ROWS:
            self.assertIn(f"\n| {row} |", readme)
        for result in json.loads(text_of("compare.json"))["rows"]:
            start = f"| {result['row']}:"
            lines = [line for line in promises.splitlines() if line.startswith(start)]
            self.assertTrue(lines, result["row"])
            if result.get("kind") in ("most", "least"):
                self.assertIn(f"{result['compared']['median']:.2f}", "\n".join(lines))

    def test_refusals(self):
        """One line says what is wrong."""
        self.refused("no row N9", "compare", "N9")
        self.refused("--client-core 999", "compare", "--client-core", 999)
        self.refused("are the same", "compare", "--client-core", 0)
        self.refused("--folder", "compare", "--folder", "/nowhere")
        self.refused("--rounds", "compare", "--rounds", 0)
        self.refused("--json /nowhere/r.json", "compare", "--json", "/nowhere/r.json")
        self.refused("No such file", "report", "/nowhere.json")
        path = self.work / "bad.json"
        for text, piece in (("{", "not JSON"), ("{}", "is not what"),
                            ('{"millrace_bench": 1, "rows": [{}]}', "lacks")):
            with open(path, "w") as file:
                file.write(text)
            self.refused(piece, "report", path)

    def test_missing_peer(self):
        """A peer that is not installed is a row that says which package has it."""
        os.mkdir(self.work / "bin")
        os.symlink(sys.executable, self.work / "bin/python3")
        packages = {"B2": "qemu-system-common", "F1": "dpdk-dev", "F2": "qemu-system-x86"}
        done = subprocess.run([settings.program("millrace-bench"), "compare", *packages], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60,
                              env={**os.environ, "PATH": self.work / "bin"})
        self.assertEqual(done.returncode, 1, done.stdout)
        for name, package in packages.items():
            row, = [line for line in done.stdout.splitlines() if line.startswith(f"| {name} |")]
            self.assertIn(f"apt-get install {package} ", row)

    def test_time_limit(self):
        """A table that takes too long ends, says so in its rows, and leaves nothing behind."""
        before = set(os.listdir("/tmp"))
        result = self.work / "r.json"
        self.words("compare", "N7", "B5", "--limit", 1, "--json", result, status=1)
        with open(result) as file:
            rows = json.load(file)["rows"]
        self.assertEqual({row["row"] for row in rows}, {"N7", "B5"})
        for row in rows:
            self.assertIn("error", row)
        left = [name for name in set(os.listdir("/tmp")) - before if "compare" in name]
        self.assertEqual(left, [])


if __name__ == "__main__":
    main()
