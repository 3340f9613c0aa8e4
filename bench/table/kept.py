"""Frames that leave a contestant: its twin keeps them in a capture, which is compared."""

import dataclasses
import json
import struct

from tests.rig import pcap
from tests.rig.process import RigError, run, wait_for

from .lines import Side

HERE, THERE = "02:0a:00:00:00:00", "02:0b:00:00:00:00"  # the client's NIC, and whom it sends to
RATE = 20_000  # frames a second: a capture takes all of them
SECONDS = 0.3
STAMP = slice(42, 58)  # a frame's number and the time it was put up, eight bytes each


def sent(size):
    """The frames of `millrace-bench net --out`, less their stamp."""
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, size - 14, 0, 0, 64, 17, 0, bytes([10, 0, 0, 1]),
                     bytes([10, 0, 0, 2]))
    ip = ip[:10] + struct.pack(">H", pcap.checksum(ip)) + ip[12:]
    udp = struct.pack(">HHHH", 1024, 1025, size - 34, 0)
    pattern = bytes(7 * index & 0xFF for index in range(STAMP.stop, size))
    return pcap.mac(THERE) + pcap.mac(HERE) + b"\x08\x00" + ip + udp + pattern


def check(frames, size, name):
    """All of them as they were sent, none lost, none twice, in order; or a RigError."""
    expected = sent(size)
    for number, frame in enumerate(frames):
        if frame[:STAMP.start] + frame[STAMP.stop:] != expected:
            raise RigError(f"{name}: frame {number} left it otherwise than it was sent")
        found = struct.unpack_from("<Q", frame, STAMP.start)[0]
        if found != number:
            raise RigError(f"{name}: frame {found} left it where frame {number} was due")


@dataclasses.dataclass
class OutSide(Side):
    """The words send frames of `size` out of a contestant whose device forgets them. `keeper` makes
    one of the same kind, given another device in DPDK's words: one that keeps them."""

    size: int = 64
    keeper: object = None

    def verify(self, bench):
        path = bench.work / "kept.pcap"

        def kept():
            return [frame for frame in pcap.read(path) if frame[6:12] == pcap.mac(HERE)]
        self.contestant.pause()  # the twin has its core
        with self.keeper(f"net_pcap0,tx_pcap={path}") as twin:
            command = Side(twin, []).command(bench, [*self.words, "--rate", RATE], SECONDS)
            taken = json.loads(run(command, timeout=60).stdout)["all_operations"]
            wait_for(f"{taken} frames that left {self.name}", lambda: len(kept()) >= taken, 10)
        frames = kept()
        check(frames, self.size, self.name)
        self.contestant.resume()
        return f"{len(frames)} frames"
