"""millrace-vmm with a stock kernel, and a shell in it that a test can talk to."""

import os

from . import assets, settings
from .process import Child, tail
from .shell import GuestShell


class Vmm(GuestShell):
    """One guest of millrace-vmm. Devices are added before start(), which boots it. A context
    manager."""

    def __init__(self, work, name="vm", memory_mb=256, cpus=1, flavour=None, append="", more=()):
        self.work, self.name = work, name
        flavour = flavour or os.environ.get("MILLRACE_KERNEL") or "cloud"
        self.kernel = assets.kernel(flavour)[2]
        self.process = None
        self.command = [
            settings.program("millrace-vmm"), "--kernel", assets.unpacked_kernel(flavour),
            "--initrd", assets.initramfs(flavour), "--memory", f"{memory_mb}M",
            "--cpus", str(cpus), "--console", self.path("console"),
            "--second-console", f"socket:{self.path('agent')}",
            "--cmdline", f"console=ttyS0 panic=-1 loglevel=4 mitigations=off {append}".strip(),
            *more]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def path(self, suffix):
        return os.path.join(str(self.work.path), f"{self.name}.{suffix}")

    def net(self, socket, mac=None):
        self.command += ["--net", f"socket={socket}" + (f",mac={mac}" if mac else "")]
        return self

    def blk(self, socket):
        self.command += ["--disk", f"socket={socket}"]
        return self

    def companion(self, option, socket, **keys):
        """`option`: rng, virtio-console, balloon or virtio-mem."""
        self.command += [f"--{option}",
                         ",".join([f"socket={socket}"] + [f"{k}={v}" for k, v in keys.items()])]
        return self

    def start(self, timeout=120, wait=True):
        self.process = Child(self.command, self.path("log"), name=f"millrace-vmm {self.name}")
        self._connect(self.path("agent"))
        return self.wait_ready(timeout) if wait else self

    def stop(self, timeout=180):
        """Powers the guest off. Answers the status that the program ended with."""
        self.send("sync; poweroff -f")
        try:
            return self.process.wait(timeout)
        finally:
            self.kill()

    def kill(self):
        self._hang_up()
        if self.process:
            self.process.kill()
            self.process = None

    def log(self):
        return tail(self.path("log"))
