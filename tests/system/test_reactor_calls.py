"""What a reactor under load asks of the kernel, as strace sees it: nothing for frames, and one call
for a batch of requests to files."""

import collections
import os
import re
import signal
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import settings
from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.process import Child, RigError, tail, wait_for


class Load:
    """millrace-bench beside a daemon, until the end of the context."""

    def __init__(self, *words):
        command = [settings.program("millrace-bench"), *map(str, words), "--seconds", "600"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def expect_running(self):
        if self.process.poll() is not None:
            raise RigError(f"the load ended: {self.process.communicate()}")


class ReactorCalls(SystemTest):
    def setUp(self):
        super().setUp()
        self.daemon = Daemon(self.work, mode="poll")

    def counted(self, query, *names):
        """The sum of these counters, of all ports or disks."""
        return sum(each["counters"][name] for each in self.daemon.ask(query) for name in names)

    def calls(self, load, done, wanted):
        """System calls of the only reactor, by name, and the units of work meanwhile: at least
        `wanted` by what done() answers."""
        def until(count):
            def reached():
                load.expect_running()
                return done() >= count
            wait_for("work", reached, 120)
        with load:
            until(done() + 5000)  # whatever was there before is gone
            with self.strace() as trace:
                before = done()
                until(before + wanted)
                worked = done() - before
            load.expect_running()
        with open(trace.path) as file:
            found = collections.Counter(re.findall(r"^(\w+)\(", file.read(), re.MULTILINE))
        self.report(f"{worked} units of work: {dict(found) or 'no call'}")
        return found, worked

    def strace(self):
        return Strace(self.work, self.reactor())

    def reactor(self):
        tasks = f"/proc/{self.daemon.process.pid}/task"
        for task in os.listdir(tasks):
            with open(f"{tasks}/{task}/comm") as file:
                if file.read().strip() == "reactor/0":
                    return task
        raise RigError("the daemon has no thread reactor/0")

    def frames(self):
        return self.counted("query-ports", "rx_packets")

    def requests(self):
        return self.counted("query-disks", "read_requests", "write_requests")

    def check(self, options, found, worked):
        if "--stock" in options:  # the index that it gave comes by once in 65,536 entries
            self.assertLessEqual(found.pop("io_submit", 0), 2 + worked / 10_000)
        self.assertEqual(found, {})

    def test_frames(self):
        """From guest to guest, in both ring formats, small ones and packets of TCP to be cut up:
        a driver that looks itself gets no call, and the reactor makes none."""
        a, b = (self.daemon.port(name) for name in "ab")
        self.use(self.daemon.start())
        for options in ((), ("--packed",), ("--stock",), ("--inflight",),
                        ("--tso", "--size", 65549)):
            with self.subTest(options=options):
                self.check(options, *self.calls(Load("net", a, b, *options), self.frames, 20_000))

    def test_memory_disks(self):
        """Requests to disks that are memory are done without the kernel."""
        disks = [self.daemon.disk(name, backend=name, size="16 MiB") for name in ("null", "ram")]
        self.use(self.daemon.start())
        for options in ((), ("--packed", "--write", 50), ("--stock",)):
            with self.subTest(options=options):
                load = Load("blk", *disks, *options)
                self.check(options, *self.calls(load, self.requests, 20_000))

    def test_files(self):
        """Requests of many disks go to the kernel together, and nothing but them does."""
        disks = [self.daemon.disk(f"disk{number}", path=self.daemon.image(f"disk{number}", 16))
                 for number in range(4)]
        self.use(self.daemon.start())
        load = Load("blk", *disks, "--depth", 16, "--write", 30)
        found, requests = self.calls(load, self.requests, 5_000)
        self.assertEqual(set(found), {"io_uring_enter"})
        self.assertLess(found["io_uring_enter"], requests / 4)


class Strace:
    """strace at one thread, until the end of the context; its lines are in the file `path`."""

    def __init__(self, work, task):
        self.path, self.log = (tempfile.mkstemp(suffix, dir=work.path)[1]
                               for suffix in (".calls", ".log"))
        self.process = Child(["strace", "-p", task, "-o", self.path], self.log)

    def __enter__(self):
        def attached():
            self.process.expect_running()
            return "attached" in tail(self.log)
        wait_for("strace", attached, 30)
        return self

    def __exit__(self, *_):
        self.process.signal(signal.SIGINT)
        self.process.wait(30)
        self.process.kill()


if __name__ == "__main__":
    main()
