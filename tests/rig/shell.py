"""A shell in a stock guest that a test can talk to, whatever runs the guest."""

import base64
import time

from .lines import Lines
from .process import tail


class GuestError(Exception):
    pass


class GuestShell:
    """What init.sh answers over a serial port that is a socket here. The class that runs the guest
    gives `name`, `process` (a Child), path() and log()."""

    boot_id, seconds_to_boot = None, 0.0
    _agent = None

    def _connect(self, path):
        self._agent = Lines(path, self.process, self._state)

    def _state(self):
        return f"console:\n{tail(self.path('console'))}\nlog:\n{self.log()}"

    def _hang_up(self):
        if self._agent:
            self._agent.close()
            self._agent = None

    def wait_ready(self, timeout=120):
        """Waits until a (new) boot has reached its shell."""
        begun = time.monotonic()
        while True:
            line = self._agent.next(begun + timeout, "the guest's first program")
            if line.startswith("=READY "):
                boot_id = line.split()[1]
                if boot_id != self.boot_id:
                    self.boot_id = boot_id
                    self.seconds_to_boot = time.monotonic() - begun
                    return self

    def send(self, script):
        """Starts a script; answer() collects what it says."""
        self._agent.send(base64.b64encode(script.encode()) + b"\n")

    def answer(self, script="", timeout=120):
        deadline, lines = time.monotonic() + timeout, None
        while True:
            line = self._agent.next(deadline, f"the end of: {script}")
            if line == "=BEGIN":
                lines = []
            elif line.startswith("=END ") and lines is not None:
                output = base64.b64decode("".join(lines)).decode(errors="replace")
                return int(line.split()[1]), output.strip()
            elif lines is not None:
                lines.append(line)

    def run(self, script, timeout=120):
        """Runs a shell script in the guest. Answers (status, output)."""
        self.send(script)
        return self.answer(script, timeout)

    def must(self, script, timeout=120):
        """Runs a script that has to end with status 0. Answers its output."""
        status, output = self.run(script, timeout)
        if status:
            raise GuestError(f"{self.name}: `{script}` ended with {status}:\n{output}")
        return output

    def kernel_log(self, pattern):
        """The lines of its kernel's log that match, as grep -E has it. The whole log takes a serial
        port of an emulated machine half a minute."""
        return self.must(f"dmesg | grep -E '{pattern}' || true")

    def console(self):
        with open(self.path("console"), errors="replace") as file:
            return file.read()

    def reboot(self, timeout=120):
        """The guest's own, orderly reboot."""
        self.send("sync; reboot -f")
        return self.wait_ready(timeout)

    def interface(self, mac):
        """The name of the interface with that address."""
        return self.must(f"cd /sys/class/net && grep -l {mac} */address | cut -d/ -f1 | head -1")

    def disk(self, number=0):
        """The name of the n-th virtio disk: vda, vdb..."""
        return f"vd{chr(ord('a') + number)}"
