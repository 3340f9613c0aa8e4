"""Uplinks whose link, device or function goes: they say so, have it again, and others carry in
their place meanwhile. Runs in the virtual host, whose emulator makes the faults: its monitor is at
the other end of a serial port of the virtual host's own."""

import atexit
import contextlib
import glob
import json
import mmap
import os
import re
import select
import shutil
import sys
import tempfile
import time
import tty

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import test_uplink_pci
from tests.rig import inside, pcap, scenes
from tests.rig.case import long
from tests.rig.pci import FUNCTIONS, driver_of, give
from tests.rig.process import RigError, run, wait_for
from tests.rig.qmp import QmpError
from tests.rig.vmm import Vmm

from test_uplink_pci import IGB, IPS, MACS, NIC, PEER_IP, PF, shell
from test_uplink_standby import RARP, Listener

SPARE = "0000:03:00.0"
# What the emulator's monitor calls their wires.
WIRES = {NIC: "wire0", IGB: "wire2", SPARE: "wire3"}
EXPERIMENTAL = 0x88b5  # IEEE 802: nobody's protocol
RDBAL = 0x2800  # of the e1000e; RDBAH follows


def monitor():
    """QEMU's arguments for what Monitor is inside."""
    folder = tempfile.mkdtemp(prefix="millrace-monitor-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    at = f"{folder}/monitor"
    return ["-chardev", f"socket,id=monitor,path={at},server=on,wait=off",
            "-mon", "chardev=monitor,mode=control", "-chardev", f"socket,id=serial,path={at}",
            "-device", "pci-serial,chardev=serial,addr=14.0"]


def devices():
    """The NICs of test_uplink_pci, one more behind a root port of its own, and the monitor."""
    return test_uplink_pci.DEVICES + [
        "-device", "pcie-root-port,id=rp2,chassis=3,slot=3,addr=13.0",
        "-netdev", "hubport,id=wire3,hubid=1",
        "-device", "igb,bus=rp2,netdev=wire3,mac=52:54:00:77:00:03"] + monitor()


def unbind(address):
    """Answers when whoever had the function has given it back."""
    run(["timeout", "60", "bash", "-c", f"echo {address} >{FUNCTIONS}/{address}/driver/unbind"],
        timeout=90)


class Monitor:
    """The emulator's monitor, from inside. A context manager."""

    def __init__(self):
        (found,) = glob.glob(f"{FUNCTIONS}/0000:00:14.0/tty/*")
        self.fd = os.open(f"/dev/{os.path.basename(found)}", os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self.fd)
        self.rest = b""
        # What it said when nobody listened is gone in part, and was echoed in part: 0xff begins
        # anew.
        os.write(self.fd, b"\xff\n")
        # In command mode once only: the second time is an error, which has no id.
        self._send({"execute": "qmp_capabilities"})
        self("info version")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.fd)

    def __call__(self, line, timeout=60):
        """A line of the human monitor's. Answers what it said."""
        self._send({"execute": "human-monitor-command", "arguments": {"command-line": line},
                    "id": line})
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            answer = self._line(deadline)
            with contextlib.suppress(ValueError):
                said = json.loads(answer)
                if said.get("id") == line:
                    if "error" in said:
                        raise RigError(f"the monitor refuses {line}: {said['error']}")
                    return said["return"]
        raise RigError(f"the monitor does not answer {line}")

    def _send(self, command):
        os.write(self.fd, json.dumps(command).encode() + b"\n")

    def _line(self, deadline):
        while b"\n" not in self.rest:
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise RigError("the monitor says nothing")
            self.rest += os.read(self.fd, 4096)
        line, self.rest = self.rest.split(b"\n", 1)
        return line.decode(errors="replace")


class Pinging:
    """A guest that pings all the while."""

    def __init__(self, guest, ip, interval=0.1):
        self.guest, self.file, self.interval = guest, f"/tmp/ping-{ip}", interval
        guest.must(f"ping -i {interval} -W 1 {ip} >{self.file} 2>&1 & echo $! >{self.file}.pid")

    def replies(self):
        return int(self.guest.must(f"grep -c 'bytes from' {self.file} || true"))

    def more(self, count=10):
        """Waits for that many replies more."""
        before = self.replies()
        wait_for("more replies", lambda: self.replies() >= before + count, 90, 0.5)

    def longest_silence(self):
        """In seconds, by the numbers of the replies so far."""
        # Half an hour of them is a megabyte, which takes minutes over a serial port.
        most = self.guest.must(
            "awk -F'seq=' 'NF > 1 { if (seen++ && $2 - last > most) most = $2 - last; "
            f"last = $2 + 0 }} END {{ print most + 0 }}' {self.file}")
        return max(int(most) - 1, 0) * self.interval

    def end(self):
        """Answers (sent, received)."""
        self.guest.must(f"kill -INT $(cat {self.file}.pid); sleep 1")
        text = self.guest.must(f"tail -n 4 {self.file}")
        found = re.search(r"(\d+) packets transmitted, (\d+) packets received", text)
        return int(found.group(1)), int(found.group(2))


class Failures(test_uplink_pci.Wire):
    def setUp(self):
        super().setUp()
        self.monitor = self.use(Monitor())
        for wire in WIRES.values():
            self.monitor(f"set_link {wire} on")

    def pair(self, **keys):
        """Two guests; keys are those of the first one's port. The daemon is started."""
        guests = []
        for name, mac in zip("ab", MACS):
            path = self.daemon.port(f"net-{name}", mac=mac, **(keys if name == "a" else {}))
            guests.append(self.use(Vmm(self.work, name)).net(path, mac))
        self.use(self.daemon)
        for guest in guests:
            guest.start(wait=False)
        for guest, mac, ip in zip(guests, MACS, IPS):
            guest.wait_ready()
            guest.nic = scenes.address(guest, mac, ip)
        return guests

    def one(self, name="wire"):
        (found,) = [each for each in self.ask("query-uplinks") if each["name"] == name]
        return found

    def until(self, what, name="wire", **wanted):
        """Waits until status says so of that uplink. Answers it."""
        def seen():
            uplink = self.one(name)
            return uplink if all(uplink.get(k) == v for k, v in wanted.items()) else None
        return wait_for(what, seen, 90, 0.1)

    def events(self):
        return self.use(self.daemon.qmp(timeout=120))

    def said(self, qmp, *names):
        """The events of those names so far, as (name, data)."""
        qmp("query-version")  # what was sent before it is here
        return [(event["event"], event["data"]) for event in qmp.events
                if event["event"] in names]

    def shout(self):
        """A frame from the wire's other end to everybody."""
        with Listener(self.peer, EXPERIMENTAL) as peer:
            own = peer.socket.getsockname()[4]
            peer.socket.send(b"\xff" * 6 + own + EXPERIMENTAL.to_bytes(2, "big") + bytes(46))

    def fault(self, name, kind="COMP_TIME"):
        """A completion that a device waited for in vain. DLP is a fatal one: the kernel resets the
        bus."""
        self.monitor(f"pcie_aer_inject_error {name} {kind}")


class Alone(Failures):
    """Uplinks without guests, the quick part: what becomes of the device, and whether frames go
    both ways afterwards."""

    def setUp(self):
        super().setUp()
        self.daemon.port("net-a", mac=MACS[0], follow_uplink="first")
        self.rarps = self.use(Listener(self.peer, RARP))

    def heard(self, name):
        """The guest's address was announced to the wire, and frames of the wire come in."""
        wait_for("the guest's address on the wire",
                 lambda: pcap.mac(MACS[0]) in self.rarps.sources(), 60, 0.2)

        def received():
            return self.one(name)["counters"]["tx_packets"]
        before = received()

        def more():
            self.shout()
            return received() > before
        wait_for("frames from the wire", more, 60, 0.2)

    def start(self, **keys):
        give(IGB, "vfio-pci")
        self.daemon.uplink("first", pci=IGB, **keys)
        self.use(self.daemon)
        self.until("its link", "first", link_up=True, carries=True)
        return self.events()

    def test_link(self):
        """A NIC whose driver knows no interrupt of its link: it is seen all the same."""
        give(NIC, "vfio-pci")
        self.daemon.uplink("first", pci=NIC)
        self.use(self.daemon)
        self.until("its link", "first", link_up=True, speed_mbps=1000)
        qmp = self.events()
        for state, speed in (("off", 0), ("on", 1000)):
            self.monitor(f"set_link {WIRES[NIC]} {state}")
            self.until(f"its link to be {state}", "first", link_up=state == "on", speed_mbps=speed)
            wait_for("the port to follow", lambda: self.daemon.ask("query-ports")[0]["link_up"]
                     == (state == "on"), 30, 0.1)
        self.assertEqual(self.said(qmp, "UPLINK_LINK", "PORT_LINK"), [
            ("UPLINK_LINK", {"name": "first", "up": False, "speed_mbps": 0}),
            ("PORT_LINK", {"name": "net-a", "up": False}),
            ("UPLINK_LINK", {"name": "first", "up": True, "speed_mbps": 1000}),
            ("PORT_LINK", {"name": "net-a", "up": True})])
        self.heard("first")

    def test_errors(self):
        """The kernel tells of one: the function is reset, and the uplink carries again by itself.
        At a fatal one the kernel resets the bus, and the driver may be in the midst of a call."""
        qmp = self.start()
        for losses, kind in enumerate(("COMP_TIME", "DLP"), 1):
            self.rarps.sources()
            self.fault("rp1", kind)
            self.until("the device to be back", "first", losses=losses, state="running",
                       carries=True, link_up=True, problem=None)
            self.heard("first")
        names = [name for name, _ in self.said(qmp, "UPLINK_LOST", "UPLINK_RESTORED",
                                               "UPLINK_ACTIVE", "UPLINK_REMOVED")]
        self.assertEqual(names, ["UPLINK_LOST", "UPLINK_RESTORED", "UPLINK_ACTIVE"] * 2)

    @long("again and again under traffic below")
    def test_standby(self):
        """The second carries while the first has no link, an error, no function; and announces."""
        give(SPARE, "vfio-pci")
        self.daemon.memory = {"dpdk_mb": 128}
        self.daemon.uplink("second", pci=SPARE)
        self.start(standby="second")

        def unlink():
            self.monitor(f"set_link {WIRES[IGB]} off")

        for fault, mend in (
                (unlink, lambda: self.monitor(f"set_link {WIRES[IGB]} on")),
                (lambda: self.fault("rp1"), lambda: None),
                (lambda: unbind(IGB), lambda: give(IGB, "vfio-pci"))):
            self.until("the link of the second", "second", link_up=True)
            self.rarps.sources()
            qmp = self.use(self.daemon.qmp(timeout=120))
            fault()
            wait_for("the second to carry", lambda: ("UPLINK_ACTIVE", {
                "name": "second", "device": SPARE}) in self.said(qmp, "UPLINK_ACTIVE"), 90, 0.2)
            if fault is not unlink:
                self.assertTrue(self.said(qmp, "UPLINK_LOST"))
            self.assertTrue(self.daemon.ask("query-ports")[0]["link_up"])
            mend()
            self.until("the first to carry", "first", state="running", carries=True, problem=None)
            self.assertFalse(self.one("second")["carries"])
            self.heard("first")


class Guests(Failures):
    """What guests see of the one uplink that they have."""

    def check_link(self, a, b):
        qmp = self.events()

        def carriers():
            return [each.must(f"cat /sys/class/net/{each.nic}/carrier") for each in (a, b)]

        def until_said(said):  # the kernel's state follows its carrier within a second
            wait_for("the interface's state", lambda: said == (
                "NO-CARRIER" in a.must(f"ip link show {a.nic}")), 30)
        self.assertEqual(carriers(), ["1", "1"])
        self.monitor(f"set_link {WIRES[IGB]} off")
        self.until("the link to be gone", link_up=False, speed_mbps=0)
        wait_for("the guest to hear of it", lambda: carriers() == ["0", "1"], 60)
        until_said(True)
        self.assertNotIn("NO-CARRIER", b.must(f"ip link show {b.nic}"))
        self.assertFalse(self.daemon.ask("query-ports")[0]["link_up"])
        self.monitor(f"set_link {WIRES[IGB]} on")
        self.until("the link to be there", link_up=True, speed_mbps=1000)
        wait_for("the guest to hear of it", lambda: carriers() == ["1", "1"], 60)
        until_said(False)
        self.reach(a)
        self.assertEqual([data["up"] for _, data in self.said(qmp, "UPLINK_LINK")], [False, True])
        ports = [(data["name"], data["up"]) for _, data in self.said(qmp, "PORT_LINK")]
        self.assertEqual(ports, [("net-a", False), ("net-a", True)])
        self.assertIn("wire", self.daemon.millctl("uplinks").stdout)

    def check_errors(self, a, b):
        """On the way to the device: it is released, reset, and carries again by itself."""
        outwards = Pinging(b, PEER_IP)
        for losses, kind in enumerate(("COMP_TIME", "DLP"), 1):
            outwards.more()
            self.fault("rp1", kind)
            self.until("the device to be back", losses=losses, state="running", carries=True,
                       link_up=True, problem=None)
            outwards.more()
        sent, received = outwards.end()
        self.report(f"{sent - received} of {sent} pings through the device were lost")
        self.reach(a)
        a.must(f"ping -c 2 {IPS[1]}")

    def test_link_and_errors(self):
        give(IGB, "vfio-pci")
        self.daemon.uplink("wire", pci=IGB)
        a, b = self.pair(follow_uplink="wire")
        self.reach(a)
        self.check_link(a, b)
        self.check_errors(a, b)


class Holdings:
    """What the daemon holds of the machine, and what that has of IOMMU groups."""

    def __init__(self, daemon):
        self.process = f"/proc/{daemon.process.pid}"

    def memory(self):
        """(mappings, kB of its own): an allocator's matter in part, so not the same to the last."""
        with open(f"{self.process}/maps") as file:
            mappings = len(file.readlines())
        with open(f"{self.process}/status") as file:
            return mappings, int(re.search(r"RssAnon:\s+(\d+)", file.read()).group(1))

    def __call__(self):
        held = {"descriptors": 0, "vfio": 0}
        for name in os.listdir(f"{self.process}/fd"):
            with contextlib.suppress(FileNotFoundError):
                held["descriptors"] += 1
                held["vfio"] += "vfio" in os.readlink(f"{self.process}/fd/{name}")
        held["threads"] = len(os.listdir(f"{self.process}/task"))
        held["groups"] = len(os.listdir("/sys/kernel/iommu_groups"))
        held["huge pages"] = int(shell("grep HugePages_Free /proc/meminfo | tr -dc 0-9"))
        with open(f"{self.process}/status") as file:
            held["locked kB"] = int(re.search(r"VmLck:\s+(\d+)", file.read()).group(1))
        return held

    def settled_as(self, before):
        """Whether it holds what it held, once what is on its way out is gone; else what it does."""
        with contextlib.suppress(RigError):  # a connection of ours may be on its way out
            wait_for("as much as before", lambda: self() == before, 20)
        return self()


def cycles(few=5):
    """At least one of each fault."""
    return 100 if os.environ.get("MILLRACE_FULL") else few


class Standby(Failures):
    """Another uplink carries while the first cannot."""

    def setUp(self):
        super().setUp()
        give(IGB, "vfio-pci")
        give(SPARE, "vfio-pci")
        self.daemon.memory = {"dpdk_mb": 128}
        self.daemon.uplink("first", pci=IGB, standby="second")
        self.daemon.uplink("second", pci=SPARE)

    def carries(self, name):
        other = {"first": "second", "second": "first"}[name]
        found = self.until(f"{name} to carry", name, carries=True)
        self.assertFalse(self.one(other).get("carries"))
        return found

    def losses(self):
        return sum(each["losses"] for each in self.ask("query-uplinks"))

    def flap(self):
        """The network hears where the guests are."""
        self.rarps.sources()
        self.monitor(f"set_link {WIRES[IGB]} off")
        self.carries("second")
        self.outwards.more()
        heard = self.rarps.sources()
        self.assertTrue({pcap.mac(mac) for mac in MACS} <= heard, heard)
        self.assertEqual(self.one("first")["state"], "running")
        self.monitor(f"set_link {WIRES[IGB]} on")

    def taken(self):
        unbind(IGB)
        self.assertIsNone(driver_of(IGB))
        self.carries("second")
        self.outwards.more(3)
        self.assertRegex(self.until("the first to say why", "first", state="lost")["problem"],
                         "has no driver|wants it back")
        give(IGB, "vfio-pci")

    def error(self, port, kind="COMP_TIME"):
        losses = self.losses()
        self.fault(port, kind)
        wait_for("the loss to be noticed", lambda: self.losses() > losses, 60, 0.1)

    def test_again_and_again(self):
        """Whatever goes, again and again under traffic: the pair is back each time, the guests
        keep their links, nothing of the daemon's is left over."""
        a, b = self.pair(follow_uplink="first")
        self.carries("first")
        for guest in (a, b):
            self.reach(guest)
        self.outwards, neighbours = Pinging(a, PEER_IP), Pinging(a, IPS[1])
        self.rarps = self.use(Listener(self.peer, RARP))
        changes = a.must(f"cat /sys/class/net/{a.nic}/carrier_changes")
        holdings = Holdings(self.daemon)
        first = holdings()
        faults = [self.flap, self.taken, lambda: self.error("rp1"), lambda: self.error("rp2"),
                  lambda: self.error("rp1", "DLP")]
        for number in range(cycles()):
            faults[number % len(faults)]()
            for name in ("first", "second"):
                self.until(f"{name} to be back", name, state="running", link_up=True, problem=None)
            self.carries("first")
            self.outwards.more(3)
            if number % 10 == 9:
                self.report(f"{number + 1} cycles, {holdings()}")
        self.assertEqual(holdings.settled_as(first), first)
        self.assertEqual(a.must(f"cat /sys/class/net/{a.nic}/carrier_changes"), changes,
                         "the guest lost its link, and one of the two had one all the time")
        sent, received = self.outwards.end()
        self.report(f"{cycles()} faults: {sent - received} of {sent} pings were lost, 10 a second")
        sent, received = neighbours.end()
        self.assertLessEqual(sent - received, 1, "guests among themselves noticed")


class Pool(Failures):
    """A virtual function that is lost: another one of its physical function's is taken."""

    def setUp(self):
        super().setUp()
        at = f"{FUNCTIONS}/{PF}"
        self.pf = wait_for("the physical function's interface",
                           lambda: os.path.isdir(f"{at}/net") and os.listdir(f"{at}/net")[0], 30)
        shell(f"ip link set {self.pf} up; echo 0 >{at}/sriov_numvfs; "
              f"ip addr replace 10.9.1.99/24 dev {self.pf}")
        self.daemon.tables.append(("pf", {"pci": PF, "vfs": 2}))
        path = self.daemon.port("net-a", mac=MACS[0])
        self.daemon.uplink("wire", pf=PF, mac=MACS[0])
        self.guest = self.use(Vmm(self.work, "a")).net(path, MACS[0])
        self.use(self.daemon)
        self.guest.start()
        scenes.address(self.guest, MACS[0], "10.9.1.1")
        self.reach(self.guest, "10.9.1.99")

    def lent(self):
        return [each["lent_to"] for each in self.daemon.ask("query-pfs")[0]["vfs"]]

    def test_function_is_replaced(self):
        """The host takes the function: another one is lent. The physical function is reset, and
        its functions lose what they were told: ours is opened anew."""
        self.assertEqual(self.lent(), ["uplink wire", ""])
        with self.assertRaisesRegex(QmpError, "it has a VF of the same PF as wire: none can be the "
                                              "other's standby"):
            self.ask("uplink-add", name="other", pf=PF, mac=MACS[1], standby="wire")
        pings = Pinging(self.guest, "10.9.1.99")
        first = self.one()["device"]
        unbind(first)
        found = self.until("another function", losses=1, state="running", carries=True)
        self.assertNotEqual(found["device"], first)
        self.assertEqual(self.lent(), ["", "uplink wire"])
        pings.more()
        shell(f"ip link set {self.pf} down; sleep 0.5; ip link set {self.pf} up")
        pings.more()
        self.assertEqual(self.one()["state"], "running")
        sent, received = pings.end()
        self.report(f"{sent - received} of {sent} pings at 10 a second were lost")


class Stray(Failures):
    def test_dma_to_nowhere(self):
        """A device that begins to use addresses that nobody gave it: the IOMMU stops it, the
        kernel says so, the daemon and its other device go on."""
        for address in (NIC, IGB):
            give(address, "vfio-pci")
        self.daemon.memory = {"dpdk_mb": 128}
        self.daemon.uplink("stray", pci=NIC)
        (a,) = self.guests(1)
        self.reach(a)
        before = shell("dmesg | grep -c 'DMAR:.*Request device' || true")
        with open(f"{FUNCTIONS}/{NIC}/resource0", "r+b", buffering=0) as file:
            registers = memoryview(mmap.mmap(file.fileno(), 0x20000)).cast("I")
        # Intel 82574, 10.2.5.4 and following: where its receive ring lies. Behind the last address
        # that anything was mapped at.
        registers[RDBAL // 4], registers[RDBAL // 4 + 1] = 0xdead0000, 0x7f
        registers.release()

        def said():
            self.shout()
            return shell(f"dmesg | grep 'DMAR:.*Request device .{NIC[5:]}.' | tail -n 1")
        seen = wait_for("the fault in the kernel's log", said, 60, 1)
        self.assertNotEqual(before, shell("dmesg | grep -c 'DMAR:.*Request device' || true"))
        self.assertIn("0x7fdead0", seen)
        self.report(seen)
        self.assertEqual(self.one("stray")["state"], "running")
        self.ask("uplink-remove", name="stray")
        self.ask("uplink-add", name="other", pci=IGB)
        self.reach(a)


if __name__ == "__main__":
    # 100 cycles take most of the time. Relaxed: the stray device's registers are the daemon's, and
    # this test's.
    inside.main(memory_mb=4096, devices=devices(), timeout=2300, append="iomem=relaxed")
