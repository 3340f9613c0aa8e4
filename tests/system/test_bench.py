"""millrace-bench as a client: what it measures is right, what it says is clear."""

import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import settings
from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon


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


if __name__ == "__main__":
    main()
