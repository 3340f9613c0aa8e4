"""Virtual functions as uplinks, from the pool of a NIC that is on a wire with others: what becomes
of their data, and of their faults. Runs in the virtual host, whose emulator traces every write of
its NICs' DMA."""

import os
import re
import shlex
import shutil
import socket
import struct
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import test_uplink_direct
import test_uplink_failures
from tests.rig import inside, pcap, scenes, settings
from tests.rig.case import SystemTest
from tests.rig.pci import FUNCTIONS, give
from tests.rig.process import Child, run, wait_for
from tests.rig.qmp import QmpError
from tests.rig.vmm import Vmm

from test_uplink_failures import SPARE, WIRES, Holdings, Pinging, unbind
from test_uplink_pci import (IGB, IPS, MACS, PACKET_AUXDATA, PEER_IP, PF, SOL_PACKET, VLAN_GUEST,
                             VLAN_IP, shell)

TRACE = os.path.join(settings.build_folder(), "functions.trace")


class Functions(test_uplink_direct.DirectWire, test_uplink_failures.Failures):
    """IGB is the host's, and the daemon lends its functions."""

    def setUp(self):
        super().setUp()
        give(IGB, "igb")
        at = f"{FUNCTIONS}/{IGB}"
        self.pf = wait_for("the physical function's interface",
                           lambda: os.path.isdir(f"{at}/net") and os.listdir(f"{at}/net")[0], 30)
        shell(f"echo 0 >{at}/sriov_numvfs; ip link set {self.pf} up")
        self.vfs()

    def vfs(self, *values):
        """What its functions are to be: a list of tables as in [[pf.vf]]."""
        self.daemon.tables = [each for each in self.daemon.tables if each[0] != "pf"]
        self.daemon.tables.append(("pf", {"pci": IGB, "vfs": 2, "vf": list(values)}))

    def lent(self):
        return [each["lent_to"] for each in self.daemon.ask("query-pfs")[0]["vfs"]]


class Direct(Functions):
    def test_dma_and_another_function(self):
        """Frames of a file are written into the guest's memory by its virtual function, and are
        right; the host takes the function, and the next one does the same. By its name the first of
        the boot, so that all of the trace is its own."""
        guest = self.serve(pf=IGB)
        self.assertEqual(self.uplink()["driver"], "net_e1000_igb_vf")
        wanted = self.serve_file()
        before = self.counted()
        self.fetch(guest, wanted)
        self.check_dma(before, TRACE)
        self.check_replaced(guest, wanted)

    def check_replaced(self, guest, wanted):
        first = self.uplink()["device"]
        self.assertEqual(self.lent(), ["uplink wire", ""])
        self.flood()
        unbind(first)
        found = self.until("another function", losses=1, state="running", carries=True)
        self.assertNotEqual(found["device"], first)
        self.assertEqual(self.lent(), ["", "uplink wire"])
        self.until_direct(guest)
        self.fetch(guest, wanted)
        self.fetch_from(guest, IPS[0])


    def test_vlan(self):
        """The same in a VLAN that the function asks for. It is asked for again when the function is
        started again, and of another one."""
        guest = self.check_vlan(pf=IGB)
        self.rebind(guest)
        guest.must(f"ip addr replace {VLAN_GUEST}/24 dev {guest.nic}")
        self.until_direct(guest, VLAN_IP)
        unbind(self.uplink()["device"])
        self.until("another function", losses=1, state="running", carries=True)
        self.until_direct(guest, VLAN_IP)


class InVlans(Functions):
    def test_tags(self):
        """A function that many ports share hears of the uplink's VLANs, those of ports that come
        later, too."""
        self.daemon.memory = {"dpdk_mb": 128}
        self.daemon.uplink("wire", pf=IGB, mac=MACS[0], trunk=[10, 20])
        self.use(self.daemon)
        self.until("its link", link_up=True)
        self.check_offloads(self.exchange(MACS[0]), "checksum checksum_check tso "
                            "vlan_filter vlan_insert vlan_strip")
        with self.assertRaisesRegex(QmpError, r"can be in 31 VLANs, trunk has 40"):
            self.ask("uplink-add", name="wire2", pf=IGB, mac=MACS[1], trunk=list(range(100, 140)))


class Pair(Functions):
    """Two guests with a function each, which the functions alone join."""

    def setUp(self):
        super().setUp()
        self.daemon.memory = {"dpdk_mb": 128}
        self.vfs({"index": 0, "vlan": 10}, {"index": 1, "vlan": 10})
        self.both = []
        for name, mac in zip("ab", MACS):
            path = self.daemon.port(f"net-{name}", mac=mac, direct=f"wire-{name}")
            self.daemon.uplink(f"wire-{name}", pf=IGB, mac=mac)
            self.both.append(self.use(Vmm(self.work, name)).net(path, mac))
        self.use(self.daemon)
        for guest in self.both:
            guest.start(wait=False)
        for guest, mac, ip in zip(self.both, MACS, IPS):
            guest.wait_ready()
            guest.nic = scenes.address(guest, mac, ip)

    def test_guest_to_guest(self):
        """By the NIC's own switch, past ours, in the VLAN that it gives them: frames of all sizes,
        and files to the byte, both ways. The wire has them tagged."""
        a, b = self.both
        for guest, ip in ((a, IPS[1]), (b, IPS[0])):
            self.reach(guest, ip)
            for size in (0, 18, 19, 500, 1471, 1472):
                guest.must(f"ping -c 2 -i 0.1 -s {size} -W 5 {ip}")
        self.assertEqual(self.lent(), ["uplink wire-a", "uplink wire-b"])
        for sender, receiver, ip in ((a, b, IPS[0]), (b, a, IPS[1])):
            scenes.checked_transfer(sender, receiver, ip, 4)
        for port in self.ask("query-ports"):
            self.assertGreater(port["counters"]["direct_rx_zero_copy_bytes"], 2 << 20, port)
        self.check_tagged(a)

    def check_tagged(self, guest):
        """What the guest asks everybody."""
        wire = self.use(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        wire.bind((self.peer, 0))
        wire.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        wire.settimeout(20)
        self.assertNotEqual(guest.run(f"ping -c 2 -W 1 {PEER_IP}")[0], 0)
        for _ in range(1000):
            data, extra, _, _ = wire.recvmsg(2048, 64)
            if data[6:12] == pcap.mac(MACS[0]):
                break
        vlans = [struct.unpack_from("H", more, 16)[0] & 0xfff for level, kind, more in extra
                 if (level, kind) == (SOL_PACKET, PACKET_AUXDATA)]
        self.assertEqual((data[6:12], vlans), (pcap.mac(MACS[0]), [10]))


class WithStandby(Functions):
    """A guest on a function, and another NIC that carries while the function cannot."""

    MEMORY = {"dpdk_mb": 128}

    def setUp(self):
        super().setUp()
        give(SPARE, "vfio-pci")
        self.daemon.memory = self.MEMORY
        path = self.daemon.port("net-a", mac=MACS[0], follow_uplink="first")
        self.daemon.uplink("first", pf=IGB, mac=MACS[0], standby="second")
        self.daemon.uplink("second", pci=SPARE)
        self.guest = self.use(Vmm(self.work, "a")).net(path, MACS[0])
        self.use(self.daemon)
        self.guest.start()
        self.guest.nic = scenes.address(self.guest, MACS[0], IPS[0])
        self.reach(self.guest)

    def taken(self):
        """The host takes the function: the pool has another one."""
        unbind(self.one("first")["device"])

    def reset(self):
        """What the kernel's driver does not notice by itself."""
        shell(f"echo 1 >{FUNCTIONS}/{IGB}/reset")
        shell(f"ip link set {self.pf} down; ip link set {self.pf} up")

    def error(self):
        self.fault("rp1")

    def flap(self):
        self.monitor(f"set_link {WIRES[IGB]} off")

    def mend(self):
        self.monitor(f"set_link {WIRES[IGB]} on")

    def gap(self, events):
        """Seconds from the first's loss to the second's work, as the daemon has noted them."""
        def time_of(event):
            stamp = event["timestamp"]
            return stamp["seconds"] + stamp["microseconds"] / 1e6
        began = ended = None
        for event in events:
            kind, data = event["event"], event["data"]
            lost = kind == "UPLINK_LOST" or kind == "UPLINK_LINK" and not data["up"]
            if lost and data["name"] == "first" and began is None:
                began = time_of(event)
            if kind == "UPLINK_ACTIVE" and data["name"] == "second" and ended is None:
                ended = time_of(event)
        return ended - began


class Standby(WithStandby):
    def test_again_and_again(self):
        """Whatever becomes of the function, again and again under traffic: the other NIC carries
        within a second of the daemon's hearing of it, and the function, or another, at last."""
        pings, holdings = Pinging(self.guest, PEER_IP), Holdings(self.daemon)
        first = holdings()
        changes = self.guest.must(f"cat /sys/class/net/{self.guest.nic}/carrier_changes")
        faults, gaps = [self.flap, self.taken, self.error, self.reset], []
        for fault in faults:
            with self.daemon.qmp(timeout=120) as qmp:
                fault()
                wait_for("the second to carry", lambda: any(
                    data["name"] == "second" for _, data in self.said(qmp, "UPLINK_ACTIVE")), 90,
                    0.2)
                gaps.append(self.gap(qmp.events))
            pings.more(3)
            self.mend()
            self.until("the first to carry", "first", state="running", carries=True, link_up=True,
                       problem=None)
            self.assertFalse(self.one("second")["carries"])
            pings.more(3)
        self.assertLess(max(gaps), 1, gaps)
        self.assertEqual(holdings.settled_as(first), first)
        self.assertEqual(self.guest.must(f"cat /sys/class/net/{self.guest.nic}/carrier_changes"),
                         changes)
        sent, received = pings.end()
        self.report(f"the longest gap: {max(gaps):.3f} s; {sent - received} of {sent} pings were "
                    "lost, 10 a second")
        self.fetch_from(self.guest, IPS[0])


class Unanswering(Functions):
    def test_control_goes_on(self):
        """A fatal error on the bus of the physical function: its functions do not come back, their
        driver and the kernel wait for them for minutes. Control answers all the while, the standby
        carries, ports come and go. By its name the last of the boot: the NIC stays broken."""
        give(SPARE, "vfio-pci")
        self.daemon.memory = {"dpdk_mb": 128}
        self.daemon.uplink("first", pf=IGB, mac=MACS[0], standby="second")
        self.daemon.uplink("second", pci=SPARE)
        self.use(self.daemon)
        self.until("its link", "first", link_up=True, carries=True)
        self.fault("rp1", "DLP")
        self.until("the second to carry", "second", carries=True)
        self.until("the first to be closed", "first", state="closing")
        self.assertIn("closing", self.daemon.millctl("uplinks").stdout)
        # Each answer that says so came before the device was closed.
        for _ in range(20):
            self.ask("port-add", name="probe", socket=self.daemon.socket("probe"))
            self.ask("port-remove", name="probe")
            self.ask("query-status")
            self.assertEqual(self.one("first")["state"], "closing")
        self.assertTrue(self.one("second")["carries"])
        wait_for("the log to say so", lambda: re.search(
            "uplink first closes 0000:02:.*: waits for the device, for", self.daemon.log()), 60)
        with self.daemon.qmp(timeout=250) as qmp:
            qmp("uplink-remove", name="first")
        self.assertEqual([each["name"] for each in self.ask("query-uplinks")], ["second"])


class Readme(SystemTest):
    """The commands that README.md has for a guest on a virtual function, word for word, in a folder
    where all that they name is."""

    def commands(self):
        """What is looked at and written, the daemon's command, and the guest's."""
        with open(os.path.join(settings.SOURCE, "README.md")) as file:
            text = file.read()
        block = text.split("From `lspci` to a guest on one:")[1].split("```")[1]
        look, daemon = block.split("build/millraced ")
        daemon, guest = daemon.split("&\nbuild/millrace-vmm ")
        return look, f"build/millraced {daemon}", f"build/millrace-vmm {guest.strip()}"

    def test_guest_on_a_function(self):
        guest = Vmm(self.work, "web0")
        for name, target in (("build", settings.build_folder()), ("vmlinuz", guest.command[2]),
                             ("initrd.img", guest.command[4])):
            os.symlink(target, self.work / name)
        within = f"cd {self.work.path} && exec "
        look, daemon, start = self.commands()
        said = run(["bash", "-c", f"cd {self.work.path}\n{look}"], check=False).stdout
        if shutil.which("lspci"):
            self.assertRegex(said, f"(?m)^{PF} Ethernet controller")
        self.assertRegex(said, rf"(?m)^ok +{PF}: .*7 virtual functions at most")
        self.use(Child(["bash", "-c", within + daemon], str(self.work / "mill.log")))
        wait_for("the guest's socket", lambda: os.path.exists("/run/millrace/web0.sock"), 60)
        more = shlex.join(["--console", guest.path("console"), "--second-console",
                           f"socket:{guest.path('agent')}"])
        guest.command = ["bash", "-c", f"{within}{start} {more}"]
        self.use(guest).start()
        host = os.listdir(f"{FUNCTIONS}/{PF}/net")[0]
        shell(f"ip addr replace 10.9.1.99/24 dev {host}")
        scenes.address(guest, MACS[0], "10.9.1.1")
        self.assertGreaterEqual(scenes.ping(guest, "10.9.1.99"), 3)
        uplinks = run([settings.program("millctl"), "uplinks"]).stdout
        self.assertRegex(uplinks, r"wire .*0000:01:10\.")


if __name__ == "__main__":
    inside.main(memory_mb=4096, devices=test_uplink_failures.devices() + [
        "-trace", "igb_rx_desc_buff_write", "-D", TRACE])
