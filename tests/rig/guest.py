"""A stock Debian kernel in QEMU, and a shell in it that a test can talk to."""

import base64
import os
import socket
import time

from . import assets, settings
from .process import RigError, tail
from .qemu import Qemu


class GuestError(Exception):
    pass


class Guest(Qemu):
    """A guest that answers commands: start(), run(), reboot(), stop()."""

    def __init__(self, work, name="guest", memory_mb=256, cpus=1, flavour=None, append="", **more):
        super().__init__(work, name, memory_mb, cpus, **more)
        flavour = flavour or os.environ.get("MILLRACE_KERNEL") or "cloud"
        vmlinuz, _, self.kernel = assets.kernel(flavour)
        self.boot_id, self.seconds_to_boot = None, 0.0
        self._agent, self._buffer = None, b""
        self.add("-kernel", vmlinuz, "-initrd", assets.initramfs(flavour),
                 "-append", "console=ttyS0 panic=-1 loglevel=4 random.trust_cpu=on "
                 f"mitigations=off tsc=unstable {append}".strip(),
                 "-cpu", "host" if settings.accelerator() == "kvm" else "max",
                 "-serial", f"file:{self.path('console')}",
                 "-chardev", f"socket,id=agent,path={self.path('agent')},server=on,wait=off",
                 "-serial", "chardev:agent",
                 "-object", "rng-random,id=rng,filename=/dev/urandom",
                 "-device", "virtio-rng-pci,rng=rng")

    def start(self, timeout=180, wait=True):
        super().start()
        self._connect()
        return self.wait_ready(timeout) if wait else self

    def _connect(self):
        self._agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._agent.connect(self.path("agent"))

    def wait_ready(self, timeout=180):
        """Waits until a (new) boot has reached its shell."""
        begun = time.monotonic()
        while True:
            line = self._line(begun + timeout, "the guest's first program")
            if line.startswith("=READY "):
                boot_id = line.split()[1]
                if boot_id != self.boot_id:
                    self.boot_id = boot_id
                    self.seconds_to_boot = time.monotonic() - begun
                    return self

    def _line(self, deadline, what):
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise RigError(f"{self.name}: waited in vain for {what}\nconsole:\n"
                               f"{tail(self.path('console'))}\nQEMU:\n{self.log()}")
            self.process.expect_running()
            self._agent.settimeout(min(left, 1))
            try:
                data = self._agent.recv(65536)
            except TimeoutError:
                continue
            if not data:
                raise RigError(f"{self.name}: the agent's line was cut, status "
                               f"{self.process.process.poll()}\n{self.log()}")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode(errors="replace").strip()

    def send(self, script):
        """Starts a script; answer() collects what it says."""
        self._agent.settimeout(30)
        self._agent.sendall(base64.b64encode(script.encode()) + b"\n")

    def answer(self, script="", timeout=60):
        deadline, lines = time.monotonic() + timeout, None
        while True:
            line = self._line(deadline, f"the end of: {script}")
            if line == "=BEGIN":
                lines = []
            elif line.startswith("=END ") and lines is not None:
                output = base64.b64decode("".join(lines)).decode(errors="replace")
                return int(line.split()[1]), output.strip()
            elif lines is not None:
                lines.append(line)

    def run(self, script, timeout=60):
        """Runs a shell script in the guest. Answers (status, output)."""
        self.send(script)
        return self.answer(script, timeout)

    def must(self, script, timeout=60):
        """Runs a script that has to end with status 0. Answers its output."""
        status, output = self.run(script, timeout)
        if status:
            raise GuestError(f"{self.name}: `{script}` ended with {status}:\n{output}")
        return output

    def console(self):
        with open(self.path("console"), errors="replace") as file:
            return file.read()

    def reboot(self, timeout=180):
        """The guest's own, orderly reboot."""
        self.send("sync; reboot -f")
        return self.wait_ready(timeout)

    def stop(self, timeout=60):
        """Powers the guest off and waits for QEMU to end."""
        self.send("sync; poweroff -f")
        try:
            self.process.wait(timeout)
        finally:
            self.kill()

    def kill(self):
        if self._agent:
            self._agent.close()
            self._agent = None
        super().kill()

    # what the tests ask most

    def interface(self, mac):
        """The name of the interface with that address."""
        return self.must(f"cd /sys/class/net && grep -l {mac} */address | cut -d/ -f1 | head -1")

    def disk(self, number=0):
        """The name of the n-th virtio disk: vda, vdb..."""
        return f"vd{chr(ord('a') + number)}"
