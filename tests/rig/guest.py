"""A stock Debian kernel in QEMU, and a shell in it that a test can talk to."""

import os

from . import assets, settings
from .qemu import Qemu
from .shell import GuestShell


class Guest(GuestShell, Qemu):
    """A guest that answers commands: start(), run(), reboot(), stop()."""

    def __init__(self, work, name="guest", memory_mb=256, cpus=1, flavour=None, append="", **more):
        super().__init__(work, name, memory_mb, cpus, **more)
        flavour = flavour or os.environ.get("MILLRACE_KERNEL") or "cloud"
        self.kernel = assets.kernel(flavour)[2]
        self.add("-kernel", assets.unpacked_kernel(flavour), "-initrd", assets.initramfs(flavour),
                 "-append", "console=ttyS0 panic=-1 loglevel=4 random.trust_cpu=on "
                 f"mitigations=off tsc=unstable {append}".strip(),
                 "-cpu", "host" if settings.accelerator() == "kvm" else "max",
                 "-serial", f"file:{self.path('console')}",
                 "-chardev", f"socket,id=agent,path={self.path('agent')},server=on,wait=off",
                 "-serial", "chardev:agent",
                 "-object", "rng-random,id=rng,filename=/dev/urandom",
                 "-device", "virtio-rng-pci,rng=rng")

    def start(self, timeout=120, wait=True):
        super().start()
        self._connect(self.path("agent"))
        return self.wait_ready(timeout) if wait else self

    def stop(self, timeout=60):
        """Powers the guest off and waits for QEMU to end."""
        self.send("sync; poweroff -f")
        try:
            self.process.wait(timeout)
        finally:
            self.kill()

    def kill(self):
        self._hang_up()
        super().kill()
