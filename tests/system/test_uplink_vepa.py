"""VEPA: what guests say to each other goes out by the uplink, and what comes back from there
reaches whom it is for. The external switch is this test, on the host's side of an interface; two
guests' stand-ins send every frame back to its sender."""

import contextlib
import os
import socket
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import pcap
from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.process import wait_for
from tests.rig.qmp import QmpError
from tests.rig.testpmd import Testpmd

A, B, OUTSIDE = "52:54:00:00:00:0a", "52:54:00:00:00:0b", "02:00:00:00:00:01"
EVERYBODY = "ff:ff:ff:ff:ff:ff"
ETH_P_ALL = 3
PACKET_OUTGOING = 4


class Vepa(SystemTest):
    def setUp(self):
        super().setUp()
        interface = f"mv{os.getpid() % 100_000}"
        self.daemon = Daemon(self.work)
        self.daemon.memory = {"dpdk_mb": 128}
        sockets = [self.daemon.port("a", mac=A), self.daemon.port("b", mac=B)]
        self.daemon.uplink("wire", f"net_tap70,iface={interface}", vepa=True)
        self.use(self.daemon)
        self.qmp = self.use(self.daemon.qmp(timeout=60))
        wait_for("the uplink's link", lambda: self.qmp("query-uplinks")[0]["link_up"], 20)
        with contextlib.suppress(OSError), open(
                f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6", "w") as file:
            file.write("1")  # the host has nothing to say there
        self.wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self.addCleanup(self.wire.close)
        self.wire.bind((interface, 0))
        self.wire.settimeout(5)
        guests = self.use(Testpmd(
            self.work, "tp", [f"net_virtio_user{number},path={path},mac={mac},queue_size=256"
                              for number, (path, mac) in enumerate(zip(sockets, (A, B)))],
            options=("--forward-mode=macswap", "--port-topology=loop")))
        guests("start")
        wait_for("both guests to answer", lambda: all(self.answers(mac) for mac in (A, B)), 30)

    def answers(self, mac):
        """Whether a guest does."""
        self.wire.settimeout(0.5)
        self.wire.send(pcap.frame(mac, OUTSIDE, 0, 100))
        try:
            return self.comes(OUTSIDE, mac)
        except TimeoutError:
            return None
        finally:
            self.wire.settimeout(5)

    def comes(self, destination, source):
        """Waits until a frame of the two comes out. Answers it."""
        wanted = pcap.mac(destination) + pcap.mac(source)
        while True:
            frame, address = self.wire.recvfrom(2048)
            if address[2] != PACKET_OUTGOING and frame[:12] == wanted:
                return frame

    def received(self):
        ports = self.qmp("query-counters")["ports"]
        return [ports[name]["rx_packets"] for name in ("a", "b")]

    def until_received(self, wanted):
        wait_for(f"{wanted} frames at the guests", lambda: self.received() == wanted, 20, 0.05)

    def test_guests_by_the_external_switch(self):
        """Every frame between the guests is seen outside, and none goes another way; one that
        comes back is not its sender's; a station outside is reached as ever."""
        time.sleep(0.2)
        a, b = self.received()
        self.wire.send(pcap.frame(A, B, 2, 100))  # as if b had sent it
        answer = self.comes(B, A)
        self.until_received([a + 1, b])
        for number in range(3):
            self.wire.send(answer)
            answer = self.comes(A, B)
            self.until_received([a + 1 + number, b + 1 + number])
            self.wire.send(answer)
            answer = self.comes(B, A)
            self.until_received([a + 2 + number, b + 1 + number])
        a, b = self.received()
        self.wire.send(pcap.frame(EVERYBODY, A, 3, 100))
        self.until_received([a, b + 1])
        self.wire.send(pcap.frame(EVERYBODY, B, 4, 100))
        self.until_received([a + 1, b + 1])
        time.sleep(0.2)
        self.assertEqual(self.received(), [a + 1, b + 1])
        places = {each["mac"]: each["port"] for each in self.qmp("query-addresses")}
        self.assertEqual((places[A], places[B], places[OUTSIDE]), ("a", "b", "wire"))
        self.assertTrue(self.qmp("query-uplinks")[0]["vepa"])

    def test_one_way_out(self):
        """A second one is refused, until the first is gone."""
        with self.assertRaisesRegex(QmpError, "wire has vepa already"):
            self.qmp("uplink-add", name="wire2", device="net_null0", vepa=True)
        self.qmp("uplink-remove", name="wire")
        self.qmp("uplink-add", name="wire", device="net_null0,no-rx=1", vepa=True)


if __name__ == "__main__":
    main()
