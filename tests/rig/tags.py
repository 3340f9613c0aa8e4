"""Frames with and without 802.1Q tags on a NIC's wire: whole, as they were there, whoever of
hardware and kernel put the tags on and took them off."""

import contextlib
import os
import socket
import struct
import time

from . import pcap
from .process import RigError, wait_for

SOL_PACKET, PACKET_AUXDATA, PACKET_OUTGOING = 263, 8, 4  # linux/if_packet.h
TP_STATUS_VLAN_VALID, TP_STATUS_VLAN_TPID_VALID = 1 << 4, 1 << 6
MARK = b"\x88\xb5"  # the type of frames that nobody else sends (for experiments)


def tag(control, kind=0x8100):
    return struct.pack(">HH", kind, control)


def frame(to, source, number, size, tags=b""):
    """Of `size` bytes without its tags."""
    body = bytes((number * 13 + index) & 0xff for index in range(size - 18))
    return pcap.mac(to) + pcap.mac(source) + tags + MARK + struct.pack(">I", number) + body


class Wire:
    """What an interface of the host's has from and for its wire. A context manager."""

    def __init__(self, interface):
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self.socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self.socket.bind((interface, 0))
        self.socket.setblocking(False)
        self.seen = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.send(data)

    def collect(self, source):
        """Takes what has come; answers the frames of that station so far."""
        while True:
            try:
                data, extra, _, address = self.socket.recvmsg(16384, 128)
            except BlockingIOError:
                return self.seen
            if address[2] == PACKET_OUTGOING or data[6:12] != pcap.mac(source):
                continue
            for level, kind, more in extra:
                if (level, kind) != (SOL_PACKET, PACKET_AUXDATA):
                    continue
                status, _, _, _, _, control, protocol = struct.unpack("IIIHHHH", more[:20])
                if status & TP_STATUS_VLAN_VALID:
                    protocol = protocol if status & TP_STATUS_VLAN_TPID_VALID else 0x8100
                    data = data[:12] + tag(control, protocol) + data[12:]
            self.seen.append(data)


class Exchange:
    """Of a test with a daemon (`ask`) whose uplink "wire" is in VLANs 10 and 20; `peer` is the
    host's interface at the other end of its wire, `peer_mac` the address of that."""

    def exchange(self, station, service_tags=True):
        """Frames of every kind go out by the uplink, which is in VLANs 10 and 20, and come in by
        it: all are as they should be, to the byte. Behind the daemon are two files, one in VLAN 10
        and one that has tags, which come while it runs; `station` is the sender in them. Answers
        the uplink's offloads. `service_tags`: its driver tells those of 802.1ad from ours."""
        wire = self.use(Wire(self.peer))
        sizes = [60, 61, 64, 100, *range(122, 132), 511, 1000, 1513, 1514]
        kinds = [tag(10), tag(0xe00a), tag(0x1014), tag(10) + tag(30),
                 tag(20) + tag(7, 0x88a8)]

        def frames(to, source, kind, first):
            longest = 1518 if kind[:2] != b"\x88\xa8" else 1514  # to the kernel that is no tag
            return [frame(to, source, first + number, size, kind)
                    for number, size in enumerate(sizes) if size + len(kind) <= longest]
        plain = frames(self.peer_mac, station, b"", 1000)
        many = [each for number, kind in enumerate(kinds)
                for each in frames(self.peer_mac, station, kind, 2000 + 100 * number)]
        files = {}
        for name, content, keys in (("ten", plain, {"vlan": 10}),
                                    ("many", many, {"trunk": [10, 20]})):
            files[name] = str(self.work / f"{name}.{os.urandom(2).hex()}")
            pcap.write(f"{files[name]}.in", content)
            self.ask("uplink-add", name=name, device=f"net_pcap_{name},rx_pcap={files[name]}.in,"
                     f"tx_pcap={files[name]}.out", **keys)
        wanted = frames(self.peer_mac, station, kinds[0], 1000) + many
        with contextlib.suppress(RigError):  # which they are is said below
            wait_for("the frames on the wire", lambda: len(wire.collect(station)) >= len(wanted),
                     60)
        self.assertEqual(sorted(wire.collect(station)), sorted(wanted))
        uplink = next(each for each in self.ask("query-uplinks") if each["name"] == "wire")
        self.assertGreaterEqual(uplink["queues"][0]["tagged"], len(wanted))
        for name in files:
            self.ask("port-flush", name=name)
        nobodys = [b"", tag(11), tag(0x2000)] + [tag(10, 0x88a8)] * service_tags
        self.check_in(wire, station, files, frames, kinds, nobodys)
        return uplink["offloads"]

    def check_in(self, wire, station, files, frames, kinds, nobodys):
        sent = []
        for number, kind in enumerate(kinds + nobodys):
            for to, first in (("ff:ff:ff:ff:ff:ff", 4000), (station, 6000)):
                sent += frames(to, self.peer_mac, kind, first + 100 * number)

        def is_of(*vlans):
            return [each for each in sent if each[12:14] == b"\x81\x00" and
                    int.from_bytes(each[14:16], "big") & 0xfff in vlans]

        def counted():
            return self.ask("query-counters")["uplinks"]
        before = counted()["many"]["rx_packets"]
        for at in range(0, len(sent), 16):
            for each in sent[at:at + 16]:
                wire.send(each)
            time.sleep(0.02)  # an emulated NIC's ring is no test of ours
        wait_for("the frames from the wire", lambda: counted()["many"]["rx_packets"] - before
                 >= len(is_of(10, 20)), 60)
        self.assertGreater(counted()["wire"]["drop_vlan"], 0)
        for name in files:
            self.ask("uplink-remove", name=name)
        came = {name: [each for each in pcap.read(f"{path}.out")
                       if each[6:12] == pcap.mac(self.peer_mac) and MARK in each[12:24]]
                for name, path in files.items()}
        self.assertEqual(came["many"], is_of(10, 20))
        self.assertEqual(came["ten"], [each[:12] + each[16:] for each in is_of(10)])

    def check_offloads(self, found, device):
        """Those of them that are the device's; the others are not."""
        self.assertEqual({name for name, whose in found.items() if whose == "device"},
                         set(device.split()))
