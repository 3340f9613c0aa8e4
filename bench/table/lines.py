"""One line of the table: two sides that take turns, what is compared, and what is hoped for."""

import contextlib
import dataclasses
import json
import statistics
import subprocess

from tests.rig import settings
from tests.rig.process import Child, RigError, run, tail

UNITS = {"cycles": "cycles", "rate": "/s", "p50": "us", "p99": "us", "p99.9": "us",
         "percent": "% of a core"}
PERCENTILES = ("p1", "p10", "p50", "p90", "p99", "p99.9", "p99.99", "p100")
WARM_UP = 0.2


@dataclasses.dataclass
class Judge:
    """What is compared, how, and the goal: `most` and `least` are of the ratio ours / theirs,
    `added` is of the difference, `value` of our own figure."""

    figure: str
    kind: str
    goal: float

    def compared(self, ours, theirs):
        if self.kind == "value":
            return ours
        return ours - theirs if self.kind == "added" else ours / theirs

    def met(self, compared):
        return compared >= self.goal if self.kind == "least" else compared <= self.goal


class Client:
    """One millrace-bench, which is told when to begin."""

    def __init__(self, command, log):
        self.command, self.log = command, log

    def __enter__(self):
        open(self.log, "w").close()
        self.child = Child(self.command, self.log, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, *_):
        self.child.kill()
        for stream in (self.child.process.stdin, self.child.process.stdout):
            with contextlib.suppress(OSError):
                stream.close()

    def ready(self):
        if self.child.process.stdout.readline() != b"ready\n":
            self._failed()

    def begin(self):
        self.child.process.stdin.write(b"\n")
        self.child.process.stdin.flush()

    def result(self):
        """Starts it, and answers what it measured."""
        self.begin()
        text = self.child.process.stdout.read()
        if self.child.wait():
            self._failed()
        return json.loads(text)

    def _failed(self):
        self.child.wait()
        raise RigError(tail(self.log).strip() or f"{self.command[0]} ended too early")


@dataclasses.dataclass
class Side:
    """A contestant, and the words for millrace-bench that drive it. Words that start with @ are
    sockets of it."""

    contestant: object
    words: list
    name: str = ""
    twin: list = None  # words that verify the payload instead; none: there is nothing to verify
    client_core: int = None  # None: the clients'

    def __post_init__(self):
        self.name = self.name or self.contestant.name

    def command(self, bench, words, seconds):
        spoken = [self.contestant.socket(word[1:]) if str(word).startswith("@") else str(word)
                  for word in words]
        core = bench.client_core if self.client_core is None else self.client_core
        return [settings.program("millrace-bench"), *spoken, *self.contestant.options, "--json",
                "--core", str(core), "--seconds", str(seconds), "--warm-up", str(WARM_UP)]

    def once(self, bench):
        """One run of the client. Answers its figures, with cycles an operation: the contestant is
        asked once all is connected, and again at the end."""
        command = self.command(bench, self.words, bench.seconds) + ["--wait"]
        with Client(command, bench.work / "client.log") as client:
            client.ready()
            before = self.contestant.busy()
            seen = client.result()
            after = self.contestant.busy()
        operations = seen["all_operations"]
        if after[1] is not None:
            operations = after[1] - before[1]
        if after[0] is not None and operations:
            seen["cycles"] = (after[0] - before[0]) / operations
        seen["command"] = " ".join(command[:-1])
        return seen

    def verify(self, bench):
        """The same with every payload compared. Answers what was seen to be right."""
        if self.twin is None:
            return "nothing to verify"
        seen = json.loads(run(self.command(bench, self.twin, 0.3), timeout=60).stdout)
        if "verified_blocks" in seen:
            return f"{seen['verified_blocks']} blocks"
        if not seen["operations"]:
            raise RigError(f"{self.name}: no frame arrived in the verified run")
        return f"{seen['operations']} frames"


@dataclasses.dataclass
class Line:
    row: str
    title: str
    ours: Side
    theirs: Side
    judges: list
    note: object = ""  # a text, or what is called to find it

    def measure(self, bench):
        """Answers the line's results, one for each judge."""
        rounds = []
        verified = {}
        for number in range(-1, bench.rounds):  # the first, -1, is the verified twin
            pair = {}
            sides = (("ours", self.ours), ("theirs", self.theirs))
            for word, side in sides if number % 2 else reversed(sides):
                side.contestant.resume()
                if number < 0:
                    verified[word] = side.verify(bench)
                else:
                    pair[word] = side.once(bench)
                if self.ours.contestant is not self.theirs.contestant:
                    side.contestant.pause()
            if pair:
                rounds.append(pair)
        self.ours.contestant.pause()
        note = self.note() if callable(self.note) else self.note
        return [self._result(judge, rounds, verified, note) for judge in self.judges]

    def _result(self, judge, rounds, verified, note):
        pairs = [{side: figure_of(pair[side], judge.figure) for side in pair} for pair in rounds]
        compared = [judge.compared(pair["ours"], pair["theirs"]) for pair in pairs]
        result = {
            "row": self.row, "title": self.title, "figure": judge.figure,
            "unit": UNITS[judge.figure], "kind": judge.kind, "goal": judge.goal, "note": note,
            "compared": {"median": statistics.median(compared), "least": min(compared),
                         "most": max(compared)},
            "met": judge.met(statistics.median(compared)), "verified": verified}
        for word, side in (("ours", self.ours), ("theirs", self.theirs)):
            result[word] = {"name": side.name, **medians(rounds, word)}
            result[word]["command"] = rounds[0][word]["command"]
        result["rounds"] = [{word: {name: figure_of(pair[word], name) for name in UNITS
                                    if figure_of(pair[word], name) is not None}
                             for word in pair} for pair in rounds]
        return result


def figure_of(seen, figure):
    if figure == "rate":
        return seen["per_second"]
    if figure in PERCENTILES:
        return seen["latency_us"][figure]
    return seen.get(figure)


def medians(rounds, side):
    out = {}
    for name in ("rate", "cycles", *PERCENTILES):
        values = [figure_of(pair[side], name) for pair in rounds]
        if all(value is not None for value in values):
            out[name] = statistics.median(values)
    return out
