"""Rows of requests, B1 to B5, and of idleness, I1."""

import json
import os

from tests.rig import settings
from tests.rig.peers import StorageDaemon
from tests.rig.process import RigError, run

from .contestants import Bare, Millrace
from .lines import Judge, Line, Side
from .rows_net import STOCK, frames, two_ports

STORE = 512 << 20  # bytes of the store in memory, as `limit memcpy` has it
IMAGE = 512 << 20
VERIFIED = 64 << 20


def of_zeros(contestant, words, name="", span=VERIFIED):
    """A side whose disks are of nothing: there they have zeros."""
    return Side(contestant, words, name, [*words, "--zeros", "--span", span])


def nothing(daemon):
    daemon.disk("null", backend="null", size="1 GiB")


def null_disk(bench, stack):
    """B1 and B2: a disk of nothing, beside qemu-storage-daemon's."""
    ours = stack.enter_context(Millrace(bench.work, bench.core, nothing))
    ours.pause()
    theirs = stack.enter_context(StorageDaemon(bench.work, bench.core))
    theirs.pause()
    if bench.wants("B1"):
        for more, text in (([], ""), (["--stock"], STOCK)):
            words = ["blk", "@null", "--depth", 128, *more]
            yield Line("B1", f"4 KiB random read, 128 in flight, null{text}",
                       of_zeros(ours, words), of_zeros(theirs, words),
                       [Judge("rate", "least", 8), Judge("cycles", "value", 760)])
    if bench.wants("B2"):
        words = ["blk", "@null", "--depth", 1]
        yield Line("B2", "4 KiB random read, 1 in flight, null", of_zeros(ours, words),
                   of_zeros(theirs, words), [Judge("p50", "most", 1 / 4)])


def bare(bench, name, *words):
    """The bare machine on the back-end's core; a spinner keeps the client's as busy as it is."""
    return Side(Bare(name), ["limit", *words, "--other", bench.client_core],
                client_core=bench.core)


def memory_disk(bench, stack):
    """B3: a disk in memory beside memcpy of as much memory. Its blocks are written first."""
    ours = stack.enter_context(Millrace(
        bench.work, bench.core, lambda daemon: daemon.disk("ram", backend="ram", size=STORE)))
    for size, text in ((4096, "4 KiB"), (65536, "64 KiB")):
        words = ["blk", "@ram", "--size", size]
        yield Line("B3", f"{text} random read, 128 in flight, memory",
                   Side(ours, words, twin=[*words, "--verify"]),
                   bare(bench, "memcpy", "memcpy", "--size", size), [Judge("rate", "least", 0.85)])


def make_image(path):
    """A file with contents and no holes, on its medium."""
    block = os.urandom(16 << 20)
    try:
        with open(path, "wb") as file:
            for _ in range(IMAGE // len(block)):
                file.write(block)
            os.fsync(file.fileno())
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError as error:
        raise RigError(f"{path}: {error.strerror}; --folder takes a folder of a file system with "
                       "O_DIRECT and half a gigabyte of room") from None


def file_disk(bench, stack):
    """B4: a file with O_DIRECT beside bare io_uring on the same one."""
    path = os.path.join(bench.folder, f"millrace-bench-{os.getpid()}.img")
    stack.callback(lambda: os.path.exists(path) and os.unlink(path))
    make_image(path)
    ours = stack.enter_context(Millrace(
        bench.work, bench.core, lambda daemon: daemon.disk("file", path=path)))
    ours.pause()
    kinds = (("read", 0), ("write", 100), ("half written", 50))
    for depth in (128, 1):
        judges = ([Judge("rate", "least", 0.97), Judge("cycles", "most", 1.3)] if depth > 1 else
                  [Judge("p50", "added", 2)])
        for kind, percent in kinds:
            words = ["--depth", depth, "--write", percent]
            yield Line("B4", f"4 KiB random, {kind}, {depth} in flight, file with O_DIRECT",
                       Side(ours, ["blk", "@file", *words],
                            twin=["blk", "@file", *words, "--verify", "--span", VERIFIED]),
                       bare(bench, "io_uring", "uring", "--file", path, *words), judges)


def many_disks(bench, stack):
    """B5: the same number of requests in flight, on many disks."""
    names = [f"d{number}" for number in range(64)]

    def set_up(daemon):
        for name in names:
            daemon.disk(name, backend="null", size="1 GiB")

    ours = stack.enter_context(Millrace(bench.work, bench.core, set_up))
    yield Line("B5", "64 disks with 2 in flight each, 4 KiB random read, null",
               of_zeros(ours, ["blk", *(f"@{name}" for name in names), "--depth", 2],
                        span=VERIFIED // len(names)),
               of_zeros(ours, ["blk", "@d0", "--depth", 128], "1 disk with 128"),
               [Judge("cycles", "most", 1.2)])


def adaptive(bench, stack):
    """I1 under load: reactors that may sleep beside those that never do."""
    modes = {}
    for mode in ("adaptive", "poll"):
        modes[mode] = stack.enter_context(Millrace(bench.work, bench.core, two_ports, mode, mode))
        modes[mode].pause()
    words = ("@a", "@b", "--size", 64)
    yield Line("I1", "adaptive mode beside poll mode under load, 64 B",
               *(frames(each, *words, name=mode) for mode, each in modes.items()),
               [Judge("rate", "least", 0.97), Judge("cycles", "most", 1.03)])


def wake_up(bench, stack):
    """I1 after idling: a request that finds the reactor asleep."""
    ours = stack.enter_context(Millrace(bench.work, bench.core, nothing))
    ours.pause()
    yield Line("I1", "a request every 2 ms: the wake-up, beside a bare eventfd and epoll",
               of_zeros(ours, ["blk", "@null", "--depth", 1, "--gap", 2000]),
               Side(Bare("eventfd"), ["limit", "wakeup", "--gap", 2000, "--other", bench.core]),
               [Judge("p99", "added", 15)])


class IdleLine:
    """100 NICs and 100 disks, started, with nothing to do. No peer: the figure is its own."""

    row, title = "I1", "100 idle NICs and 100 idle disks"

    def measure(self, bench):
        command = [settings.program("bench/idle"), "--daemon", settings.program("millraced"),
                   "--devices", 100, "--seconds", bench.idle_seconds, "--json"]
        done = run(command, timeout=60 + bench.idle_seconds, check=False)
        found = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if not found:
            raise RigError(f"bench/idle: {done.stdout.strip()[-200:]}")
        seen = json.loads(found[0])
        if seen["packets"] != 100 or seen["reads"] != 100:
            raise RigError("after idling, not every device worked")
        percent = seen["cpu_percent"]
        ours = {"name": "millraced", "percent": percent, "command": " ".join(map(str, command))}
        return [{"row": self.row, "title": self.title, "figure": "percent",
                 "unit": "% of a core", "kind": "value", "goal": 1.0, "note": "",
                 "compared": {"median": percent, "least": percent, "most": percent},
                 "met": percent < 1, "ours": ours, "theirs": {"name": ""}, "rounds": [],
                 "verified": {"ours": "a frame and a read of each device"}}]


def idle(bench, stack):
    yield IdleLine()


GROUPS = [
    (("B1", "B2"), null_disk),
    (("B3",), memory_disk),
    (("B4",), file_disk),
    (("B5",), many_disks),
    (("I1",), adaptive),
    (("I1",), wake_up),
    (("I1",), idle),
]
