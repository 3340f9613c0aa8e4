"""Bonds over two interfaces of the host, whose links the test takes away. The guest's stand-in
sends every frame back; LACP's partner is a script. test_uplink_bonds.py has the kernel's own."""

import collections
import contextlib
import os
import socket
import struct
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import pcap
from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.process import run, wait_for
from tests.rig.qmp import QmpError
from tests.rig.testpmd import Testpmd

from test_uplink_standby import RARP, Listener
from test_uplinks import GUEST, HOST, HostSide

FRAMES = 200
SLOW_PROTOCOLS, LACP_ADDRESS = 0x8809, "01:80:c2:00:00:02"
PARTNER = "02:00:00:00:00:99"
AGREES = 0x3d  # active, aggregates, in sync, collects, distributes


class Partner:
    """The other end of a bond: answers every LACPDU on some interfaces with one that agrees. A
    context manager."""

    def __init__(self, interfaces):
        self.sockets, self.heard = {}, collections.Counter()
        self.stopped = threading.Event()
        for interface in interfaces:
            end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(SLOW_PROTOCOLS))
            end.bind((interface, SLOW_PROTOCOLS))
            end.setblocking(False)
            self.sockets[interface] = end
        self.thread = threading.Thread(target=self._answer, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.thread.join()
        for end in self.sockets.values():
            end.close()

    def _answer(self):
        while not self.stopped.wait(0.05):
            for number, (interface, end) in enumerate(self.sockets.items()):
                with contextlib.suppress(OSError):  # nothing there, or no link
                    frame, address = end.recvfrom(2048)
                    if address[2] == 4:  # our own
                        continue
                    self.heard[interface] += 1
                    end.send(lacpdu(number + 1, frame))


def lacpdu(port, heard):
    """An answer to one that was heard."""
    own = struct.pack(">BBH6sHHHB3x", 1, 20, 0xffff, pcap.mac(PARTNER), 7, 0xff, port, AGREES)
    body = b"\x01\x01" + own + b"\x02" + heard[17:36] + b"\x03\x10".ljust(16, b"\0")
    head = pcap.mac(LACP_ADDRESS) + pcap.mac(PARTNER) + struct.pack(">H", SLOW_PROTOCOLS)
    return head + body.ljust(110, b"\0")


class Bonds(SystemTest):
    def setUp(self):
        super().setUp()
        number = os.getpid() % 100_000
        self.interfaces = [f"ma{number}", f"mb{number}"]
        self.daemon = Daemon(self.work)
        self.daemon.memory = {"dpdk_mb": 128}
        self.devices = [f"net_tap{60 + n},iface={each}" for n, each in enumerate(self.interfaces)]

    def begin(self, mode, **keys):
        """The daemon with a bond, and hosts behind its two interfaces."""
        self.socket = self.daemon.port("guest", mac=GUEST, follow_uplink="trunk")
        for number, device in enumerate(self.devices):
            self.daemon.uplink(f"wan{number}", device)
        self.daemon.uplink("trunk", bond=mode, members=["wan0", "wan1"], **keys)
        self.use(self.daemon)
        self.qmp = self.use(self.daemon.qmp(timeout=60))
        wait_for("the bond's device", lambda: self.uplink("trunk")["driver"], 20)
        wait_for("its members' links", lambda: all(each["link_up"] for each in self.members()), 20)
        self.ends = [self.use(HostSide(interface)) for interface in self.interfaces]

    def guest(self):
        guest = self.use(Testpmd(
            self.work, "tp", [f"net_virtio_user0,path={self.socket},mac={GUEST},queue_size=1024"],
            options=("--forward-mode=macswap", "--port-topology=loop")))
        guest("start")
        return guest

    def uplink(self, name):
        return {each["name"]: each for each in self.qmp("query-uplinks")}[name]

    def members(self):
        return self.uplink("trunk")["members"]

    def until_active(self, *wanted):
        wait_for(f"the active members to be {wanted}",
                 lambda: [each["active"] for each in self.members()] == list(wanted), 60, 0.05)

    def entered(self):
        return self.qmp("query-counters")["uplinks"]["trunk"]["tx_packets"]

    def link(self, number, state):
        run(["ip", "link", "set", self.interfaces[number], state])
        wait_for(f"the link to be {state}",
                 lambda: self.members()[number]["link_up"] == (state == "up"), 60, 0.05)

    def flows(self, begin=0, count=FRAMES):
        """Frames for the guest, each a flow of its own."""
        return [pcap.frame(GUEST, HOST, begin + number, 60 + number * 37 % 1400)
                for number in range(count)]

    def through(self, number, frames):
        """Sends by one of the two; answers which ports of the guest's answers came by which."""
        for end in self.ends:
            with contextlib.suppress(OSError):  # once: its link was away
                end.collect()
            end.seen.clear()
        self.ends[number].send(frames)
        with contextlib.suppress(AssertionError):
            wait_for("all answers", lambda: sum(end.collect() for end in self.ends) >= len(frames),
                     20, 0.05)
        answers = [set(frame[12:] for frame in end.seen) for end in self.ends]
        self.assertEqual(answers[0] | answers[1], {frame[12:] for frame in frames})
        self.assertFalse(answers[0] & answers[1])
        return answers

    def test_balance(self):
        """Each flow keeps to a member, and there are flows on both; one that has no link leaves
        all to the other."""
        self.begin("balance-xor")
        self.until_active(True, True)
        self.guest()
        frames = self.flows()
        first = self.through(0, frames)
        self.assertGreater(min(len(each) for each in first), FRAMES // 8)
        self.assertTrue(self.through(1, frames) == first)
        self.link(0, "down")
        self.until_active(False, True)
        self.assertEqual([len(each) for each in self.through(1, frames)], [0, FRAMES])
        self.link(0, "up")
        self.until_active(True, True)
        # who comes back is the last of those that flows are dealt to
        self.assertTrue(self.through(1, frames) == first[::-1])
        self.report(f"{FRAMES} flows: {[len(each) for each in first]} by each member")

    def test_active_backup(self):
        """One carries until it has no link; then the other does, says where the guest is, and
        begins with nothing that had waited there. The first one comes back as the spare."""
        self.begin("active-backup")
        wait_for("one to be active", lambda: any(each["active"] for each in self.members()), 20)
        used = [each["active"] for each in self.members()].index(True)
        spare = 1 - used
        wire = self.use(Listener(self.interfaces[spare], RARP))
        self.guest()
        self.assertEqual(len(self.through(used, self.flows())[used]), FRAMES)
        before = self.entered()
        self.ends[spare].send(self.flows(1000, 20))
        self.link(used, "down")
        self.until_active(used == 1, used == 0)
        wait_for("the guest's address behind the spare",
                 lambda: pcap.mac(GUEST) in wire.sources(), 30)
        self.assertLess(self.entered() - before, 20)  # the host's own stack speaks there, too
        self.assertTrue(self.qmp("query-ports")[0]["link_up"])
        self.assertEqual(len(self.through(spare, self.flows())[spare]), FRAMES)
        self.link(used, "up")
        time.sleep(1)
        self.until_active(used == 1, used == 0)
        self.link(spare, "down")
        self.until_active(used == 0, used == 1)
        self.assertEqual(len(self.through(used, self.flows())[used]), FRAMES)

    def test_lacp(self):
        """Without a partner it has no link, and says so to who follows it; with one it carries.
        Its frames do not come to the switch, nor do a guest's to the partner."""
        self.begin("802.3ad")
        self.assertFalse(self.uplink("trunk")["link_up"])
        self.assertFalse(self.qmp("query-ports")[0]["link_up"])
        self.use(Partner(self.interfaces))
        self.until_active(True, True)
        self.assertEqual({each["partner"] for each in self.members()}, {PARTNER})
        wait_for("the port's link", lambda: self.qmp("query-ports")[0]["link_up"], 20, 0.05)
        self.guest()
        answers = self.through(0, self.flows())
        self.assertGreater(min(len(each) for each in answers), FRAMES // 8)
        drops = self.qmp("query-counters")["uplinks"]["trunk"]["drop_reserved"]
        self.assertEqual(drops, 0)
        # what a guest says of that kind, to whatever address, goes nowhere
        slow = pcap.mac(GUEST) + pcap.mac(HOST) + struct.pack(">HB", SLOW_PROTOCOLS, 9) + bytes(60)
        self.ends[0].send([slow])
        wait_for("it to be dropped", lambda: self.qmp("query-counters")["uplinks"]["trunk"]
                 ["drop_reserved"], 20, 0.05)

    def test_commands(self):
        """A bond is added before its members and removed with them; a member comes and goes."""
        self.use(self.daemon)
        self.qmp = self.use(self.daemon.qmp(timeout=60))
        members = ["wan0", "wan1"]
        wan0, wan1 = ({"name": name, "device": device}
                      for name, device in zip(members, self.devices))

        def refused(why, command="uplink-add", **arguments):
            with self.assertRaisesRegex(QmpError, why):
                self.qmp(command, **arguments)
        self.qmp("uplink-add", **wan0)
        refused("member wan0 is an uplink by itself; remove it, and add it after the bond",
                name="trunk", bond="balance-xor", members=members)
        self.qmp("uplink-remove", name="wan0")
        self.qmp("uplink-add", name="trunk", bond="balance-xor", members=members)
        trunk = self.uplink("trunk")
        self.assertEqual((trunk["state"], trunk["problem"]),
                         ("lost", "none of its members is there yet"))
        refused("member wan1 is one of trunk already", name="other", bond="balance-xor",
                members=["wan1", "wan2"])
        refused("as a member of trunk it has queues, mtu or gro", **wan0, queues=2)
        refused("standby wan0 is a member of a bond", name="wan2", device="net_null0",
                standby="wan0")
        refused("standby trunk is a bond", name="wan2", device="net_null0", standby="trunk")
        self.qmp("uplink-add", **wan0)
        self.until_active(True, False)
        self.qmp("uplink-add", **wan1)
        self.until_active(True, True)
        self.assertEqual(self.uplink("wan0")["member_of"], "trunk")
        self.qmp("uplink-remove", name="wan0")
        self.until_active(False, True)
        self.qmp("uplink-add", **wan0)
        self.until_active(True, True)
        self.qmp("uplink-remove", name="trunk")
        self.assertEqual(self.qmp("query-uplinks"), [])
        removed = [event["data"]["name"] for event in self.qmp.events
                   if event["event"] == "UPLINK_REMOVED"]
        self.assertEqual(removed[-1], "trunk")


if __name__ == "__main__":
    main()
