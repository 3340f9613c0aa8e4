"""Uplinks over VFIO: the daemon drives a PCI function, stock guests of millrace-vmm behind it talk
with the kernel's own NIC at the other end of the wire. Runs in the virtual host, with NICs of its
own that share one wire."""

import functools
import http.server
import os
import re
import socket
import struct
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import inside, pcap, scenes, tags
from tests.rig.case import SystemTest, long
from tests.rig.daemon import Daemon
from tests.rig.pci import FUNCTIONS, driver_of, give
from tests.rig.process import run, wait_for
from tests.rig.qmp import QmpError
from tests.rig.scenes import IPS, MACS
from tests.rig.vmm import Vmm

PF = "0000:01:00.0"  # the NIC with virtual functions that every virtual host has
NIC, PEER, IGB = "0000:00:10.0", "0000:00:11.0", "0000:02:00.0"
DEVICES = ["-device", "pcie-root-port,id=rp1,chassis=2,slot=2,addr=12.0"]
for _number, _device in enumerate(("e1000e,addr=10.0", "e1000e,addr=11.0", "igb,bus=rp1")):
    DEVICES += ["-netdev", f"hubport,id=wire{_number},hubid=1", "-device",
                f"{_device},netdev=wire{_number},mac=52:54:00:77:00:0{_number}"]
PEER_IP = "10.9.0.99"
VLAN_IP, VLAN_GUEST = "10.9.10.99", "10.9.10.1"  # in VLAN 10
SOL_PACKET, PACKET_AUXDATA = 263, 8  # linux/if_packet.h


def shell(line):
    return run(["bash", "-c", line]).stdout.strip()


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Wire(SystemTest):
    """The daemon on one NIC of the wire, the kernel on another."""

    def setUp(self):
        super().setUp()
        for address in (NIC, PEER, IGB):
            self.assertTrue(os.path.exists(f"{FUNCTIONS}/{address}"), f"no NIC at {address}")
        give(PEER, "e1000e")
        self.peer = wait_for("the peer's interface", self.interface, 30)
        shell(f"ip link set {self.peer} up; ip addr replace {PEER_IP}/24 dev {self.peer}; "
              f"ip link set {self.peer} mtu 1500; "
              f"ip addr replace fd09::99/64 dev {self.peer} nodad")
        self.daemon = Daemon(self.work)
        self.daemon.memory = {"dpdk_mb": 64}  # pinned, which takes long here

    def ask(self, command, **arguments):
        with self.daemon.qmp(timeout=180) as qmp:
            return qmp(command, **arguments)

    def interface(self):
        folder = f"{FUNCTIONS}/{PEER}/net"
        return os.path.isdir(folder) and os.listdir(folder)[0]

    def guests(self, count=2, **keys):
        """Guests with a port each; the daemon is started."""
        return scenes.networked(self, self.daemon, count, **keys)

    def uplink(self):
        return self.ask("query-uplinks")[0]

    def reach(self, guest, ip=PEER_IP):
        self.assertGreaterEqual(scenes.ping(guest, ip), 3)

    def serve_file(self, ip=PEER_IP):
        """The peer has a file for everybody, at an address of its own. Answers its sum."""
        folder = str(self.work / "web")
        os.makedirs(folder)
        with open(f"{folder}/file", "wb") as file:
            file.write(os.urandom(4 << 20))
        server = self.use(http.server.ThreadingHTTPServer(
            (ip, 8000), functools.partial(Silent, directory=folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.shutdown)
        return shell(f"sha256sum <{folder}/file")

    def fetch(self, guest, wanted, ip=PEER_IP):
        """TCP from the wire to the guest, to the byte."""
        guest.must(f"wget -q -O /tmp/got http://{ip}:8000/file", 120)
        self.assertEqual(guest.must("sha256sum </tmp/got"), wanted)

    def fetch_from(self, guest, ip):
        """TCP from the guest to the wire, to the byte."""
        guest.must("mkdir -p /tmp/web && dd if=/dev/urandom of=/tmp/web/file bs=1M count=4 "
                   "2>/dev/null && { httpd -p 8000 -h /tmp/web || true; }")
        got = shell(f"curl -s -g --max-time 120 --retry 20 --retry-delay 1 --retry-all-errors "
                    f"http://{ip}:8000/file | sha256sum")
        self.assertEqual(got, guest.must("sha256sum </tmp/web/file"))


class Tagged(tags.Exchange, Wire):
    """The peer has VLANs, and what is on the wire can be seen as it is there."""

    def setUp(self):
        super().setUp()
        shell(f"ip link set {self.peer} promisc on; "
              f"ip link add link {self.peer} name vlan10 type vlan id 10; "
              f"ip addr replace {VLAN_IP}/24 dev vlan10; ip link set vlan10 up")
        self.addCleanup(shell, f"ip link del vlan10; ip link set {self.peer} promisc off")
        with open(f"/sys/class/net/{self.peer}/address") as file:
            self.peer_mac = file.read().strip()

    def check_vlan_guest(self, guest):
        """The guest is in VLAN 10: frames of all sizes, TCP to the byte both ways, large packets
        and payloads that are lent."""
        before = self.uplink()
        for size in (0, 18, 19, 500, 1467, 1468, 1472):
            guest.must(f"ping -c 2 -i 0.1 -s {size} -W 5 {VLAN_IP}")
        self.fetch_from(guest, VLAN_GUEST)
        after = self.uplink()
        for figure in ("tagged", "untagged"):
            self.assertGreater(after["queues"][0][figure], before["queues"][0][figure] + 50)
        self.assertGreater(after["counters"]["tx_zero_copy_bytes"],
                           before["counters"]["tx_zero_copy_bytes"] + (1 << 20))


class Shared(Tagged):
    """Many guests behind one function."""

    def check_traffic(self, address, driver):
        give(address, "vfio-pci")
        self.daemon.uplink("wire", pci=address)
        a, b = self.guests()
        for guest in (a, b):
            self.reach(guest)
        self.reach(a, IPS[1])
        for size in (0, 18, 19, 500, 1471, 1472):
            a.must(f"ping -c 2 -i 0.1 -s {size} -W 5 {PEER_IP}")
        wanted = self.serve_file()
        for guest, ip in ((a, IPS[0]), (b, IPS[1])):
            self.fetch(guest, wanted)
            self.fetch_from(guest, ip)
        a.must(f"ip addr add fd09::1/64 dev {a.nic}")
        self.fetch_from(a, "[fd09::1]")
        uplink = self.uplink()
        self.assertEqual((uplink["driver"], uplink["link_up"]), (driver, True))
        drops = {key: count for key, count in uplink["counters"].items()
                 if key.startswith("drop_") and count}
        self.assertLess(sum(drops.values()), 100, drops)
        self.report(f"{driver}: drops {drops or 'none'}, {uplink['queues']}")
        return a, b

    def test_e1000e(self):
        """Its driver segments nothing: that is done here."""
        self.check_traffic(NIC, "net_e1000_em")
        self.assertGreater(self.uplink()["counters"]["segmented"], 0)

    def test_igb(self):
        """Large TCP packets go to the driver whole, which segments them."""
        self.check_traffic(IGB, "net_e1000_igb")
        self.assertEqual(self.uplink()["counters"]["segmented"], 0)

    def test_jumbo(self):
        """Frames of 9000 bytes, received and sent in parts; none that is longer than it may be."""
        give(IGB, "vfio-pci")
        shell(f"ip link set {self.peer} mtu 9000")
        self.daemon.uplink("wire", pci=IGB, mtu=9000)
        (guest,) = self.guests(1, mtu=9000)
        self.assertEqual(self.uplink()["mtu"], 9000)
        guest.must(f"ip link set {guest.nic} mtu 9000")
        self.reach(guest)
        for size in (2000, 4000, 8972):
            guest.must(f"ping -c 2 -i 0.1 -s {size} -W 5 {PEER_IP}")
        self.fetch(guest, self.serve_file())
        self.fetch_from(guest, IPS[0])
        self.ask("uplink-remove", name="wire")
        self.ask("uplink-add", name="wire", pci=IGB, mtu=1500)
        self.reach(guest)
        guest.run(f"ping -c 2 -s 4000 -W 1 {PEER_IP}")
        self.assertGreaterEqual(self.uplink()["counters"]["drop_too_long"], 2)

    def test_tags(self):
        """What NICs do with tags, and what is left to us, is what we would do."""
        give(NIC, "vfio-pci")
        give(IGB, "vfio-pci")
        self.daemon.memory = {"dpdk_mb": 128}
        self.daemon.uplink("wire", pci=NIC, trunk=[10, 20])
        self.use(self.daemon)
        both = "checksum checksum_check vlan_insert vlan_strip"
        for address, device in ((NIC, both), (IGB, both + " tso")):
            if address != NIC:
                self.ask("uplink-remove", name="wire")
                self.ask("uplink-add", name="wire", pci=address, trunk=[10, 20])
            wait_for("the link", lambda: self.uplink()["link_up"], 30)
            self.check_offloads(self.exchange(MACS[0]), device)
        self.assertIn("vlan_insert, vlan_strip", self.daemon.millctl("uplinks").stdout)

    def test_tagged(self):
        """An uplink that is a trunk: a guest's port in VLAN 10 is reached by tagged frames only."""
        give(NIC, "vfio-pci")
        self.daemon.uplink("wire", pci=NIC, trunk=[10], zero_copy=True)
        (guest,) = self.guests(1, vlan=10)
        station = pcap.mac(self.peer_mac)
        wire = self.use(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        wire.bind((self.peer, 0))
        wire.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        wire.settimeout(0.2)
        addresses = [socket.inet_aton(ip) for ip in (PEER_IP, IPS[0])]
        question = (b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01" + station + addresses[0] +
                    bytes(6) + addresses[1]).ljust(46, b"\0")

        def asked(tag):
            if tag is not None:
                wire.send(b"\xff" * 6 + station + tag + question)
            for _ in range(20):
                try:
                    data, extra, _, _ = wire.recvmsg(2048, 64)
                except TimeoutError:
                    return None
                if data[6:12] == pcap.mac(MACS[0]) and data[12:14] == b"\x08\x06":
                    vlans = [struct.unpack_from("H", more, 16)[0] for level, kind, more in extra
                             if (level, kind) == (SOL_PACKET, PACKET_AUXDATA)]
                    return vlans[0] & 0xfff
            return None
        self.assertEqual(wait_for("a tagged answer", lambda: asked(b"\x81\x00\x00\x0a"), 60), 10)
        wire.settimeout(2)
        while asked(None):  # what was asked before may be answered late
            pass
        before = self.uplink()["counters"]["drop_vlan"]
        self.assertIsNone(asked(b""))
        self.assertIsNone(asked(b"\x81\x00\x00\x0b"))
        wait_for("both to be counted",
                 lambda: self.uplink()["counters"]["drop_vlan"] - before >= 2, 30)
        guest.must(f"ip addr replace {VLAN_GUEST}/24 dev {guest.nic}")
        sum_of_file = self.serve_file(VLAN_IP)
        for address in (NIC, IGB):
            if address != NIC:
                give(IGB, "vfio-pci")
                self.ask("uplink-remove", name="wire")
                self.daemon.millctl("add", "uplink", "name=wire", f"pci={IGB}", "trunk=10",
                                    "zero_copy=true")
            self.reach(guest, VLAN_IP)
            self.fetch(guest, sum_of_file, VLAN_IP)
            self.check_vlan_guest(guest)
        self.assertEqual(self.uplink()["counters"]["segmented"], 0)

    def test_igb_queues(self):
        """Flows from the wire spread over two queues, each on a reactor of its own; frames that
        come while nobody polls wake it by an interrupt."""
        give(IGB, "vfio-pci")
        self.daemon.reactors["cores"] = [0, 1]
        self.daemon.memory = {"dpdk_mb": 128}
        self.daemon.uplink("wire", pci=IGB, queues=2)
        (guest,) = self.guests(1)
        self.reach(guest)
        ends = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(ends.close)
        for port in range(6000, 6200):
            ends.sendto(b"flow", (IPS[0], port))

        def spread():
            queues = self.uplink()["queues"]
            return all(queue["received"] > 20 for queue in queues) and queues
        queues = wait_for("frames on both queues", spread, 30)
        self.assertEqual(len({queue["reactor"] for queue in queues}), 2)

        def woken():
            for port in range(7000, 7016):
                ends.sendto(b"wake", (IPS[0], port))
            return all(queue["interrupts"] for queue in self.uplink()["queues"])
        wait_for("an interrupt of each queue", woken, 60, 0.3)
        self.report(f"{self.uplink()['queues']}")

    def test_host_takes_it_back(self):
        """The host unbinds the function while it carries packets: it is released, guests go on
        among themselves, and it comes back by a command."""
        give(NIC, "vfio-pci")
        self.daemon.uplink("wire", pci=NIC)
        a, b = self.guests()
        for _ in range(2):
            self.reach(a)
            a.must(f"ping -i 0.01 -q {PEER_IP} >/dev/null 2>&1 & echo $! >/tmp/flood")
            with self.daemon.qmp(timeout=180) as events:
                run(["timeout", "60", "bash", "-c",
                     f"echo {NIC} >{FUNCTIONS}/{NIC}/driver/unbind"], timeout=90)
                self.assertIsNone(driver_of(NIC))
                wait_for("the uplink to be gone",
                         lambda: events("query-uplinks") == [], 30)
                said = [(event["event"], event["data"]["name"]) for event in events.events]
                self.assertEqual(said, [("UPLINK_LOST", "wire"), ("UPLINK_REMOVED", "wire")])
            a.must("kill $(cat /tmp/flood)")
            self.reach(a, IPS[1])
            give(NIC, "vfio-pci")
            self.ask("uplink-add", name="wire", pci=NIC)
        self.reach(b)

    def test_daemon_killed(self):
        """A daemon that dies leaves the function free for the next one."""
        give(IGB, "vfio-pci")
        self.daemon.uplink("wire", pci=IGB)
        (guest,) = self.guests(1)
        for _ in range(2):
            self.reach(guest)
            self.daemon.kill9()
            self.daemon.start()
        self.reach(guest)

    @long("memory of another kind")
    def test_hugepages(self):
        shell("echo 160 >/proc/sys/vm/nr_hugepages")
        self.addCleanup(shell, "echo 0 >/proc/sys/vm/nr_hugepages")
        give(NIC, "vfio-pci")
        self.daemon.memory = {"dpdk_hugepages": True, "dpdk_mb": 128}
        self.daemon.uplink("wire", pci=NIC)
        (guest,) = self.guests(1)
        free = int(shell("grep HugePages_Free /proc/meminfo | tr -dc 0-9"))
        self.assertLessEqual(free, 160 - 128 // 2)
        self.reach(guest)
        self.fetch(guest, self.serve_file())


class Single(Wire):
    """A virtual function hears its own address alone, so it serves one guest."""

    def setUp(self):
        super().setUp()
        at = f"{FUNCTIONS}/{PF}"
        self.pf = wait_for("the physical function's interface",
                           lambda: os.path.isdir(f"{at}/net") and os.listdir(f"{at}/net")[0], 30)
        if shell(f"cat {at}/sriov_numvfs") == "0":
            shell(f"ip link set {self.pf} up; echo 0 >{at}/sriov_drivers_autoprobe; "
                  f"echo 2 >{at}/sriov_numvfs")
        wait_for("the physical function's link",
                 lambda: shell(f"cat /sys/class/net/{self.pf}/carrier") == "1", 60)
        self.vf = os.path.basename(os.readlink(f"{at}/virtfn0"))

    def refusal(self, **keys):
        with self.assertRaises(QmpError) as refused:
            self.ask("uplink-add", name="wire", pci=self.vf, **keys)
        return str(refused.exception)

    def test_virtual_function(self):
        shell(f"ip link set {self.pf} vf 0 mac 52:54:00:00:00:77")
        give(self.vf, "vfio-pci")
        shell(f"ip addr replace 10.9.1.99/24 dev {self.pf}")
        socket_path = self.daemon.port("net-a", mac=MACS[0])
        self.use(self.daemon)
        self.assertIn("hears its own address 52:54:00:00:00:77 alone: it can serve one guest port",
                      self.refusal())
        self.assertIn("set the function's address first: ip link set PF vf N mac " + MACS[0],
                      self.refusal(mac=MACS[0]))
        shell(f"ip link set {self.pf} vf 0 mac {MACS[0]}")
        guest = self.use(Vmm(self.work, "a")).net(socket_path, MACS[0])
        self.ask("uplink-add", name="wire", pci=self.vf, mac=MACS[0])
        guest.start()
        scenes.address(guest, MACS[0], "10.9.1.1")
        self.reach(guest, "10.9.1.99")
        self.fetch_from(guest, "10.9.1.1")
        self.assertEqual(self.uplink()["driver"], "net_e1000_igb_vf")
        # Virtual functions are taken away while one is held: no write that blocks for ever.
        run(["timeout", "60", "bash", "-c", f"echo 0 >{FUNCTIONS}/{PF}/sriov_numvfs"], timeout=90)
        wait_for("the uplink to be gone", lambda: self.ask("query-uplinks") == [], 30)
        self.assertFalse(os.path.exists(f"{FUNCTIONS}/{self.vf}"))

    def test_function_from_the_pool(self):
        """The daemon makes the functions, lends one, gives it the guest's address, and has it back
        as it was."""
        shell(f"echo 0 >{FUNCTIONS}/{PF}/sriov_numvfs")
        shell(f"ip addr replace 10.9.1.99/24 dev {self.pf}")
        self.daemon.tables.append(("pf", {"pci": PF, "vfs": 2}))
        socket_path = self.daemon.port("net-a", mac=MACS[0])
        self.daemon.uplink("wire", pf=PF, mac=MACS[0])
        guest = self.use(Vmm(self.work, "a")).net(socket_path, MACS[0])
        self.use(self.daemon)
        guest.start()
        scenes.address(guest, MACS[0], "10.9.1.1")
        self.reach(guest, "10.9.1.99")
        self.assertEqual(self.uplink()["pf"], PF)
        functions = self.functions()
        self.assertEqual([each["lent_to"] for each in functions], ["uplink wire", ""], functions)
        self.assertEqual(functions[0]["mac"], MACS[0])
        self.daemon.ask("uplink-remove", name="wire")
        wait_for("the function to be given back", lambda: not self.functions()[0]["lent_to"], 60)
        before = self.functions()[0]["mac"]
        self.assertNotEqual(before, MACS[0])
        with self.assertRaises(QmpError) as refused:
            self.daemon.ask("uplink-add", name="wire", pf=NIC)
        self.assertIn("there is no [[pf]] with pci", str(refused.exception))
        self.daemon.ask("uplink-add", name="wire", pf=PF, mac=MACS[0])
        self.reach(guest, "10.9.1.99")
        self.check_killed(guest, before)

    def check_killed(self, guest, before):
        """A daemon that dies leaves the function that it had free, and the next one has it, whose
        address was `before`."""
        function = self.uplink()["device"]
        group = os.path.basename(os.readlink(f"{FUNCTIONS}/{function}/iommu_group"))
        self.daemon.kill9()
        self.assertEqual(driver_of(function), "vfio-pci")
        with open(f"/dev/vfio/{group}", "r+b", buffering=0):
            pass
        self.daemon.start()
        self.assertEqual([each["lent_to"] for each in self.functions()], ["uplink wire", ""])
        self.assertEqual(self.uplink()["device"], function)
        self.reach(guest, "10.9.1.99")
        self.fetch_from(guest, "10.9.1.1")
        # What the dead one had changed is not taken for what the function was before.
        kept = f"{self.daemon.control}.functions"
        self.assertTrue(os.path.exists(kept))
        self.assertEqual(self.functions()[0]["mac"], MACS[0])
        self.daemon.ask("uplink-remove", name="wire")
        self.assertEqual(self.functions()[0]["mac"], before)
        self.assertFalse(os.path.exists(kept))

    def functions(self):
        return self.daemon.ask("query-pfs")[0]["vfs"]


class Refused(Wire):
    """What cannot be an uplink costs one line, which says what to type."""

    def refusal(self, address):
        with self.assertRaises(QmpError) as refused:
            self.ask("uplink-add", name="wire", pci=address)
        return str(refused.exception)

    def test_tells_what_to_type(self):
        give(NIC, "e1000e")
        self.use(self.daemon)
        line = self.refusal(NIC)
        found = re.search(r"is driven by e1000e; give it to vfio-pci: (.*drivers_probe)", line)
        self.assertTrue(found, line)
        shell(found.group(1))
        self.assertEqual(driver_of(NIC), "vfio-pci")
        for _ in range(2):
            self.ask("uplink-add", name="wire", pci=NIC)
            self.assertIn("is an uplink already", self.other_refusal())
            self.ask("uplink-remove", name="wire")
        self.assertIn("there is no PCI function 0000:7f:00.0", self.refusal("0000:7f:00.0"))
        group = os.path.basename(os.readlink(f"{FUNCTIONS}/{NIC}/iommu_group"))
        with open(f"/dev/vfio/{group}", "r+b", buffering=0):
            self.assertIn(f"IOMMU group {group} of the PCI function {NIC} is held by process "
                          f"{os.getpid()} (", self.refusal(NIC))
        with self.assertRaisesRegex(QmpError, "net_e1000_em spreads no flows over queues, 2 are"):
            self.ask("uplink-add", name="wire", pci=NIC, queues=2)
        self.ask("uplink-add", name="wire", pci=NIC)
        self.ask("uplink-remove", name="wire")

    def other_refusal(self):
        with self.assertRaises(QmpError) as refused:
            self.ask("uplink-add", name="wire2", pci=NIC)
        return str(refused.exception)


if __name__ == "__main__":
    inside.main(memory_mb=4096, devices=DEVICES)
