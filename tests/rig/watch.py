"""`millctl status --watch` on a terminal of ours, and what a person sees there."""

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time

from . import settings
from .process import Child, RigError

_TOKEN = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


class Screen:
    """What a terminal makes of the bytes: the characters, and what went wrong meanwhile."""

    def __init__(self, columns, rows):
        self.columns, self.rows = columns, rows
        self.cells = [[" "] * columns for _ in range(rows)]
        self.row = self.column = 0
        self.full = False  # the last column is written, and the cursor still on it
        self.modes = {}
        self.erased = set()
        self.wrapped = self.flickered = self.cleared = 0

    def feed(self, text):
        """Yields the lines on the screen at the end of each frame (erase to the end)."""
        for token in _TOKEN.finditer(text):
            if token.group(2):
                if self._escape(token.group(1), token.group(2)):
                    yield ["".join(row).rstrip() for row in self.cells]
            elif token.group() == "\r":
                self.column, self.full = 0, False
            elif token.group() == "\n":
                self.row = min(self.row + 1, self.rows - 1)
            else:
                for character in token.group():
                    self._put(character)

    def _put(self, character):
        if self.full:
            self.wrapped += 1
            return
        if (self.row, self.column) in self.erased and character != " ":
            self.flickered += 1
        self.cells[self.row][self.column] = character
        self.full = self.column + 1 == self.columns
        self.column = min(self.column + 1, self.columns - 1)

    def _erase(self, row, first):
        for column in range(first, self.columns):
            if self.cells[row][column] != " ":
                self.erased.add((row, column))
            self.cells[row][column] = " "

    def _escape(self, numbers, letter):
        if letter == "H":
            self.row = self.column = 0
            self.full = False
            self.erased.clear()
        elif letter == "K":
            self._erase(self.row, self.column)
        elif letter == "J":
            self.cleared += numbers in ("2", "3")
            self._erase(self.row, self.column)
            for row in range(self.row + 1, self.rows):
                self._erase(row, 0)
            return True
        elif letter in "hl":
            self.modes[numbers] = letter == "h"
        elif letter != "m":
            raise RigError(f"an escape that nobody expected: {numbers}{letter}")
        return False


class Watch:
    """One millctl status --watch, on a terminal of that size."""

    def __init__(self, daemon, *options, columns=80, rows=24):
        self.screen, self.text, self.frames = Screen(columns, rows), "", []
        self._terminal, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = self.attributes()
        self.process = Child(
            ["/bin/sh", "-c", 'exec "$@" >/dev/fd/0 2>&1', "sh", settings.program("millctl"),
             "--socket", daemon.control, "status", "--watch", *options],
            daemon.path("watch.log"), name="millctl", stdin=self._slave, env={"TERM": "xterm"})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        os.close(self._terminal)
        os.close(self._slave)

    def attributes(self):
        return termios.tcgetattr(self._slave)

    def _read(self, seconds):
        if not select.select([self._terminal], [], [], seconds)[0]:
            return False
        text = os.read(self._terminal, 65536).decode()
        self.text += text
        self.frames += self.screen.feed(text)
        return True

    def frame(self, timeout=20):
        """The next frame: its lines."""
        deadline = time.monotonic() + timeout
        while not self.frames:
            if time.monotonic() > deadline:
                raise RigError(f"no frame in {timeout} s: {self.text[-2000:]!r}")
            self._read(0.2)
        return self.frames.pop(0)

    def press(self, key):
        os.write(self._terminal, key.encode())

    def end(self):
        """Waits for the program to end. Answers its status, and what it wrote after the screen was
        given back."""
        status = self.process.wait()
        while self._read(0.1):
            pass
        return status, self.text.rpartition("\x1b[?1049l")[2]


def table(frame, title):
    """{name: {TITLE: cell}} of the table whose first column is `title`."""
    rows, titles = {}, None
    for line in frame:
        cells = re.split(" {2,}", line)  # two blanks at least are between columns, one in a cell
        if cells[0] == title:
            titles = cells
        elif not line:
            titles = None
        elif titles and not line.startswith("..."):
            rows[cells[0]] = dict(zip(titles, cells))
    return rows


_FACTORS = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9}


def number(cell):
    """"12.3k" -> 12300.0; a duration in nanoseconds; "-" is 0."""
    digits, unit = re.fullmatch(r"([\d.]+|-)(\w*)", cell).groups()
    return 0.0 if digits == "-" else float(digits) * _FACTORS.get(unit, 1)
