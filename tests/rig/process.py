"""Child processes that never outlive us, and temporary folders that never stay behind."""

import atexit
import ctypes
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_children = []


class RigError(Exception):
    """Something that the rig needs did not happen; the text says what, and where to look."""


def _in_child():
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def wait_for(what, probe, timeout=90, step=0.02):
    """Calls `probe` until it answers something true, and answers that. The limit is for what never
    comes: an emulated machine with other work beside it takes many times as long as usual."""
    deadline = time.monotonic() + timeout
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise RigError(f"waited {timeout} s in vain for {what}")
        time.sleep(step)


def tail(path, lines=25):
    try:
        with open(path, errors="replace") as file:
            return "".join(file.readlines()[-lines:])
    except OSError as error:
        return str(error)


# What a kernel says of programs that it ended: seccomp's audit lines, signals, memory that ran out.
_ENDED_BY_THE_KERNEL = re.compile(
    r"type=1326|unexpected fatal signal|Out of memory|oom-kill|Killed process|segfault at|"
    r"general protection|traps: |kvm.*(unexpected|unhandled|error)")


def boot_seconds():
    """The time in a kernel's log, less what its clock may be behind this one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - 30


def kernel_complaints(since, lines=12):
    """The last lines of this machine's kernel about programs that it ended after `since`, if it
    tells us."""
    try:
        done = subprocess.run(["dmesg"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True, errors="replace", timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    found = []
    for line in done.stdout.splitlines():
        stamp = re.match(r"\[\s*(\d+\.\d+)\]", line)
        if stamp and float(stamp.group(1)) > since and _ENDED_BY_THE_KERNEL.search(line):
            found.append(line)
    return "\n".join(found[-lines:])


def status_text(status):
    """A status of subprocess's in words."""
    if status is None:
        return "is still running"
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


class Child:
    """One program in a process group of its own, its output in a file. Killed with us, whatever
    becomes of us. A context manager."""

    def __init__(self, command, log, name=None, env=None, stdin=subprocess.DEVNULL, **more):
        self.name = name or os.path.basename(command[0])
        self.command, self.log = [str(word) for word in command], log
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                self.command, stdin=stdin, stderr=out, env={**os.environ, **(env or {})},
                start_new_session=True, preexec_fn=_in_child, **{"stdout": out, **more})
        self.pid, self.begun = self.process.pid, boot_seconds()
        _children.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def running(self):
        return self.process.poll() is None

    def expect_running(self):
        if not self.running():
            raise RigError(self.obituary())
        return True

    def obituary(self, timeout=5):
        """How it ended, in the first line, and what it and the kernel said last. Its sockets are
        closed before its status is there, so a program that hung up is waited for."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            pass
        said = kernel_complaints(self.begun)
        return (f"{self.name} {status_text(self.process.poll())}; its log:\n{tail(self.log)}" +
                (f"\nthe kernel's log:\n{said}" if said else ""))

    def signal(self, number):
        if self.running():
            self.process.send_signal(number)

    def wait(self, timeout=120):
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise RigError(f"{self.name} did not end in {timeout} s:\n{tail(self.log)}") from None

    def kill(self):
        """Ends the program and what it started, now."""
        if self in _children:
            _children.remove(self)
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        self.process.wait()

    def cpu_seconds(self):
        """Processor time of the whole process so far."""
        with open(f"/proc/{self.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))


class Workspace:
    """A folder under /tmp, short enough for socket paths, gone at the end (kept where
    MILLRACE_KEEP is set)."""

    def __init__(self, name="t"):
        self.path = tempfile.mkdtemp(prefix=f"mill-{name}-", dir="/tmp")

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.remove()

    def remove(self):
        if os.environ.get("MILLRACE_KEEP"):
            print(f"kept: {self.path}", file=sys.stderr)
        else:
            shutil.rmtree(self.path, ignore_errors=True)

    def __truediv__(self, name):
        return os.path.join(self.path, name)


def run(command, timeout=120, check=True, **more):
    """Runs a program to its end and answers its CompletedProcess (text)."""
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout,
                          preexec_fn=_in_child, **more)
    if check and done.returncode:
        raise RigError(f"{' '.join(map(str, command))}: status {done.returncode}\n"
                       f"{done.stdout[-3000:]}")
    return done


def _end_children():
    for child in list(_children):
        child.kill()


def _on_signal(number, _frame):
    sys.exit(128 + number)  # unwinds every `with`, then the atexit hook


def install_signal_handlers():
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # our children open thousands
    atexit.register(_end_children)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _on_signal)
