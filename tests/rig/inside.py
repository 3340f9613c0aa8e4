"""Runs a program where KVM is real: here, or else in the virtual host."""

import contextlib
import os
import shlex
import subprocess
import sys
import time

from . import assets, case, process, settings
from .process import RigError, Workspace
from .virtual_host import VirtualHost

SKIPPED = 77  # as meson reads it
# Seconds. A test says something when it ends; none takes half of this, and its waits are shorter.
SILENCE = 300
STARTS = 4  # of the virtual host, for one program


def main(flavours=("cloud",), cpus=2, memory_mb=4096, timeout=1500, always=False, devices=(),
         append=""):
    """In place of case.main(): inside, the same file runs on the same sources and the same build.
    `flavours` are the kernels that its guests boot, made ready here, where it lasts; without the
    first of them nothing is run. `always`, `devices`, `append`: see run()."""
    run(case.main, flavours, cpus, memory_mb, timeout, _notes(), always, devices, append)


def run(body, flavours, cpus=2, memory_mb=4096, timeout=1500, shares=(), always=False, devices=(),
        append=""):
    """Calls `body` where KVM runs stock kernels. Else runs this program once more, with the same
    arguments, in the virtual host, which may write the folders `shares`, and ends with its
    status. `always`: in the virtual host also where KVM is real here, for tests that change the
    machine. `devices` are QEMU's arguments for more than the usual ones, `append` is for its
    kernel's command line; who gives some of either is always in it."""
    always = always or bool(devices) or bool(append)
    if settings.kvm()[0] and not always or os.environ.get("MILLRACE_VIRTUAL_HOST"):
        body()
        return
    process.install_signal_handlers()
    if not always:
        print(f"here: {settings.kvm()[1]}; so in the virtual host", flush=True)
    deadline = time.monotonic() + timeout
    once = (flavours, cpus, memory_mb, deadline, shares, devices, append)
    with contextlib.suppress(FileNotFoundError):
        os.remove(case.progress_file())
    status = _run_once(*once)
    for _ in range(STARTS - 1):
        if status is not None or time.monotonic() > deadline:
            break
        # An emulator that emulates an emulator's guests stands still, or dies, now and then. What
        # passed until then did pass.
        print("the virtual host stood still, or its kernel died: once more", flush=True)
        os.environ["MILLRACE_RESUME"] = "1"
        status = _run_once(*once)
    if status is None:
        print(f"not done: {timeout} s are over, or {SILENCE} s without a word, or the virtual host "
              f"died {STARTS} times", file=sys.stderr)
    sys.exit(1 if status is None else status)


def _run_once(flavours, cpus, memory_mb, deadline, shares, devices, append):
    """Answers the status; None where none came by the deadline, or nothing for long, or the
    emulated machine itself came to its end."""
    with Workspace("inside") as work, contextlib.ExitStack() as stack:
        try:
            _prepare(flavours)
            host = VirtualHost(work, cpus=cpus, memory_mb=memory_mb, shares=shares,
                               append=append)
            host.add(*devices)
        except (RigError, OSError, subprocess.SubprocessError) as error:
            print(f"skipped: the virtual host cannot be made here: {error}")
            sys.exit(SKIPPED)
        stack.callback(host.kill)
        try:
            host.start()
        except RigError as error:
            print(error, file=sys.stderr)
            return None
        print(f"the virtual host is up after {host.seconds_to_boot:.1f} s", flush=True)
        script = shlex.join(["python3", os.path.realpath(sys.argv[0]), *sys.argv[1:]])
        try:
            status = host.relay(script, deadline, silence=SILENCE)
        except RigError as error:
            print(error, file=sys.stderr)
            return None
        if status != 0:
            print(f"the virtual host's console:\n{host.console()[-4000:]}", file=sys.stderr)
        return status


def _prepare(flavours):
    for number, flavour in enumerate(flavours):
        try:
            assets.initramfs(flavour)
            assets.unpacked_kernel(flavour)
        except RigError as error:
            if number == 0:
                raise
            print(f"no kernel {flavour}: {str(error).splitlines()[0]}", flush=True)


def _notes():
    """Where the tests note what passed: the specification's check reads it afterwards."""
    folder = os.path.join(settings.build_folder(), "meson-logs")
    return [folder] if os.path.isdir(folder) else []
