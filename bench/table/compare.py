"""millrace-bench compare: the whole table, measured.

    millrace-bench compare [ROWS...] [--json FILE] [--rounds N] [--seconds S] [--limit S]
                           [--core N] [--client-core N] [--folder DIR]

The same client (millrace-bench blk, net; in F1 and F2 one of somebody else's) drives millraced and
each peer, in turns; who is not driven is stopped (SIGSTOP), so that one core serves both. Figures
are medians of the rounds, compared are pairs of neighbours in time. Cycles are of the time-stamp
counter in rounds that found work, as both sides count them; they say more than rates where the
machine is shared. Everything has its default configuration but for what a row is about. A first run
of each side compares every payload and is not counted.

    N1, N2   frames guest, switch, guest, 64 and 1500 bytes; beside OVS-DPDK's learning switch
    N3       the same with TCP segments of 64 KiB; OVS with userspace-tso-enable
    N4       guest to an uplink that forgets, and frames without end to the guest; dpdk-testpmd
    N5       latency at 10 % and 80 % of OVS-DPDK's rate
    N6       many ports, addresses, memory slots beside few
    N7       split rings beside packed ones
    B1, B2   4 KiB random reads of a disk of nothing, 128 and 1 in flight; qemu-storage-daemon
    B3       a disk in memory, beside bare memcpy
    B4       a file with O_DIRECT, beside bare io_uring
    B5       64 disks beside one
    I1       adaptive beside poll mode, 200 idle devices, the wake-up beside a bare one
    N1, N3 and B1 once more with --stock: event index, indirect descriptors, as Linux's drivers
    F1, F2   clients of others, beside OVS-DPDK: frames of dpdk-testpmd's virtio-user, and ping
             between two Linux guests of QEMU's

As root, on two cores. Status 0: everything was measured, whatever came out; 1: not everything."""

import argparse
import contextlib
import json
import os
import signal
import sys
import time

from tests.rig.process import RigError, Workspace

from . import machine, rows_blk, rows_foreign, rows_net
from .tables import cells, header, line_of

GROUPS = rows_net.GROUPS + rows_blk.GROUPS + rows_foreign.GROUPS
ROWS = sorted({row for rows, _ in GROUPS for row in rows},
              key=lambda row: ("NBIF".index(row[0]), row))
SET_UP_MOST = 60  # seconds for a group's contestants to start


class TooLong(RigError):
    """A row took more time than it may."""


class Bench:
    """What all rows need to know."""

    def __init__(self, options, work):
        self.work = work
        self.core, self.client_core = options.core, options.client_core
        self.rounds, self.seconds = options.rounds, options.seconds
        self.idle_seconds = max(2, round(10 * min(1, options.seconds)))
        self.folder = options.folder
        self.rows = options.rows or ROWS

    def wants(self, row):
        return row in self.rows

    def line_most(self):
        """Seconds that a line may take: some times what its runs need."""
        return 60 + 3 * 2 * (self.rounds + 1) * (self.seconds + 0.5)


@contextlib.contextmanager
def time_limit(seconds, what):
    """A TooLong in the body once `seconds` are over. Child processes that it waits for are
    ended. Main thread."""
    def over(*_):
        raise TooLong(f"{what} took more than {seconds:.0f} s")
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def failed(row, title, error):
    text = " ".join(str(error).split())
    if not isinstance(error, RigError):
        text = f"{type(error).__name__}: {text}"
    return {"row": row, "title": title, "error": text[:500]}


class Table:
    """The results so far. Every one is shown as it comes."""

    def __init__(self, bench, until):
        self.bench, self.until, self.results = bench, until, []

    def add(self, results, stolen):
        for result in results:
            result["stolen_s"] = round(stolen, 2)
            self.results.append(result)
            print(line_of(cells(result)), flush=True)

    def group(self, rows, make):
        """All lines of one group of rows. What goes wrong is a result, too."""
        wanted = [row for row in rows if self.bench.wants(row)]
        if not wanted:
            return
        try:
            with contextlib.ExitStack() as stack:
                lines = make(self.bench, stack)
                while True:
                    with time_limit(min(SET_UP_MOST, self.left()), "starting it"):
                        line = next(lines, None)
                    if line is None:
                        return
                    if self.bench.wants(line.row):
                        self.line(line)
        except Exception as error:  # whatever it is: the other rows are measured all the same
            self.add([failed(row, "", error) for row in wanted
                      if row not in {result["row"] for result in self.results}]
                     or [failed(wanted[-1], "", error)], 0)

    def line(self, line):
        before = machine.stolen()
        try:
            with time_limit(min(self.bench.line_most(), self.left()), line.title):
                results = line.measure(self.bench)
        except Exception as error:
            results = [failed(line.row, line.title, error)]
        self.add(results, machine.stolen() - before)

    def left(self):
        """Seconds until the end of the time that all of it may take."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise TooLong("not measured: the time was over (--limit)")
        return left


def parse(arguments):
    parser = argparse.ArgumentParser(prog="millrace-bench compare", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="some of them (default: all)", metavar="ROW")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.8, help="of each run")
    parser.add_argument("--limit", type=float, default=870, help="seconds for all of it")
    parser.add_argument("--core", type=int, default=0, help="the back-ends'")
    parser.add_argument("--client-core", type=int, default=1)
    parser.add_argument("--folder", default="/var/tmp", help="where B4's file is made")
    parser.add_argument("--json", help="where all figures go")
    options = parser.parse_args(arguments)
    unknown = [row for row in options.rows if row not in ROWS]
    if unknown:
        raise RigError(f"compare: there is no row {', '.join(unknown)}; there are "
                       f"{', '.join(ROWS)}")
    cores = os.sched_getaffinity(0)
    for word, core in (("--core", options.core), ("--client-core", options.client_core)):
        if core not in cores:
            raise RigError(f"compare: {word} {core}: this process has cores "
                           f"{', '.join(map(str, sorted(cores)))}")
    if options.core == options.client_core:
        raise RigError("compare: --core and --client-core are the same; it takes two cores")
    if options.rounds < 1 or options.seconds < 0.1 or options.limit < 1:
        raise RigError("compare: --rounds and --limit are at least 1, --seconds at least 0.1")
    if not os.path.isdir(options.folder):
        raise RigError(f"compare: --folder {options.folder}: there is no such folder")
    if os.geteuid() != 0:
        raise RigError("compare: it takes root: huge pages, pinned threads, the peers' daemons")
    return options


def write(path, table, began, before):
    with open(path, "w") as file:
        json.dump({"millrace_bench": 1, **machine.described(),
                   "command": " ".join(["millrace-bench compare", *sys.argv[2:]]),
                   "seconds": round(time.monotonic() - began, 1),
                   "stolen_s": round(machine.stolen() - before, 2),
                   "rows": table.results}, file, indent=1)
        file.write("\n")


def main(arguments):
    options = parse(arguments)
    if options.json:
        try:
            open(options.json, "a").close()  # that it cannot be written is said now
        except OSError as error:
            raise RigError(f"compare: --json {options.json}: {error.strerror}") from None
    began, before = time.monotonic(), machine.stolen()
    print(header(), flush=True)
    with Workspace("compare") as work:
        bench = Bench(options, work)
        table = Table(bench, began + options.limit)
        try:
            for rows, make in GROUPS:
                table.group(rows, make)
        finally:
            if options.json:
                write(options.json, table, began, before)
    print(f"\n{time.monotonic() - began:.0f} s; stolen by the hypervisor meanwhile: "
          f"{machine.stolen() - before:.1f} s")
    return 1 if any("error" in result for result in table.results) else 0
