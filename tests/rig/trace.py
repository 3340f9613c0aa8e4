"""The kernel's own tracing: when events happened, on the clock that time.monotonic() reads."""

import os
import re

from .process import RigError, run

_FOLDER = "/sys/kernel/tracing"


class Trace:
    """A context manager; events are kept from its beginning to its end. Each is a name such as
    "kvm/kvm_page_fault" and a filter, or None. Root's, and one at a time on a machine: it uses an
    instance of its own."""

    def __init__(self, *events, buffer_kb=16384):
        self.wanted, self.buffer_kb = events, buffer_kb
        self.folder = os.path.join(_FOLDER, "instances", f"millrace-{os.getpid()}")

    def __enter__(self):
        if not os.path.exists(os.path.join(_FOLDER, "instances")):
            run(["mount", "-t", "tracefs", "tracefs", _FOLDER])
        os.mkdir(self.folder)
        try:
            self._write("trace_clock", "mono")
            self._write("buffer_size_kb", str(self.buffer_kb))
            for name, condition in self.wanted:
                if condition:
                    self._write(f"events/{name}/filter", condition)
                self._write(f"events/{name}/enable", "1")
            self._write("tracing_on", "1")
        except OSError as error:
            self.__exit__()
            raise RigError(f"this kernel does not trace {self.wanted}: {error}") from None
        return self

    def __exit__(self, *_):
        os.rmdir(self.folder)

    def _write(self, name, text):
        with open(os.path.join(self.folder, name), "w") as file:
            file.write(text)

    def events(self):
        """(seconds, event, text) of each so far."""
        with open(os.path.join(self.folder, "trace"), errors="replace") as file:
            for line in file:
                found = re.match(r"\s*.+-\d+\s+\[\d+\]\s+\S+\s+(\d+\.\d+): (\w+): (.*)", line)
                if found:
                    yield float(found.group(1)), found.group(2), found.group(3)
