"""dpdk-testpmd as a guest's stand-in: DPDK's own virtio driver at native speed."""

import os
import pty
import re
import select
import termios
import time

from .process import Child, RigError

PROMPT = b"testpmd> "


class Testpmd:
    """One dpdk-testpmd with the given virtual devices, driven through its own prompt."""

    def __init__(self, work, name, vdevs, queues=1, memory_mb=192, options=()):
        self.work, self.name = work, name
        command = ["dpdk-testpmd", "--lcores", "0@(0-1),1@(0-1)" if os.cpu_count() > 1 else "0,1@0",
                   "--no-pci", f"--file-prefix={name}-{os.getpid()}", "--no-huge",
                   "-m", str(memory_mb), "--no-shconf", "--no-telemetry",
                   "--single-file-segments"]
        for vdev in vdevs:
            command += ["--vdev", vdev]
        command += ["--", "-i", "--no-mlockall", "--total-num-mbufs=24576", f"--rxq={queues}",
                    f"--txq={queues}", "--rxd=1024", "--txd=1024", "--nb-cores=1",
                    "--no-flush-rx", *options]
        self.command, self.process, self.text = command, None, b""

    def __enter__(self):
        return self.start() if self.process is None else self

    def __exit__(self, *_):
        self.kill()

    def start(self, timeout=60, wait=True):
        self._terminal, slave = pty.openpty()
        attributes = termios.tcgetattr(slave)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        self._log = os.path.join(self.work.path, f"{self.name}.log")
        self.process = Child(["/bin/sh", "-c", 'exec "$@" >/dev/fd/0 2>&1', "sh", *self.command],
                             self._log, name="dpdk-testpmd", stdin=slave)
        os.close(slave)
        try:
            return self.ready(timeout) if wait else self
        except Exception:
            self.kill()  # nobody has it yet who would
            raise

    def ready(self, timeout=60):
        self._until(PROMPT, timeout)
        return self

    def _until(self, mark, timeout):
        deadline = time.monotonic() + timeout
        while mark not in self.text:
            left = deadline - time.monotonic()
            if left <= 0:
                raise RigError(f"{self.name}: no prompt in {timeout} s:\n"
                               f"{self.text[-3000:].decode(errors='replace')}")
            if select.select([self._terminal], [], [], min(left, 0.5))[0]:
                try:
                    data = os.read(self._terminal, 65536)
                except OSError:
                    data = b""
                if not data:
                    raise RigError(f"{self.name} ended:\n"
                                   f"{self.text[-3000:].decode(errors='replace')}")
                self.text += data
                with open(self._log, "ab") as log:
                    log.write(data)
        before, self.text = self.text.split(mark, 1)
        return before.decode(errors="replace").replace("\r", "")

    def settle(self, silence=0.3):
        """Drops what it says unasked: what comes next is the answer to what is asked next."""
        while select.select([self._terminal], [], [], silence)[0]:
            os.read(self._terminal, 65536)
        self.text = b""

    def __call__(self, command, timeout=30):
        """Types a command at the prompt; answers what it printed."""
        os.write(self._terminal, command.encode() + b"\n")
        return self._until(PROMPT, timeout)

    def counts(self, port=0):
        """{'RX-packets': n, 'TX-packets': n, 'RX-bytes': ...} of one port."""
        text = self(f"show port stats {port}")
        return {key: int(value) for key, value in re.findall(r"([RT]X-\w+):\s*(\d+)", text)}

    def stop_and_quit(self):
        """Ends forwarding and the program, so that captures are complete."""
        self("stop")
        os.write(self._terminal, b"quit\n")
        try:
            deadline = time.monotonic() + 30
            while self.process.running() and time.monotonic() < deadline:
                if select.select([self._terminal], [], [], 0.1)[0]:
                    os.read(self._terminal, 65536)
        except OSError:
            pass
        status = self.process.wait()
        self.kill()
        if status:
            raise RigError(f"{self.name} ended with status {status}")

    def kill(self):
        if self.process:
            self.process.kill()
            self.process = None
            os.close(self._terminal)
