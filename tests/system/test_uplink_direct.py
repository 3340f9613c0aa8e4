"""Direct ports: what a NIC's function receives lands by its own DMA in the buffers of the guest
that it serves. Runs in the virtual host; its emulator traces every write of its NICs' DMA."""

import contextlib
import mmap
import os
import re
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import test_uplink_failures
import test_uplink_pci
from tests.rig import inside, scenes, settings, tags
from tests.rig.case import long
from tests.rig.pci import FUNCTIONS, give
from tests.rig.process import wait_for
from tests.rig.qmp import QmpError

from test_uplink_pci import IGB, IPS, MACS, PEER_IP, PF, VLAN_GUEST, VLAN_IP, shell

RDBAL = 0xc000  # Intel 82576, 8.10.5: where the first receive ring lies; RDBAH follows
TRACE = os.path.join(settings.build_folder(), "direct.trace")


def writes(trace):
    """(address, bytes) of each write of received data by an igb's DMA in this boot. To be looked at
    once: the virtual host's view of the file does not grow after that."""
    with open(trace, errors="replace") as file:
        for found in re.finditer(r"igb_rx_desc_buff_write .*?addr: 0x([0-9a-f]+), offset: (\d+),"
                                 r".*?length: (\d+)", file.read()):
            yield int(found.group(1), 16) + int(found.group(2)), int(found.group(3))


class DirectWire(test_uplink_pci.Tagged):
    def serve(self, ip=PEER_IP, **uplink):
        self.daemon.uplink("wire", mac=MACS[0], **uplink)
        (guest,) = self.guests(1, direct="wire")
        guest.must(f"ip addr add 10.9.1.1/24 dev {guest.nic}")
        self.until_direct(guest, ip)
        return guest

    def serve_igb(self):
        give(IGB, "vfio-pci")
        return self.serve(pci=IGB)

    def check_vlan(self, **uplink):
        """The wire has tags, the guest is in one of its VLANs: the function takes them off and
        puts them on, nothing is copied, and what is of another VLAN is not the guest's."""
        self.daemon.uplink("wire", mac=MACS[0], trunk=[10, 20], **uplink)
        (guest,) = self.guests(1, direct="wire", vlan=10)
        guest.must(f"ip addr replace {VLAN_GUEST}/24 dev {guest.nic}")
        self.until_direct(guest, VLAN_IP)
        before = self.counted()
        wanted = self.serve_file(VLAN_IP)
        self.fetch(guest, wanted, VLAN_IP)
        after = self.counted()
        self.assertGreater(after["direct_rx_zero_copy_bytes"] -
                           before["direct_rx_zero_copy_bytes"], 4 << 20)
        self.assertEqual({key: after[key] - before[key] for key in after if "_copied_" in key},
                         {key: 0 for key in after if "_copied_" in key})
        self.check_vlan_guest(guest)
        self.check_others(guest)
        self.fetch(guest, wanted, VLAN_IP)
        self.assertEqual(self.counted()["direct_rx_copied_vlan"], 0)
        return guest

    def check_others(self, guest):
        wire = self.use(tags.Wire(self.peer))
        before = self.uplink()
        received = f"cat /sys/class/net/{guest.nic}/statistics/rx_bytes"
        shown = int(guest.must(received))
        for number in range(50):
            for kind in (tags.tag(20), tags.tag(0x6014), b""):
                wire.send(tags.frame(MACS[0], self.peer_mac, number, 500, kind))
            time.sleep(0.01)
        wait_for("others' frames to be counted", lambda: self.uplink()["counters"]["drop_vlan"] -
                 before["counters"]["drop_vlan"] >= 150, 30)
        self.assertLess(int(guest.must(received)) - shown, 50 * 500)
        # A VLAN that is not the uplink's does not get into the function.
        before = self.uplink()["queues"][0]["received"]
        for number in range(200):
            wire.send(tags.frame(MACS[0], self.peer_mac, number, 500, tags.tag(30)))
            time.sleep(0.005)
        self.reach(guest, VLAN_IP)
        self.assertLess(self.uplink()["queues"][0]["received"] - before, 100)

    def port(self):
        return self.ask("query-ports")[0]

    def counted(self):
        return {key: count for key, count in self.port()["counters"].items()
                if key.startswith("direct_rx")}

    def check_dma(self, before, trace):
        """Nearly all that came in this boot, and some MiB since `before` was counted, was written
        into the guest's memory by the NIC, says the emulator."""
        after = self.counted()
        self.assertGreater(after["direct_rx_zero_copy_bytes"] -
                           before["direct_rx_zero_copy_bytes"], 4 << 20)
        regions = [(each["iova"], each["iova"] + each["bytes"])
                   for each in self.uplink()["memory"]]
        time.sleep(1)  # the trace is another machine's file
        direct = copied = 0
        for at, size in writes(trace):
            if any(begin <= at and at + size <= end for begin, end in regions):
                direct += size
            else:
                copied += size
        self.report(f"{after}; DMA of {direct} bytes into the guest's memory, {copied} elsewhere")
        self.assertGreater(direct, 4 << 20)
        self.assertLess(copied, 1 << 18)

    def flood(self):
        """The peer sends large frames to the guest until the test ends."""
        ends = self.use(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        over = threading.Event()

        def send():
            while not over.wait(0.002):
                with contextlib.suppress(OSError):
                    ends.sendto(bytes(1400), (IPS[0], 9))
        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(over.set)

    def rebind(self, guest, ip=IPS[0]):
        """The driver leaves its queues and comes again."""
        device = guest.must(f"basename $(readlink /sys/class/net/{guest.nic}/device)")
        guest.must(f"cd /sys/bus/virtio/drivers/virtio_net && echo {device} >unbind && "
                   f"echo {device} >bind", 120)
        guest.nic = guest.interface(MACS[0])
        guest.must(f"ip link set {guest.nic} up; ip addr replace {ip}/24 dev {guest.nic}; "
                   f"ip addr replace 10.9.1.1/24 dev {guest.nic}")

    def until_direct(self, guest, ip=PEER_IP):
        """Frames come without a copy: the first ones of a ring of the NIC's are copied."""
        scenes.ping(guest, ip)  # of three the first may be lost where a device just came back
        before = self.counted()["direct_rx_zero_copy"]

        def more():
            guest.run(f"ping -c 200 -i 0.01 -q {ip}")
            return self.counted()["direct_rx_zero_copy"] > before + 10
        wait_for("frames without a copy", more, 120)


class Direct(DirectWire):
    def test_dma_of_igb(self):
        """Frames of a file that the guest fetches are written into its memory by the NIC, and are
        right. By its name the first of the boot, so that all of the trace is its own."""
        guest = self.serve_igb()
        before = self.counted()
        self.fetch(guest, self.serve_file())
        self.check_dma(before, TRACE)
        self.fetch_from(guest, IPS[0])

    def test_vlan(self):
        give(IGB, "vfio-pci")
        guest = self.check_vlan(pci=IGB)
        self.assertEqual(self.uplink()["offloads"]["vlan_filter"], "device")
        self.rebind(guest)  # its device is started anew for that
        guest.must(f"ip addr replace {VLAN_GUEST}/24 dev {guest.nic}")
        self.until_direct(guest, VLAN_IP)

    def test_queues_stop_and_guests_die(self):
        """The driver leaves its queues, and the guest its life, while frames come: the buffers that
        were not filled are the driver's again, and memory that goes is unmapped."""
        guest = self.serve_igb()
        self.flood()
        for _ in range(3):
            self.rebind(guest)
            self.until_direct(guest)
        self.fetch(guest, self.serve_file())
        self.assertEqual(self.uplink()["losses"], 0)
        guest.kill()
        wait_for("its memory to be unmapped", lambda: not self.uplink()["memory"], 60)
        self.assertEqual(self.uplink()["state"], "running")

    def test_killed_daemon_and_removed_uplink(self):
        """kill -9 of the daemon, the removal of its uplink and of its port, and its end while
        frames come."""
        guest = self.serve_igb()
        self.flood()
        self.daemon.kill9()
        self.daemon.start()
        self.until_direct(guest)
        for _ in range(2):
            self.ask("uplink-remove", name="wire")
            self.ask("uplink-add", name="wire", pci=IGB, mac=MACS[0], direct=True)
            self.until_direct(guest)
        self.fetch(guest, self.serve_file())
        self.ask("port-remove", name="net-a")
        self.ask("uplink-remove", name="wire")
        self.daemon.stop()

    def test_one_port_for_each(self):
        """An uplink that serves one port serves no other, and one that serves all is no port's."""
        guest = self.serve_igb()
        socket_path = str(self.work / "b.sock")

        def refusal(**keys):
            with self.assertRaises(QmpError) as refused:
                self.ask("port-add", name="net-b", socket=socket_path, **keys)
            return str(refused.exception)
        self.assertIn("serves port net-a alone", refusal(direct="wire", mac=MACS[0]))
        self.assertIn("mac is another one", refusal(direct="wire", mac=MACS[1]))
        self.assertIn("there is no such uplink", refusal(direct="nowhere"))
        self.ask("uplink-remove", name="wire")
        self.ask("uplink-add", name="wire", pci=IGB, mac=MACS[0])
        self.ask("port-remove", name="net-a")
        self.assertIn("add it with direct = true", refusal(direct="wire", mac=MACS[0]))
        guest.kill()

    def test_jumbo(self):
        """Frames of 9000 bytes are copied, and counted as such; what the guest sends is not."""
        give(IGB, "vfio-pci")
        shell(f"ip link set {self.peer} mtu 9000")
        self.daemon.uplink("wire", pci=IGB, mac=MACS[0], mtu=9000)
        (guest,) = self.guests(1, direct="wire", mtu=9000)
        guest.must(f"ip link set {guest.nic} mtu 9000")
        guest.must(f"ping -c 3 -s 8972 {PEER_IP}")
        self.fetch(guest, self.serve_file())
        before = self.uplink()["counters"]["tx_zero_copy_packets"]
        wait_for("the guest's memory to be mapped",
                 lambda: all(each["state"] == "mapped" for each in self.uplink()["memory"]), 60)
        self.fetch_from(guest, IPS[0])
        self.assertGreater(self.uplink()["counters"]["tx_zero_copy_packets"], before)
        counted = self.counted()
        self.assertEqual(counted["direct_rx_zero_copy"], 0)
        self.assertGreater(counted["direct_rx_copied_long"], 500)


class Lost(DirectWire, test_uplink_failures.Failures):
    def test_device_comes_back(self):
        """An error of the device while frames come, and while the driver leaves its queues: what
        the guest had given it is the guest's again."""
        guest = self.serve_igb()
        self.flood()
        self.fault("rp1")
        self.until("it to be back", losses=1, state="running", carries=True, problem=None)
        self.until_direct(guest)
        self.fault("rp1")
        self.rebind(guest)
        self.until("it to be back", losses=2, state="running", carries=True, problem=None)
        self.until_direct(guest)
        self.fetch(guest, self.serve_file())

    def test_dma_to_nowhere(self):
        """A function whose domain has the guest's memory begins to use addresses that nobody gave
        it: the IOMMU stops it, the kernel says so, and the guest has its buffers back."""
        guest = self.serve_igb()
        self.flood()
        with open(f"{FUNCTIONS}/{IGB}/resource0", "r+b", buffering=0) as file:
            registers = memoryview(mmap.mmap(file.fileno(), 0x20000)).cast("I")
        registers[RDBAL // 4], registers[RDBAL // 4 + 1] = 0xdead0000, 0x7f
        registers.release()
        seen = wait_for("the fault in the kernel's log", lambda: shell(
            f"dmesg | grep 'DMAR:.*Request device .{IGB[5:]}.' | tail -n 1"), 60, 1)
        self.assertIn("0x7fdead0", seen)
        self.report(seen)
        self.assertEqual(self.uplink()["state"], "running")
        self.rebind(guest)  # its device is started anew for that
        self.until_direct(guest)
        self.fetch(guest, self.serve_file())


class Function(DirectWire, test_uplink_pci.Single):
    """The same with a virtual function, which hears its guest's address alone."""

    def serve_function(self, **uplink):
        shell(f"ip addr replace 10.9.1.99/24 dev {self.pf}")
        return self.serve("10.9.1.99", **uplink)

    @long("a function by its address; from the pool in test_uplink_functions")
    def test_virtual_function(self):
        shell(f"ip link set {self.pf} vf 0 mac {MACS[0]}")
        give(self.vf, "vfio-pci")
        guest = self.serve_function(pci=self.vf)
        self.assertEqual(self.uplink()["driver"], "net_e1000_igb_vf")
        self.fetch_from(guest, "10.9.1.1")

    @long("another way to a function")
    def test_function_from_the_pool(self):
        shell(f"echo 0 >{FUNCTIONS}/{PF}/sriov_numvfs")
        self.daemon.tables.append(("pf", {"pci": PF, "vfs": 2}))
        guest = self.serve_function(pf=PF)
        for _ in range(2):
            self.rebind(guest)
            self.until_direct(guest, "10.9.1.99")
        self.assertEqual(self.uplink()["losses"], 0)


if __name__ == "__main__":
    # Relaxed: the stray device's registers are the daemon's, and this test's.
    inside.main(memory_mb=4096, devices=test_uplink_failures.devices() + [
        "-trace", "igb_rx_desc_buff_write", "-D", TRACE], append="iomem=relaxed")
