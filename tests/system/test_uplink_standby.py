"""An uplink and its standby over two interfaces of the host, whose links the test takes away. What
the same rule does for hardware, and for the guests behind it, is in test_uplink_failures.py."""

import contextlib
import os
import socket
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import pcap
from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.process import run, wait_for
from tests.rig.qmp import QmpError

GUEST = "52:54:00:00:00:0a"
RARP = 0x8035


class Listener:
    """Hears the frames of one kind on an interface. A context manager."""

    def __init__(self, interface, kind):
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind))
        self.socket.bind((interface, kind))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def sources(self):
        """Of all frames since the last time."""
        found = set()
        with contextlib.suppress(OSError):  # no more, or once: the interface went down
            while True:
                found.add(self.socket.recv(2048, socket.MSG_DONTWAIT)[6:12])
        return found


class Standby(SystemTest):
    def setUp(self):
        super().setUp()
        number = os.getpid() % 100_000
        self.interfaces = {"first": f"mf{number}", "second": f"ms{number}"}
        self.devices = {name: f"net_tap{50 + index},iface={interface}"
                        for index, (name, interface) in enumerate(self.interfaces.items())}
        self.daemon = Daemon(self.work)
        self.daemon.memory = {"dpdk_mb": 128}
        self.daemon.port("web0", mac=GUEST, follow_uplink="first")
        self.daemon.port("web1")
        self.daemon.uplink("first", self.devices["first"], standby="second")
        self.daemon.uplink("second", self.devices["second"])
        self.use(self.daemon)
        self.qmp = self.use(self.daemon.qmp(timeout=60))
        self.until_carries("first")

    def uplinks(self):
        return {each["name"]: each for each in self.qmp("query-uplinks")}

    def until_carries(self, name):
        other = {"first": "second", "second": "first"}[name]

        def seen():
            uplinks = self.uplinks()
            return uplinks[name]["carries"] and not uplinks.get(other, {}).get("carries")
        wait_for(f"{name} to carry, alone", seen, 60, 0.05)

    def link(self, name, state):
        run(["ip", "link", "set", self.interfaces[name], state])
        wait_for(f"{name} to be {state}",
                 lambda: self.uplinks()[name]["link_up"] == (state == "up"), 60, 0.05)

    def ports(self):
        return [each["link_up"] for each in self.qmp("query-ports")]

    def until_ports(self, *wanted):
        wait_for(f"the ports to be {wanted}", lambda: self.ports() == list(wanted), 60, 0.05)

    def test_links(self):
        """Whichever has a link carries, the first before the second; the guest's address is told
        behind it; a port that follows them has a link while one of the two has one."""
        wires = {name: self.use(Listener(interface, RARP))
                 for name, interface in self.interfaces.items()}
        self.until_ports(True, True)
        for wire in wires.values():
            wire.sources()
        self.link("first", "down")
        self.until_carries("second")
        wait_for("the guest's address behind the second",
                 lambda: pcap.mac(GUEST) in wires["second"].sources(), 30)
        self.assertEqual(self.ports(), [True, True])
        self.link("second", "down")
        self.until_ports(False, True)
        self.assertTrue(self.uplinks()["second"]["carries"])
        self.link("first", "up")
        self.until_carries("first")
        wait_for("the guest's address behind the first",
                 lambda: pcap.mac(GUEST) in wires["first"].sources(), 30)
        self.until_ports(True, True)
        links = [(event["data"]["name"], event["data"]["up"]) for event in self.qmp.events
                 if event["event"] == "UPLINK_LINK"]
        self.assertEqual(links, [("first", False), ("second", False), ("first", True)])
        ports = [(event["data"]["name"], event["data"]["up"]) for event in self.qmp.events
                 if event["event"] == "PORT_LINK"]
        self.assertEqual(ports, [("web0", False), ("web0", True)])

    def test_commands(self):
        """Who is left carries; who comes back as the first is the first."""
        for _ in range(3):
            self.qmp("uplink-remove", name="first")
            wait_for("the second to carry", lambda: self.uplinks()["second"]["carries"], 60, 0.05)
            self.until_ports(False, True)
            self.qmp("uplink-add", name="first", device=self.devices["first"], standby="second")
            self.until_carries("first")
            self.until_ports(True, True)
        self.qmp("uplink-remove", name="second")
        self.assertTrue(self.uplinks()["first"]["carries"])
        self.qmp("uplink-add", name="second", device=self.devices["second"])
        self.until_carries("first")
        for standby, why in (("second", "is already the one of first"),
                             ("first", "has a standby itself")):
            with self.assertRaisesRegex(QmpError, why):
                self.qmp("uplink-add", name="third", device="net_null0", standby=standby)
        self.qmp("uplink-remove", name="second")
        with self.assertRaisesRegex(QmpError, "is the standby of first and can have none itself"):
            self.qmp("uplink-add", name="second", device="net_null0", standby="third")


if __name__ == "__main__":
    main()
