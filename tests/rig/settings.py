"""What the environment chooses: which daemon, which QEMU, which cores."""

import functools
import os
import shutil
import subprocess

from . import assets
from .process import RigError

SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def build_folder():
    """MILLRACE_BUILD, or build/ beside the sources."""
    return os.environ.get("MILLRACE_BUILD") or os.path.join(SOURCE, "build")


def program(name):
    path = os.path.join(build_folder(), name)
    if not os.access(path, os.X_OK):
        raise RigError(f"{path} is not built")
    return path


@functools.lru_cache(maxsize=None)
def qemu(choice=None):
    """The QEMU to use: a path, or "10" for Debian 13's. Default: MILLRACE_QEMU, else PATH's."""
    choice = choice or os.environ.get("MILLRACE_QEMU") or "qemu-system-x86_64"
    if choice == "10":
        return assets.qemu10()
    found = shutil.which(choice)
    if not found:
        raise RigError(f"no QEMU at {choice}")
    return found


@functools.lru_cache(maxsize=None)
def qemu_version(path):
    text = subprocess.run([path, "--version"], text=True, check=True,
                          stdout=subprocess.PIPE).stdout
    return tuple(int(part) for part in text.split()[3].split("(")[0].split(".")[:2])


@functools.lru_cache(maxsize=None)
def kvm():
    """Whether /dev/kvm can run a stock kernel, and a sentence that says why. Some machines offer
    a /dev/kvm with neither VMX nor SVM behind it; no kernel boots on that one."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False, "no usable /dev/kvm"
    with open("/proc/cpuinfo") as file:
        flags = next((line.split() for line in file if line.startswith("flags")), [])
    if "vmx" not in flags and "svm" not in flags:
        return False, "/dev/kvm is there, but the processor has neither VMX nor SVM"
    return True, "/dev/kvm with hardware virtualization"


def accelerator():
    """QEMU's -accel argument: MILLRACE_ACCEL, or what was found to work."""
    return os.environ.get("MILLRACE_ACCEL") or ("kvm" if kvm()[0] else "tcg")


def sanitized():
    """Whether the daemon under test is a sanitizer build: slower, and its figures mean nothing."""
    return "asan" in os.path.basename(build_folder()) or bool(os.environ.get("MILLRACE_ASAN"))
