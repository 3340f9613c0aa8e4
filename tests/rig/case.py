"""The base of system tests: a workspace for each test, what failed shown with the logs."""

import glob
import os
import re
import sys
import time
import traceback
import unittest

from . import process, settings
from .process import RigError, Workspace, tail


# What of a guest's end an emulated processor explains as well as anything, where a line shows it.
_EMULATED_ENDS = (
    ("log", "shut down by a triple fault", "shut down (triple fault)"),
    ("log", "KVM cannot go on (internal error", "was given up by KVM"),
    ("log", "the processor refuses the guest's state", "was refused by KVM"),
    ("console", "soft lockup - CPU", "stood still (soft lockup)"),
    ("console", "Kernel panic - not syncing", "panicked"),
)


class SystemTest(unittest.TestCase):
    """A test with a folder of its own (`self.work`) and `self.use()` for context managers."""

    def run(self, result=None):
        if result is None or _name(self) not in _passed_before():
            return super().run(result)
        result.startTest(self)
        result.stream.write("before the virtual host came to its end: ")
        result.addSuccess(self)
        result.stopTest(self)
        return result

    def setUp(self):
        self.work, self.begun = Workspace(self._testMethodName[5:17]), process.boot_seconds()
        self.addCleanup(self.work.remove)
        self.addCleanup(self._show_logs)

    def use(self, thing):
        """Enters a context manager for the rest of the test."""
        return self.enterContext(thing)

    def _callTestMethod(self, method):
        """In the virtual host a guest's processors are emulated twice over, and about one guest in
        a hundred stands still or shuts down by itself, at any point of its life. A test that saw
        that runs once more, twice at most, and says so; wrong data is no such thing."""
        for _ in range(2):
            try:
                return super()._callTestMethod(method)
            except Exception as error:  # whatever the test made of its guest's end
                seen = os.environ.get("MILLRACE_VIRTUAL_HOST") and self._emulation_failed(error)
                if not seen:
                    raise
                self._print_logs(25)
            self.report(f"{seen}: once more")
            self.doCleanups()
            self.setUp()
        return super()._callTestMethod(method)

    def _emulation_failed(self, error):
        """What is seen of it. A test that asks for it itself just fails again."""
        for suffix, line, what in _EMULATED_ENDS:
            for path in glob.glob(f"{self.work.path}/*.{suffix}"):
                if line in tail(path, 1000):
                    return f"a guest's emulated processor {what}"
        if re.match(r"hung up: .* ended with status [34];", str(error)):
            return "a guest restarted or panicked"
        if isinstance(error, RigError) and "waited in vain for the" in str(error):
            return f"a guest does not answer ({str(error).splitlines()[0]})"
        return None

    def _show_logs(self):
        result = self._outcome.result
        if any(test is self for test, _ in result.errors + result.failures):
            self._print_logs(40)
            said = process.kernel_complaints(self.begun)
            if said:
                print(f"--- what this machine's kernel ended\n{said}", file=sys.stderr)

    def _print_logs(self, lines):
        path = self.work.path
        for log in sorted(glob.glob(f"{path}/*.log") + glob.glob(f"{path}/*.console")):
            print(f"--- {os.path.basename(log)}\n{tail(log, lines)}", file=sys.stderr)

    def report(self, text):
        """A figure worth reading in the log."""
        print(f"    {self.id().split('.')[-1]}: {text}", flush=True)


LONG = "with ./check --full: "


def long(why):
    """For a test that takes long beside what it adds to the others, which `why` says: it runs with
    ./check --full, or when somebody names tests."""
    wanted = os.environ.get("MILLRACE_FULL") or len(sys.argv) > 1
    return unittest.skipUnless(wanted, LONG + why)


def main():
    """Runs this file's tests: the lines of unittest, one per test; status 77 (a skip, for meson)
    where every test was skipped."""
    process.install_signal_handlers()
    sys.stdout.reconfigure(line_buffering=True)
    program = unittest.main(module="__main__", exit=False,
                            testRunner=unittest.TextTestRunner(verbosity=2, resultclass=_Result))
    result = program.result
    _note_what_passed(result)
    if not result.wasSuccessful():
        sys.exit(1)
    if result.testsRun and len(result.skipped) == result.testsRun:
        sys.exit(77)


class _Result(unittest.TextTestResult):
    """Remembers what passed, and what was left to the full check, so that a later step can tell
    what ran, and that a virtual host that is started once more need not run it again."""

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.passed, self.left, self.begun = [], [], 0.0

    def _exc_info_to_string(self, err, test):
        """What went wrong first, the places in the test after it, all that is known at last: who
        reads a part of a log reads its first lines."""
        kind, error, trace = err
        own = os.path.realpath(sys.argv[0])
        said = str(error) or "(without a word)"
        places = [f"  at {os.path.basename(each.filename)}:{each.lineno}: {each.line}"
                  for each in traceback.extract_tb(trace) if os.path.realpath(each.filename) == own]
        brief = "\n".join(line[:300] for line in said.splitlines()[:6])
        lines = [f"{kind.__name__}: {brief}", *places]
        if brief != said:
            lines += ["in full:", said]
        if not isinstance(error, (RigError, AssertionError)):
            lines += traceback.format_tb(trace)
        return "\n".join([*lines, ""])

    def startTest(self, test):
        super().startTest(test)
        self.begun = time.monotonic()

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        if reason.startswith(LONG):
            self.left.append(_name(test))

    def addSuccess(self, test):
        self.stream.write(f"{time.monotonic() - self.begun:.1f} s ")
        super().addSuccess(test)
        self.passed.append(_name(test))
        if os.environ.get("MILLRACE_VIRTUAL_HOST") and os.path.isdir(_notes_folder()):
            with open(progress_file(), "a") as file:
                file.write(f"{_name(test)}\n")


def _name(test):
    return test.id().replace("__main__.", "")


def _notes_folder():
    return os.path.join(settings.build_folder(), "meson-logs")


def progress_file():
    """What of this program passed so far, a line each."""
    stem = os.path.splitext(os.path.basename(sys.argv[0]))[0]
    return os.path.join(_notes_folder(), f"progress-{stem}.txt")


def _passed_before():
    """What passed in a virtual host that did not come to the end of this program."""
    try:
        with open(progress_file()) as file:
            return set(file.read().split()) if os.environ.get("MILLRACE_RESUME") else set()
    except FileNotFoundError:
        return set()


def _note_what_passed(result):
    stem = os.path.splitext(os.path.basename(sys.argv[0]))[0]
    folder = _notes_folder()
    suffix = "-" + os.path.basename(settings.qemu()) if os.environ.get("MILLRACE_QEMU") else ""
    if os.path.isdir(folder):
        for what, names in (("ran", result.passed), ("left", result.left)):
            with open(os.path.join(folder, f"{what}-{stem}{suffix}.txt"), "w") as file:
                file.writelines(f"{stem}.{name}\n" for name in names)


__all__ = ["SystemTest", "RigError", "long", "main"]
