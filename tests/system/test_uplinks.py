"""Uplinks into the host's own network stack: what a guest sends arrives there, and the other way
round, to the byte. The guest's stand-in is DPDK's virtio driver, the host's an AF_PACKET socket."""

import os
import signal
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import pcap, tags
from tests.rig.case import RigError, SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.process import run, wait_for
from tests.rig.raw import raw_socket
from tests.rig.testpmd import Testpmd

GUEST, HOST = "52:54:00:00:00:0a", "02:00:00:00:00:01"
FRAMES = 400
SOL_PACKET, PACKET_OUTGOING = 263, 4


def streams():
    """TCP frames of three flows that take turns, with options; the last of every ten is shorter."""
    frames = []
    sequence, identity = [1000, 2000, 0xffffff00], [5, 6, 0xfffe]
    for number in range(FRAMES):
        flow = number % 3
        data = bytes((number + index) & 0xff for index in range(1000 if number % 30 < 27 else 500))
        tcp = struct.pack(">HHIIBBHHH12s", 5000 + flow, 80, sequence[flow], 77, 0x80, 0x10, 512, 0,
                          0, b"\x01" * 12)
        addresses = bytes([10, 9, 0, 1, 10, 9, 0, 2])
        pseudo = addresses + struct.pack(">HH", 6, len(tcp) + len(data))
        tcp = tcp[:16] + struct.pack(">H", pcap.checksum(pseudo + tcp + data)) + tcp[18:]
        ip = struct.pack(">BBHHHBBH8s", 0x45, 0, 20 + len(tcp) + len(data), identity[flow], 0x4000,
                         64, 6, 0, addresses)
        ip = ip[:10] + struct.pack(">H", pcap.checksum(ip)) + ip[12:]
        frames.append(pcap.mac(GUEST) + pcap.mac(HOST) + b"\x08\x00" + ip + tcp + data)
        sequence[flow] = (sequence[flow] + len(data)) & 0xffffffff
        identity[flow] = (identity[flow] + 1) & 0xffff
    return frames


class HostSide:
    """The host's end of an uplink: sends frames, and collects those that come from the guest."""

    def __init__(self, interface):
        self.socket = raw_socket(interface)
        self.seen = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def collect(self):
        """Takes what has come; answers how many of the guest's frames there are by now."""
        while True:
            try:
                frame, address = self.socket.recvfrom(65536)
            except BlockingIOError:
                return len(self.seen)
            if address[2] != PACKET_OUTGOING and frame[6:12] == pcap.mac(GUEST):
                self.seen.append(frame)

    def send(self, frames):
        for number, frame in enumerate(frames):
            self.socket.send(frame)
            if number % 16 == 15:
                time.sleep(0.001)  # a queue of the host is no test of ours


class Uplinks(tags.Exchange, SystemTest):
    def carries(self, interface, device, back=None, **keys):
        """Frames of all sizes both ways between a guest and the host's side of an uplink; those
        that the host sends may be others, all at once. Answers what is known of the uplink."""
        there = [pcap.frame(HOST, GUEST, number, 60 + number * 37 % 1455)
                 for number in range(FRAMES)]
        at_once = back is not None
        back = back or [pcap.frame(GUEST, HOST, number, 60 + number * 41 % 1455)
                        for number in range(FRAMES)]
        pcap.write(self.work / "in.pcap", there)
        daemon = Daemon(self.work)
        port = daemon.port("guest")
        daemon.uplink("host", device, **keys)
        self.use(daemon)
        run(["ip", "link", "set", interface, "up"])
        wait_for("the uplink's link", lambda: daemon.ask("query-uplinks")[0]["link_up"], 20)
        host = self.use(HostSide(interface))
        files = f"rx_pcap={self.work / 'in.pcap'},tx_pcap={self.work / 'out.pcap'}"
        guest = self.use(Testpmd(self.work, "tp", [
            f"net_pcap0,{files}", f"net_virtio_user0,path={port},mac={GUEST},queue_size=1024"]))
        guest("start")  # the capture goes to the virtio port, what that receives to the other
        wait_for("the guest's frames", lambda: host.collect() >= FRAMES, 20, 0.1)
        self.assertEqual(host.seen, there)

        def counters():
            return daemon.ask("query-counters")
        wait_for("the guest to be known", lambda: any(
            each["mac"] == GUEST and each["port"] == "guest"
            for each in daemon.ask("query-addresses")), 10)
        before = counters()["ports"]["guest"]["rx_packets"]
        if at_once:
            daemon.process.signal(signal.SIGSTOP)
        host.send(back)
        daemon.process.signal(signal.SIGCONT)
        wait_for("the host's frames", lambda: counters()["ports"]["guest"]["rx_packets"] - before
                 >= FRAMES, 20, 0.1)
        # delivered is not yet taken, where the guest's processor is busy elsewhere
        wait_for("the guest to have taken them", lambda: guest.counts(0)["TX-packets"]
                 >= counters()["ports"]["guest"]["rx_packets"], 20, 0.1)
        guest.stop_and_quit()
        # others on the host may speak too (neighbour discovery): theirs are not counted
        received = [frame for frame in pcap.read(self.work / "out.pcap")
                    if frame[6:12] == pcap.mac(HOST)]
        if at_once:  # frames of other flows may pass each other
            received, back = (sorted(each, key=lambda frame: frame[34:36])
                              for each in (received, back))
        self.assertEqual(received, back)
        uplink = counters()["uplinks"]["host"]
        drops = {key: count for key, count in uplink.items() if key.startswith("drop_") and count}
        self.report(f"{FRAMES} frames each way, uplink drops: {drops or 'none'}")
        return daemon.ask("query-uplinks")[0]

    def interface(self, suffix):
        return f"mr{os.getpid() % 100000}{suffix}"

    def test_net_tap(self):
        name = self.interface("t")
        self.carries(name, f"net_tap0,iface={name}")

    def test_joined(self):
        """TCP frames that wait together are joined (`gro`), and a guest without large packets gets
        them as they were."""
        name = self.interface("g")
        uplink = self.carries(name, f"net_tap0,iface={name}", streams(), gro=True)
        joined = sum(queue["joined"] for queue in uplink["queues"])
        self.report(f"{joined} frames became part of another")
        self.assertGreater(joined, FRAMES / 2)
        self.assertLess(joined, FRAMES)

    def test_nobody_checks_checksums(self):
        daemon = Daemon(self.work)
        self.use(daemon)
        done = daemon.millctl("add", "uplink", "name=host", "device=net_null0", "gro=true",
                              check=False)
        self.assertIn("does not check the checksums of what comes; give gro = false", done.stdout)

    def veth(self):
        near, far = self.interface("a"), self.interface("b")
        try:
            run(["ip", "link", "add", near, "type", "veth", "peer", "name", far])
        except RigError as error:
            self.skipTest(f"skipped: no veth on this machine: {error}")
        self.addCleanup(run, ["ip", "link", "del", near], check=False)
        run(["ip", "link", "set", near, "up"])
        return near, far

    def test_net_af_packet(self):
        near, far = self.veth()
        self.carries(far, f"net_af_packet0,iface={near}")

    def test_tags(self):
        """The driver puts tags on and takes them off; what it takes off it does not say the kind
        of."""
        near, self.peer = self.veth()
        run(["ip", "link", "set", self.peer, "up"])
        with open(f"/sys/class/net/{self.peer}/address") as file:
            self.peer_mac = file.read().strip()
        self.daemon = Daemon(self.work)
        self.ask = self.daemon.ask
        self.daemon.memory = {"dpdk_mb": 128}
        self.daemon.uplink("wire", f"net_af_packet0,iface={near}", trunk=[10, 20])
        self.use(self.daemon)
        self.check_offloads(self.exchange(GUEST, service_tags=False),
                            "vlan_insert vlan_strip")


if __name__ == "__main__":
    main()
