"""A foreign client: Linux's own virtio driver, in guests of QEMU's."""

import dataclasses
import math
import os
import shutil

from tests.rig import assets, settings
from tests.rig.guest import Guest
from tests.rig.process import RigError

from .lines import PERCENTILES

PACKAGES = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "cpio": "cpio",
            "depmod": "kmod", "iperf3": "iperf3", "ethtool": "ethtool", "mkfs.ext4": "e2fsprogs",
            "ip": "iproute2"}
PINGS = 1000  # of a run of one second
PAYLOAD = 1 << 20  # bytes of the verified twin


def need_guests():
    for program, package in PACKAGES.items():
        if not shutil.which(program):
            raise RigError(f"there is no {program}: apt-get install {package}")


class GuestPair:
    """Two guests, each with a NIC at port "a" or "b" of every contestant, so that the same two
    drive them all. The contestants have to run meanwhile: a NIC is there once its back-end is."""

    def __init__(self, work, contestants):
        need_guests()
        self.contestants = contestants
        self.guests = [Guest(work, f"guest-{port}") for port in ("a", "b")]
        for end, (guest, port) in enumerate(zip(self.guests, ("a", "b"))):
            for number, contestant in enumerate(contestants):
                guest.net(contestant.socket(port), self.mac(number, end),
                          server="--listen" in contestant.options)

    def __enter__(self):
        try:
            for guest in self.guests:
                guest.start(wait=False)
            for end, guest in enumerate(self.guests):
                guest.wait_ready()
                guest.must("".join(self._up(number, end)
                                   for number in range(len(self.contestants))))
            self.guests[1].must(f"head -c {PAYLOAD} /dev/urandom >/tmp/payload; httpd -h /tmp")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for guest in self.guests:
            guest.kill()

    @staticmethod
    def mac(number, end):
        return f"52:54:00:00:{number:02x}:{end + 1:02x}"

    @staticmethod
    def address(number, end):
        return f"10.9.{number}.{end + 1}"

    def _up(self, number, end):
        name = f"$(grep -l {self.mac(number, end)} /sys/class/net/*/address | cut -d/ -f5)"
        return (f"nic={name}; ip address add {self.address(number, end)}/24 dev $nic && "
                "ip link set $nic up || exit 1\n")

    def keep_to(self, core):
        """Both guests on one core from now on: the back-end's is the back-end's alone. Of two that
        wait for each other one runs at a time."""
        for guest in self.guests:
            for thread in os.listdir(f"/proc/{guest.process.pid}/task"):
                os.sched_setaffinity(int(thread), {core})

    def note(self):
        how = settings.accelerator()
        version = ".".join(map(str, self.guests[0].version))
        emulated = ": most of it is the emulated guests' own time" if how == "tcg" else ""
        return f"Linux {self.guests[0].kernel} in QEMU {version}, {how}{emulated}"


@dataclasses.dataclass
class PingSide:
    """Round trips between a pair's guests through one contestant."""

    pair: GuestPair
    contestant: object

    @property
    def name(self):
        return self.contestant.name

    @property
    def _to(self):
        return self.pair.address(self.pair.contestants.index(self.contestant), 1)

    def once(self, bench):
        """So many round trips, each as soon as the one before it is back."""
        count = max(50, math.ceil(PINGS * bench.seconds))
        ping = f"ping -A -c {count} {self._to}"
        asked = ";".join(f"say({float(name[1:]) / 100})" for name in PERCENTILES)
        text = self.pair.guests[0].must(
            f"ping -c 2 -A {self._to} >/tmp/seen && {ping} >/tmp/seen || exit 1\n"
            "sed -n 's/.* time=\\([0-9.]*\\) ms$/\\1/p' /tmp/seen | sort -n | awk '"
            "function say(q, i) { i = int(q * NR); if (i < q * NR) i++; print v[i] } "
            f"{{ v[NR] = $1; sum += $1 }} END {{ print NR, sum; {asked} }}'", timeout=60)
        lines = text.splitlines()
        seen, milliseconds = int(lines[0].split()[0]), float(lines[0].split()[1])
        if seen != count:
            raise RigError(f"{self.name}: of {count} pings {seen} came back")
        latency = {name: 1000 * float(line) for name, line in zip(PERCENTILES, lines[1:])}
        command = " ".join(map(str, self.pair.guests[0].command()))
        return {"per_second": 1000 * seen / milliseconds, "all_operations": seen,
                "latency_us": latency, "command": f"{ping} (in a guest of {command})"}

    def verify(self, bench):
        """A file that one guest gets from the other: its every byte counts, and TCP's checksums
        are left to the devices."""
        there = self.pair.guests[1].must("sha256sum /tmp/payload").split()[0]
        here = self.pair.guests[0].must(
            f"wget -q -O /tmp/got http://{self._to}/payload; sha256sum /tmp/got").split()[0]
        if here != there:
            raise RigError(f"{self.name}: the file that went from guest to guest has changed")
        return f"{PAYLOAD} bytes through TCP"
