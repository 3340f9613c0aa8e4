"""The virtual host: an emulated machine with real KVM, an IOMMU and a NIC with SR-IOV, in which
this machine's own files run. For hosts without them, which most test machines are.

QEMU emulates an AMD processor with SVM, so KVM in it is nested below an emulator: every feature is
there, and all is some ten times slower. Figures taken in it mean something as ratios only.

The machine's files are seen as they are, with everything that was built; writes go to memory and
are gone at the end, except in the folders that are shared on purpose. /run and /dev/shm are fresh.

Measured on two cores of 2.6 GHz with other work on them: 4 to 6 s from start to the first command
(10 s at first). A decompressed kernel saves 3.3 s of processor time, no self-tests of the kernel's
ciphers 0.8 s; TSC as the clock saves nothing here, but clocks are cheap and KVM's guests have a
stable one. The machine's files come over 9p with its cache: the first start of a program is slow
(Python with unittest 1.9 s), the next one (0.8 s) as fast as from a copy in memory, so nothing is
copied. A stock kernel under KVM in it reaches its init in 13 s (QEMU 7.2, cloud flavour).
"""

import contextlib
import math
import os
import re
import shlex
import sys
import time

from . import assets, settings, virtual_host_image
from .lines import Lines
from .process import Child, RigError, tail
from .qmp import Qmp

# nohz=off highres=off: a wake-up of a halted processor that the emulator loses (seen at its start,
# with nothing in it: "timer wakeup didn't happen") is made up for by the next periodic tick
# no_timer_check: on a busy machine the timer may be late once, and the kernel panics at that
# print-fatal-signals: its log says which program died of what; it has the audit lines of seccomp, too
APPEND = ("console=ttyS0 quiet panic=-1 intel_iommu=on iommu=pt mitigations=off nokaslr "
          "cryptomgr.notests tsc=reliable lpj=16000000 apparmor=0 random.trust_cpu=on "
          "no_timer_check print-fatal-signals=1 nohz=off highres=off")
# Where the console tells that the machine's own kernel is at its end.
DEATH = re.compile(r"BUG: |Oops|Kernel panic|general protection|invalid opcode|double fault|"
                   r"unable to handle|rcu.*stall|soft lockup|hard LOCKUP")
STANDS_STILL = 90  # seconds without a word of it that comes every two seconds
SILENT_AFTER_DEATH = 150  # seconds that a program may say nothing when its kernel told of its end
HIDDEN = ("/run/", "/dev/shm/")  # where the virtual host has a fresh file system
PASSED_ON = ("MILLRACE_", "PYTHON", "ASAN_", "UBSAN_")  # names of variables, their beginnings


class VirtualHost:
    """One boot, any number of commands. A context manager; nothing of it outlives us.

    `shares` are folders that the commands may write, at the same path inside and outside."""

    def __init__(self, work, name="host", cpus=2, memory_mb=4096, shares=(), append=""):
        self.work, self.name = work, name
        self.shares = [os.path.realpath(folder) for folder in shares]
        self.seconds_to_boot = 0.0
        self.process = self._agent = self._monitor = None
        self._number, self._heard = 0, 0.0
        self._job = self.path("job")
        os.makedirs(self._job, exist_ok=True)
        self._write_mounts()
        kernel, initramfs = virtual_host_image.image()
        self.command = [
            assets.qemu10(), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", "q35,accel=tcg,kernel-irqchip=off", "-cpu", "max,+svm,-la57",
            "-smp", str(cpus), "-m", f"{memory_mb}M",
            "-kernel", kernel, "-initrd", initramfs, "-append", f"{APPEND} {append}".strip(),
            # VFIO refuses an IOMMU that does not remap interrupts
            "-device", "intel-iommu,intremap=on,eim=off",
            "-device", "pcie-root-port,id=rp0,chassis=1,slot=1",
            "-netdev", "user,id=n0,restrict=on", "-device", "igb,id=igb0,netdev=n0,bus=rp0",
            "-serial", f"file:{self.path('console')}",
            "-chardev", f"socket,id=agent,path={self.path('agent')},server=on,wait=off",
            "-serial", "chardev:agent",
            "-qmp", f"unix:{self.path('qmp')},server=on,wait=off"]
        self._export("machine", "/", ",readonly=on,multidevs=remap")
        self._export("job", self._job)
        for number, folder in enumerate(self.shares):
            self._export(f"share{number}", folder, ",multidevs=remap")

    def __enter__(self):
        return self.start() if self.process is None else self

    def __exit__(self, *_):
        self.kill()

    def path(self, suffix):
        return os.path.join(str(self.work.path), f"{self.name}.{suffix}")

    def add(self, *arguments):
        """More arguments of QEMU's, before start()."""
        self.command += [str(argument) for argument in arguments]
        return self

    def _export(self, tag, folder, more=""):
        self.add("-fsdev", f"local,id={tag},path={folder},security_model=none{more}",
                 "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}")

    def _write_mounts(self):
        """What the init mounts besides the machine's files: a line each, "TAG PATH"."""
        seen = [settings.SOURCE, settings.build_folder(), assets.folder(), os.getcwd()]
        seen = sorted({os.path.realpath(folder) for folder in seen if os.path.isdir(folder)})
        lines = [f"keep {folder}" for folder in seen if (folder + "/").startswith(HIDDEN)]
        lines += [f"share{number} {folder}" for number, folder in enumerate(self.shares)]
        if any(" " in line.split(" ", 1)[1] or "," in line for line in lines):
            raise RigError("a folder for the virtual host has a blank or a comma in its name")
        with open(os.path.join(self._job, "mounts"), "w") as file:
            file.writelines(line + "\n" for line in lines)

    def start(self, timeout=180):
        """Boots; answers when commands can run."""
        begun = time.monotonic()
        self.process = Child(self.command, self.path("log"), name="QEMU of the virtual host")
        self._agent = Lines(self.path("agent"), self.process, self._state, timeout)
        while self._agent.next(begun + timeout, "its first program") != "=READY":
            pass
        self.seconds_to_boot = time.monotonic() - begun
        return self

    def kill(self):
        """Ends it now. What it wrote to shared folders is there; there is nothing else to keep."""
        for connection in (self._agent, self._monitor):
            if connection:
                connection.close()
        self._agent = self._monitor = None
        if self.process:
            self.process.kill()
            self.process = None

    @property
    def qmp(self):
        """QEMU's monitor of the emulated machine: faults, unplugged devices."""
        if self._monitor is None:
            self._monitor = Qmp(self.path("qmp"), process=self.process)
        return self._monitor

    def console(self):
        try:
            with open(self.path("console"), errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def death(self):
        """What the machine's own kernel said when it came to its end; nothing where it did not."""
        lines = self.console().splitlines()
        first = next((at for at, line in enumerate(lines) if DEATH.search(line)), None)
        return "" if first is None else "\n".join(lines[first:first + 60])

    def _state(self):
        return (f"death:\n{self.death()}\nconsole:\n{tail(self.path('console'))}\n"
                f"QEMU:\n{tail(self.path('log'))}")

    # commands

    def begin(self, script, folder=None, merged=True):
        """Starts a bash script in a folder (default: the source tree's). Answers the two paths
        that its standard output and its standard error appear under, as it writes them."""
        self._number += 1
        inside = f"/virtual-host/{self._number}"
        outside = os.path.join(self._job, str(self._number))
        lines = [f"exec >{inside}.out 2>{'&1' if merged else inside + '.err'}"]
        lines += [f"export {name}={shlex.quote(value)}" for name, value in os.environ.items()
                  if name.startswith(PASSED_ON)]
        lines += [f"export MILLRACE_CACHE={shlex.quote(assets.folder())} MILLRACE_VIRTUAL_HOST=1",
                  script, ""]
        with open(f"{outside}.sh", "w") as file:
            file.write("\n".join(lines))
        for suffix in ("out", "err"):
            open(f"{outside}.{suffix}", "w").close()
        folder = os.path.realpath(folder or settings.SOURCE)
        self._heard = time.monotonic()
        self._agent.send(f"{self._number} {folder}\n".encode())
        return f"{outside}.out", f"{outside}.err"

    def ended(self, wait=1.0):
        """The status of what begin() started, None while it runs. Waits a while for it."""
        deadline = time.monotonic() + wait
        while True:
            line = self._agent.next(deadline, None)
            if line is None:
                return None
            self._heard = time.monotonic()
            words = line.split()
            if words[:2] == ["=END", str(self._number)]:
                return int(words[2])

    def run(self, script, timeout=60, folder=None):
        """Runs a bash script. Answers (status, output)."""
        path, _ = self.begin(script, folder)
        deadline = time.monotonic() + timeout
        while True:
            status = self.ended(min(1.0, max(0.0, deadline - time.monotonic())))
            with open(path, errors="replace") as file:
                output = file.read().strip()
            if status is not None:
                return status, output
            if time.monotonic() > deadline:
                raise RigError(f"in the virtual host, after {timeout} s not at its end: {script}\n"
                               f"{output[-3000:]}\nconsole:\n{tail(self.path('console'))}")

    def relay(self, script, deadline, folder=None, silence=math.inf):
        """Runs a script whose output becomes ours while it runs. Answers its status, None where
        it is not done at the deadline (of time.monotonic()), or said nothing for `silence` s, or
        the machine stands still."""
        paths = self.begin(script, folder, merged=False)
        with contextlib.ExitStack() as stack:
            relayed = [(stack.enter_context(open(path, "rb")), stream)
                       for path, stream in zip(paths, (sys.stdout, sys.stderr))]
            heard = time.monotonic()
            while True:
                status = self.ended(min(0.1, max(0.0, deadline - time.monotonic())))
                for file, stream in relayed:
                    said = file.read()
                    heard = time.monotonic() if said else heard
                    stream.buffer.write(said)
                    stream.flush()
                now = time.monotonic()
                if status is not None or now > min(deadline, heard + silence):
                    return status
                if now > self._heard + STANDS_STILL:
                    return None
                if now > heard + SILENT_AFTER_DEATH and self.death():
                    return None

    def must(self, script, timeout=60, folder=None):
        """Runs a script that has to end with status 0. Answers its output."""
        status, output = self.run(script, timeout, folder)
        if status:
            raise RigError(f"in the virtual host `{script}` ended with {status}:\n{output}")
        return output
