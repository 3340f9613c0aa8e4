"""Zero copy to the wire: what stock guests send goes out of a NIC's own DMA from where it lies in
their memory. Runs in the virtual host; its emulator traces every descriptor that its NICs read."""

import os
import re
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import test_uplink_failures
from tests.rig import inside, settings
from tests.rig.case import long
from tests.rig.pci import FUNCTIONS, give
from tests.rig.process import wait_for

from test_uplink_failures import SPARE, WIRES
from test_uplink_pci import IGB, IPS, NIC, PEER_IP

TRACE = os.path.join(settings.build_folder(), "zero-copy.trace")
TWINS = ("0000:04:00.0", "0000:04:00.1")  # two functions of one device, which share a group
LARGE = 512  # bytes from which a payload is not copied
# Of the 4 MiB that a guest sends; headers and what was fetched with them are always copied.
MOST = 15 << 18


def large_descriptors(trace=TRACE):
    """(address, bytes) of each large descriptor of data that the emulated NICs sent in this boot.
    Of all NICs; the peer sends nothing large. To be looked at once: the virtual host's view of the
    file does not grow after that."""
    with open(trace, errors="replace") as file:
        for found in re.finditer(r"e1000e_tx_descr 0x([0-9a-f]+) : ([0-9a-f]+) ", file.read()):
            address, lower = (int(number, 16) for number in found.groups())
            if lower >> 20 & 1 and lower & 0xffff >= LARGE:  # else it is a context
                yield address, lower & 0xffff


class ZeroCopy(test_uplink_failures.Failures):
    def serve(self, address, count=1, **keys):
        give(address, "vfio-pci")
        self.daemon.uplink("wire", pci=address, zero_copy=True, **keys)
        guests = self.guests(count)
        for guest in guests:
            self.reach(guest)
        self.until_mapped(count)
        return guests

    def add(self, name, address, zero_copy="true", check=True):
        return self.daemon.millctl("add", "uplink", f"name={name}", f"pci={address}",
                                   f"zero_copy={zero_copy}", check=check, timeout=180)

    def mapped(self, name="wire"):
        """How many ports' memory the NIC reaches."""
        return len({each["port"] for each in self.one(name)["memory"]
                    if each["state"] == "mapped"})

    def until_mapped(self, count=1, name="wire"):
        wait_for("the guests' memory to be mapped", lambda: self.mapped(name) >= count, 120)

    def counted(self, name="wire"):
        return {key: count for key, count in self.one(name)["counters"].items()
                if key.startswith(("tx_zero_copy", "tx_copied"))}

    def lends(self, guest, ip=IPS[0], name="wire"):
        """What the guest sends is whole at the other end, and was not all copied."""
        before = self.counted(name)["tx_zero_copy_packets"]
        self.fetch_from(guest, ip)
        self.assertGreater(self.counted(name)["tx_zero_copy_packets"], before)

    def flood(self, guest):
        """The guest sends large frames until `calm`."""
        guest.must(f"ping -i 0.01 -s 1400 -q {PEER_IP} >/dev/null 2>&1 & echo $! >/tmp/flood")
        time.sleep(1)

    def rebind(self, guest):
        """The driver leaves its queues and comes again."""
        device = guest.must(f"basename $(readlink /sys/class/net/{guest.nic}/device)")
        guest.must(f"cd /sys/bus/virtio/drivers/virtio_net && echo {device} >unbind && "
                   f"echo {device} >bind", 120)
        guest.nic = guest.interface("52:54:00:00:00:0a")
        guest.must(f"ip link set {guest.nic} up; ip addr replace {IPS[0]}/24 dev {guest.nic}")
        self.reach(guest)

    def calm(self, guest):
        guest.must("kill $(cat /tmp/flood) 2>/dev/null || true")

    def test_dma_of_igb(self):
        """TCP packets of up to 64 KiB go to the NIC whole, and its DMA reads the guest's memory. By
        its name the first of the boot, so that all of the trace is its own."""
        (guest,) = self.serve(IGB)
        before = self.counted()
        self.fetch_from(guest, IPS[0])
        after = self.counted()
        self.assertGreater(after["tx_zero_copy_bytes"] - before["tx_zero_copy_bytes"], MOST)
        self.assertEqual(after["tx_copied_unmapped"], before["tx_copied_unmapped"])
        regions = [(each["iova"], each["iova"] + each["bytes"])
                   for each in self.uplink()["memory"]]
        time.sleep(1)  # the trace is another machine's file
        lent, copied = 0, 0
        for address, size in large_descriptors():
            if any(begin <= address and address + size <= end for begin, end in regions):
                lent += size
            else:
                copied += size
        self.report(f"{after}; DMA of {lent} bytes in the guest's memory, {copied} elsewhere")
        self.assertGreater(lent, MOST)
        # Only what was sent while a quarter of the guest's ring was out.
        self.assertLess(copied, lent / 4)
        self.fetch(guest, self.serve_file())

    @long("another driver")
    def test_e1000e(self):
        """Its driver segments nothing: each of our segments is a part of the guest's packet."""
        (guest,) = self.serve(NIC)
        self.fetch_from(guest, IPS[0])
        counted = self.counted()
        self.report(f"{counted}")
        self.assertGreater(counted["tx_zero_copy_bytes"], 1 << 20)

    def test_fail_over(self):
        """A pair: the second's NIC reaches the guest's memory before it carries; a device that is
        given up gives back what it was lent, and reaches the memory anew when it is had again."""
        for address in (IGB, SPARE):
            give(address, "vfio-pci")
        self.daemon.memory = {"dpdk_mb": 128}
        self.daemon.uplink("wire", pci=IGB, zero_copy=True, standby="second")
        self.daemon.uplink("second", pci=SPARE, zero_copy=True)
        (guest,) = self.guests(1)
        self.reach(guest)
        for name in ("wire", "second"):
            self.until_mapped(name=name)
        self.lends(guest)
        self.flood(guest)
        self.monitor(f"set_link {WIRES[IGB]} off")
        self.until("the second to carry", "second", carries=True)
        self.lends(guest, name="second")
        self.monitor(f"set_link {WIRES[IGB]} on")
        self.until("the first to carry", carries=True)
        before = self.counted()
        self.fault("rp1")
        self.until("the first to be back", losses=1, state="running", carries=True, problem=None)
        self.until_mapped()
        for key, count in self.counted().items():
            self.assertGreaterEqual(count, before[key], key)
        self.lends(guest)
        # Everything that was lent came back, or the queues would not stop.
        self.rebind(guest)
        self.calm(guest)

    def test_functions_of_one_group(self):
        """A zero-copy uplink has its IOMMU group for itself, whoever comes first."""
        for address in TWINS:
            give(address, "vfio-pci")
        groups = {os.path.realpath(f"{FUNCTIONS}/{address}/iommu_group") for address in TWINS}
        self.assertEqual(len(groups), 1, groups)
        self.use(self.daemon)
        for first, second in (("true", "false"), ("false", "true"), ("true", "true")):
            self.add("first", TWINS[0], first)
            refused = self.add("second", TWINS[1], second, check=False)
            self.assertNotEqual(refused.returncode, 0)
            self.assertIn("and zero_copy needs the group for one uplink alone", refused.stdout)
            self.ask("uplink-remove", name="first")

    def test_queues_stop_and_guests_die(self):
        """The driver leaves its queues and the guest its life while frames are on their way."""
        a, b = self.serve(IGB, 2)
        for _ in range(3):
            self.flood(a)
            self.rebind(a)
            self.calm(a)
        self.until_mapped(2)
        self.lends(a)
        self.flood(a)
        a.kill()
        wait_for("its memory to be unmapped",
                 lambda: [each["port"] for each in self.uplink()["memory"]] == ["net-b"], 60)
        self.fetch_from(b, IPS[1])

    def test_killed_daemon_and_removed_uplink(self):
        """kill -9 of the daemon, and the uplink's removal, while frames are on their way."""
        (guest,) = self.serve(IGB)
        self.flood(guest)
        self.daemon.kill9()
        self.daemon.start()
        self.until_mapped()
        self.ask("uplink-remove", name="wire")
        self.add("wire", IGB)
        self.until_mapped()
        self.calm(guest)
        self.reach(guest)
        self.lends(guest)
        self.ask("uplink-remove", name="wire")
        refused = self.daemon.millctl("add", "uplink", "name=wire", "device=net_null0",
                                      "zero_copy=true", check=False)
        self.assertNotEqual(refused.returncode, 0)
        self.assertIn("zero_copy needs a PCI function", refused.stdout)


if __name__ == "__main__":
    inside.main(memory_mb=4096, devices=test_uplink_failures.devices() + [
        "-device", "pcie-root-port,id=rp3,chassis=4,slot=4,addr=15.0",
        "-device", "e1000e,bus=rp3,addr=0.0,multifunction=on", "-device", "e1000e,bus=rp3,addr=0.1",
        "-trace", "e1000e_tx_descr", "-D", TRACE])
