"""The machine and the programs that figures were taken with."""

import json
import os
import platform
import re
import subprocess

from tests.rig import settings

PEERS = {"openvswitch-switch-dpdk": "openvswitch-switch-dpdk", "dpdk": "dpdk",
         "qemu-storage-daemon": "qemu-system-common", "qemu-system-x86": "qemu-system-x86"}
FLAGS = ("sse4_2", "avx2", "avx512f", "avx512vl", "erms", "fsrm", "constant_tsc", "hypervisor")
OPTIONS = ("buildtype", "optimization", "b_lto", "b_ndebug", "sanitize", "cpp_args")


def stolen():
    """Seconds that the hypervisor kept this machine's processors from us, so far."""
    with open("/proc/stat") as file:
        return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")


def processor():
    with open("/proc/cpuinfo") as file:
        text = file.read()
    model = re.search(r"model name\s*: (.*)", text)
    flags = re.search(r"^flags\s*: (.*)", text, re.M)
    there = set(flags.group(1).split()) if flags else set()
    return {"model": model.group(1) if model else platform.machine(), "cores": os.cpu_count(),
            "flags": [flag for flag in FLAGS if flag in there]}


def _said(*command):
    try:
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def versions():
    found = {"millraced": _said(settings.program("millraced"), "--version")}
    for name, package in PEERS.items():
        found[name] = _said("dpkg-query", "-W", "-f", "${Version}", package) or "not installed"
    return found


def build():
    """How our programs were built, as Meson tells."""
    try:
        with open(os.path.join(settings.build_folder(), "meson-info",
                               "intro-buildoptions.json")) as file:
            return {each["name"]: each["value"] for each in json.load(file)
                    if each["name"] in OPTIONS}
    except (OSError, ValueError):
        return {}


def described():
    return {"machine": {"processor": processor(), "kernel": platform.release()},
            "versions": versions(), "build": build()}
