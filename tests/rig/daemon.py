"""The daemon under test, its configuration and its control program."""

import json
import os
import signal
import subprocess

from . import settings
from .process import Child, RigError, run, tail, wait_for
from .qmp import Qmp


def toml(value):
    """A value as TOML text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return json.dumps(value) if isinstance(value, str) else str(value)


class Daemon:
    """millraced with a configuration of ports, disks and uplinks. A context manager: on the way
    out SIGTERM must end it with status 0."""

    def __init__(self, work, name="mill", cores=None, mode=None, **reactors):
        self.work, self.name = work, name
        self.tables, self.process, self.stopped = [], None, False
        self.control = self.socket("ctl")
        self.reactors, self.memory = dict(reactors), {}
        if cores is not None:
            self.reactors["cores"] = cores
        if mode:
            self.reactors["mode"] = mode

    def __enter__(self):
        return self.start() if self.process is None else self

    def __exit__(self, kind, *_):
        if kind is None and not self.stopped:
            self.stop()
        elif self.process:
            self.process.kill()

    def path(self, suffix):
        return os.path.join(self.work.path, f"{self.name}.{suffix}")

    def socket(self, name):
        return os.path.join(self.work.path, f"{self.name}-{name}.sock")

    def port(self, name, **keys):
        return self._table("port", {"name": name, "socket": self.socket(name), **keys})

    def disk(self, name, **keys):
        return self._table("disk", {"name": name, "socket": self.socket(name), **keys})

    def companion(self, kind, name, **keys):
        """An entropy device ("rng"), a "console", a "balloon" or a "mem"."""
        return self._table(kind, {"name": name, "socket": self.socket(name), **keys})

    def uplink(self, name, device=None, **keys):
        """With a device of DPDK's, or with pci="0000:01:00.0"."""
        return self._table("uplink", {"name": name, **({"device": device} if device else {}),
                                      **keys})

    def mirror(self, name, **keys):
        return self._table("mirror", {"name": name, **keys})

    def image(self, name, size_mb):
        """A fresh image file of that size. Answers its path."""
        path = os.path.join(self.work.path, f"{name}.img")
        with open(path, "wb") as file:
            file.truncate(size_mb << 20)
        return path

    def _table(self, kind, keys):
        self.tables.append((kind, keys))
        return keys.get("socket") or keys["name"]

    def text(self):
        lines = ["[control]", f"socket = {toml(self.control)}"]
        for title, keys in (("reactors", self.reactors), ("memory", self.memory)):
            if keys:
                lines += [f"[{title}]"] + [f"{k} = {toml(v)}" for k, v in keys.items()]
        for kind, keys in self.tables:
            lines += [f"[[{kind}]]"] + [f"{k} = {toml(v)}" for k, v in keys.items()]
        return "\n".join(lines) + "\n"

    def start(self, timeout=60, config=None):
        """Starts it; answers when it serves all that its configuration has."""
        path = config or self.path("toml")
        if config is None:
            with open(path, "w") as file:
                file.write(self.text())
        self.stopped = False
        self.process = Child([settings.program("millraced"), "--config", path], self.path("log"),
                             name="millraced", env=self._environment())
        wait_for("the control socket", self._answers, timeout)
        if config is None:
            wait_for("all sockets", self._serves, timeout)
        return self

    def _environment(self):
        found = os.environ.get("ASAN_OPTIONS", "")
        return {"ASAN_OPTIONS": f"{found}:detect_leaks=1:abort_on_error=0:exitcode=99",
                "UBSAN_OPTIONS": "print_stacktrace=1"}

    def _answers(self):
        self.process.expect_running()
        try:
            self.qmp(timeout=1).close()
            return True
        except (OSError, RigError):
            return False

    def _serves(self):
        self.process.expect_running()
        with self.qmp(timeout=5) as qmp:
            found = {"port": qmp("query-ports"), "disk": qmp("query-disks")}
        wanted = {kind: sum(each == kind for each, _ in self.tables) for kind in found}
        return all(len(found[kind]) == wanted[kind] and
                   all(unit["state"] != "starting" for unit in found[kind]) for kind in found)

    def stop(self, timeout=30):
        """SIGTERM; the daemon must drain and exit 0."""
        self.stopped = True
        self.process.signal(signal.SIGTERM)
        status = self.process.wait(timeout)
        self.process.kill()
        if status:
            raise RigError(f"millraced ended with status {status}:\n{tail(self.path('log'), 60)}")

    def kill9(self):
        self.process.signal(signal.SIGKILL)
        self.process.wait()
        self.process.kill()

    def qmp(self, timeout=30):
        return Qmp(self.control, timeout)

    def ask(self, command, **arguments):
        with self.qmp() as qmp:
            return qmp(command, **arguments)

    def millctl(self, *words, check=True, timeout=30):
        """Runs millctl. Answers its CompletedProcess."""
        return run([settings.program("millctl"), "--socket", self.control, *words],
                   timeout=timeout, check=check)

    def millctl_json(self, *words):
        done = subprocess.run(
            [settings.program("millctl"), "--socket", self.control, "--json", *words],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30)
        if done.returncode:
            raise RigError(f"millctl {' '.join(words)}: {done.returncode}: {done.stderr}")
        return json.loads(done.stdout)

    def log(self, lines=60):
        return tail(self.path("log"), lines)
