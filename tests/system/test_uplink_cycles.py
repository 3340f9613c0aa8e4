"""A hundred cycles of what can become of a virtual function whose uplink has a standby, under a
guest's traffic. Runs in the virtual host, for most of the time that one boot has."""

import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import test_uplink_failures
import test_uplink_functions
from tests.rig import inside
from tests.rig.case import long
from tests.rig.process import wait_for

from test_uplink_failures import Holdings, Pinging, cycles
from test_uplink_pci import IPS, PEER_IP, shell


class Cycles(test_uplink_functions.WithStandby):
    """What can become of a function, cycle after cycle: its link goes, the host takes it, and the
    root port above it has an error or, each second time, its physical function is reset. Another
    one in each cycle is first and takes the traffic from it; the others follow. In every fifth
    cycle the root port above the other NIC has a fatal error at last. (The emulated NICs report no
    errors of their own: those bits of their Device Control are fixed.)"""

    MEMORY = {"dpdk_mb": 128, "dpdk_hugepages": True}
    FATAL_EVERY = 5  # cycles: the emulated NIC needs as long for one as for all the rest
    CALM = 4.5  # seconds: a device that fails again before is tried again later each time
    FIRST_FEW = 5  # after which nothing that is held grows
    MORE_KB = 1024  # of memory, at most, in all other cycles: an allocator's ups and downs

    def setUp(self):
        shell("echo 96 >/proc/sys/vm/nr_hugepages")
        self.addCleanup(shell, "echo 0 >/proc/sys/vm/nr_hugepages")
        super().setUp()

    def back(self, name, **wanted):
        return self.until(f"{name} to be back", name, state="running", link_up=True, problem=None,
                          **wanted)

    def until_lost(self, name, losses):
        wait_for(f"the loss of {name} to be noticed",
                 lambda: self.one(name)["losses"] > losses, 90, 0.1)

    def strike(self, fault):
        """Beside the traffic: each is noticed before the next."""
        before = self.until("the function to be there", "first", state="running")
        if fault == self.flap:
            self.back("first")
            fault()
            self.until("the link to be gone", "first", link_up=False)
            self.mend()
            self.back("first", carries=True)
        else:
            fault()
            self.until_lost("first", before["losses"])

    def fatal(self):
        losses = self.one("second")["losses"]
        self.fault("rp2", "DLP")
        self.until_lost("second", losses)
        self.back("second", carries=False)

    def cycle(self, number):
        """Answers how long nobody carried."""
        third = (self.error, self.reset)[number % 2]
        faults, first = [self.flap, self.taken, third], number // 2 % 3
        faults = faults[first:] + faults[:first]
        with self.daemon.qmp(timeout=120) as qmp:
            faults[0]()
            wait_for("the second to carry", lambda: any(
                data["name"] == "second" for _, data in self.said(qmp, "UPLINK_ACTIVE")), 90, 0.1)
            gap = self.gap(qmp.events)
        self.pings.more(2)
        if faults[0] == self.flap:
            self.mend()
            self.back("first", carries=True)
        for fault in faults[1:]:
            self.strike(fault)
        self.back("first", carries=True)
        self.assertFalse(self.one("second")["carries"])
        calm = time.monotonic() + self.CALM
        if number % self.FATAL_EVERY == 0:
            self.fatal()
        time.sleep(max(0, calm - time.monotonic()))
        self.pings.more(2)
        self.assertTrue(self.one("first")["carries"])
        return gap

    def check_memory(self, before, now):
        self.assertLess(now[0] - before[0], 20, "mappings")
        self.assertLess(now[1] - before[1], self.MORE_KB, "kB")

    @long("a hundred of them take half an hour on a busy machine")
    def test_hundred(self):
        """Traffic goes on within a second of the daemon's hearing of each, and nothing is left over
        of any: what the daemon holds after a few cycles it holds after all of them."""
        self.pings, holdings = Pinging(self.guest, PEER_IP), Holdings(self.daemon)
        changes = self.guest.must(f"cat /sys/class/net/{self.guest.nic}/carrier_changes")
        groups, gaps, begun = holdings()["groups"], [], time.monotonic()
        for number in range(cycles(self.FIRST_FEW + 1)):
            gaps.append(self.cycle(number))
            if number == self.FIRST_FEW - 1:
                time.sleep(1)  # our last connection is on its way out
                first, memory = holdings(), holdings.memory()
            if number % 5 == 4:
                self.report(f"{number + 1} cycles in {time.monotonic() - begun:.0f} s; the longest "
                            f"gap: {max(gaps):.3f} s; {holdings()}, {holdings.memory()}")
        self.assertLess(max(gaps), 1, gaps)
        self.assertEqual(holdings.settled_as(first), first)
        self.assertEqual(first["groups"], groups)
        self.check_memory(memory, holdings.memory())
        self.assertEqual(self.guest.must(f"cat /sys/class/net/{self.guest.nic}/carrier_changes"),
                         changes)
        silence = self.pings.longest_silence()
        sent, received = self.pings.end()
        self.report(f"{len(gaps)} cycles in a row: the longest gap {max(gaps):.3f} s by the "
                    f"daemon's time stamps, {silence:.1f} s by the guest's pings; "
                    f"{sent - received} of {sent} pings were lost, 10 a second")
        self.fetch_from(self.guest, IPS[0])


if __name__ == "__main__":
    inside.main(memory_mb=4096, timeout=2300, devices=test_uplink_failures.devices())
