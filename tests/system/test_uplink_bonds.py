"""Bonds with LACP against the kernel's own 802.3ad bond, whose ends are interfaces of the host or
NICs at the other end of two wires. Runs in the virtual host; test_uplink_bond_taps.py has what
needs no partner."""

import os
import re
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import inside, scenes
from tests.rig.case import SystemTest
from tests.rig.daemon import Daemon
from tests.rig.pci import FUNCTIONS, driver_of, give
from tests.rig.process import run, wait_for
from tests.rig.qmp import QmpError

import test_uplink_pci
from test_uplink_failures import Monitor, Pinging, monitor, unbind
from test_uplink_pci import IPS, PEER_IP, shell

NICS = ["0000:02:00.0", "0000:03:00.0"]  # igb, on a wire each with
PEERS = ["0000:00:10.0", "0000:00:11.0"]  # e1000e
LAG, LAG_MAC = "lag", "02:00:00:00:00:99"
# actor states of 802.3ad: in sync, collecting, distributing
AGREED = 0x38


def devices():
    arguments = []
    for number, place in enumerate(("12.0", "13.0")):
        bus = f"rp{number + 1}"
        arguments += ["-device", f"pcie-root-port,id={bus},chassis={number + 2},"
                      f"slot={number + 2},addr={place}"]
        for side, device in enumerate((f"igb,bus={bus}", f"e1000e,addr=1{number}.0")):
            wire = f"wire{number}{side}"
            arguments += ["-netdev", f"hubport,id={wire},hubid={number + 1}", "-device",
                          f"{device},netdev={wire},mac=52:54:00:78:0{number}:0{side}"]
    return arguments + monitor()


class Lag(SystemTest):
    """The kernel's bond at the other end."""

    def aggregate(self, interfaces):
        shell(f"ip link del {LAG} 2>/dev/null; ip link add {LAG} address {LAG_MAC} type bond "
              "mode 802.3ad miimon 100 lacp_rate fast xmit_hash_policy layer3+4")
        self.addCleanup(shell, f"ip link del {LAG}")
        for interface in interfaces:
            self.enslave(interface)
        shell(f"ip addr replace {PEER_IP}/24 dev {LAG}; ip link set {LAG} up")

    def enslave(self, interface):
        """Again where the daemon's driver, which reads an interface's flags and writes them back
        when a link changes, brought it up in between."""
        line = f"ip link set {interface} down; ip link set {interface} master {LAG}"
        wait_for(f"{LAG} to take {interface}",
                 lambda: run(["bash", "-c", line], check=False).returncode == 0, 30, 0.2)

    def states(self):
        """By interface: (own state, partner's state), as the kernel has them."""
        with open(f"/proc/net/bonding/{LAG}") as file:
            parts = file.read().split("Slave Interface: ")[1:]
        return {part.split()[0]: tuple(int(state) for state in
                                       re.findall(r"port state: (\d+)", part)) for part in parts}

    def until_agreed(self, *interfaces):
        """The kernel and the daemon say that these and no others are used."""
        def agreed():
            found = {name for name, states in self.states().items()
                     if len(states) == 2 and all(state & AGREED == AGREED for state in states)}
            active = [each["partner"] for each in self.members() if each["active"]]
            return found == set(interfaces) and active == [LAG_MAC] * len(interfaces)
        wait_for(f"both ends to agree on {interfaces}", agreed, 90, 0.3)

    def uplinks(self):
        return {each["name"]: each for each in self.ask("query-uplinks")}

    def members(self):
        return self.uplinks()["trunk"]["members"]

    def ask(self, command, **arguments):
        with self.daemon.qmp(timeout=180) as qmp:
            return qmp(command, **arguments)

    def rests(self, guest, interfaces):
        """Nothing but LACP for 30 s, in which reactors sleep; then both ends agree as they did,
        without a break, and none of LACP's frames came to the switch, which counts them."""
        before = self.ask("query-counters")
        rounds = self.ask("query-reactors")[0]
        states, since = self.states(), time.monotonic()
        while time.monotonic() - since < 30:
            self.assertEqual(self.states(), states)
            time.sleep(1)
        self.until_agreed(*interfaces)
        after = self.ask("query-counters")
        self.assertEqual(after["uplinks"]["trunk"]["drop_reserved"],
                         before["uplinks"]["trunk"]["drop_reserved"])
        slept = self.ask("query-reactors")[0]["sleeps"] - rounds["sleeps"]
        self.assertGreater(slept, 30 * 20)
        self.assertEqual(scenes.ping(guest, PEER_IP), 3)
        self.report(f"30 s with nothing to do: {slept} sleeps, states {states}")


class Taps(Lag):
    def test_lacp(self):
        """A guest reaches the kernel through the bond; 30 s without work do not end it; a member
        that loses its link, or is removed, leaves the other one working, and comes back."""
        interfaces = ["mb0", "mb1"]
        self.daemon = Daemon(self.work)
        self.daemon.memory = {"dpdk_mb": 64}
        for number, interface in enumerate(interfaces):
            self.daemon.uplink(f"wan{number}", f"net_tap{number},iface={interface}")
        self.daemon.uplink("trunk", bond="802.3ad", members=["wan0", "wan1"])
        (guest,) = scenes.networked(self, self.daemon, 1, follow_uplink="trunk")
        self.assertFalse(self.uplinks()["trunk"]["link_up"])
        self.assertFalse(self.ask("query-ports")[0]["link_up"])
        self.aggregate(interfaces)
        self.until_agreed(*interfaces)
        wait_for("its link", lambda: self.uplinks()["trunk"]["link_up"], 10)
        self.assertTrue(self.ask("query-ports")[0]["link_up"])
        self.assertEqual(scenes.ping(guest, PEER_IP), 3)
        self.rests(guest, interfaces)

        pinging = Pinging(guest, PEER_IP)
        pinging.more()
        for cut, back in (("ip link set mb0 down", "ip link set mb0 up"),
                          ("ip link set mb1 down", "ip link set mb1 up")):
            kept = "mb1" if "mb0" in cut else "mb0"
            shell(cut)
            self.until_agreed(kept)
            pinging.more()
            shell(back)
            self.until_agreed(*interfaces)
        device = self.uplinks()["wan0"]["device"]
        self.ask("uplink-remove", name="wan0")
        wait_for("the other to be alone", lambda: [each["active"] for each in self.members()] ==
                 [False, True], 30)
        pinging.more()
        self.ask("uplink-add", name="wan0", device=device)
        wait_for("the bond to have it", lambda: self.members()[0]["link_up"], 30)
        self.enslave("mb0")
        self.until_agreed(*interfaces)
        pinging.more()
        sent, received = pinging.end()
        self.report(f"{received} of {sent} pings answered while members came and went")
        self.assertGreater(received, sent // 2)
        self.ask("uplink-remove", name="trunk")
        self.assertEqual(self.uplinks(), {})


class Nics(Lag, test_uplink_pci.Wire):
    """The same with NICs that the daemon owns."""

    def setUp(self):
        SystemTest.setUp(self)
        self.monitor = self.use(Monitor())
        self.daemon = Daemon(self.work)
        self.daemon.memory = {"dpdk_mb": 64}
        for address in NICS:
            give(address, "vfio-pci")
        for address in PEERS:
            give(address, "e1000e")
        self.interfaces = wait_for("the peers' interfaces", lambda: [
            os.listdir(f"{FUNCTIONS}/{address}/net")[0] for address in PEERS
            if os.path.isdir(f"{FUNCTIONS}/{address}/net")], 30)

    def test_lacp(self):
        """TCP both ways and 30 s of rest; a link that goes, and a function that the host takes,
        leave the other one working, and come back."""
        for number, address in enumerate(NICS):
            self.daemon.uplink(f"wan{number}", pci=address)
        self.daemon.uplink("trunk", bond="802.3ad", members=["wan0", "wan1"])
        self.aggregate(self.interfaces)
        (guest,) = self.guests(1)
        self.until_agreed(*self.interfaces)
        self.reach(guest)
        self.fetch(guest, self.serve_file())
        self.fetch_from(guest, IPS[0])
        self.rests(guest, self.interfaces)

        pinging = Pinging(guest, PEER_IP)
        pinging.more()
        self.monitor("set_link wire00 off")
        self.until_agreed(self.interfaces[1])
        self.assertFalse(self.uplinks()["wan0"]["link_up"])
        pinging.more()
        self.monitor("set_link wire00 on")
        self.until_agreed(*self.interfaces)
        with self.daemon.qmp(timeout=180) as events:
            unbind(NICS[1])
            self.assertIsNone(driver_of(NICS[1]))
            wait_for("the other to be alone", lambda: [each["active"] for each in self.members()]
                     == [True, False], 30)
            self.until_agreed(self.interfaces[0])
            pinging.more()
            give(NICS[1], "vfio-pci")
            self.until_agreed(*self.interfaces)
            events("query-status")
            said = [event["event"] for event in events.events
                    if event["data"].get("name") == "wan1"]
        self.assertEqual([each for each in said if each != "UPLINK_LINK"],
                         ["UPLINK_LOST", "UPLINK_RESTORED", "UPLINK_ACTIVE"])
        pinging.more()
        sent, received = pinging.end()
        self.report(f"{received} of {sent} pings answered while members came and went")
        with self.assertRaisesRegex(QmpError, "is an uplink already"):
            self.ask("uplink-add", name="again", pci=NICS[0])


if __name__ == "__main__":
    inside.main(memory_mb=4096, devices=devices())
