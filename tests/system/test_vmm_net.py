"""Receive side scaling, hash reports and notification coalescing: stock guests of millrace-vmm set
them up with ethtool, the daemon does them. Where this machine's KVM cannot run guests, all of it
runs in the virtual host."""

import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import inside, scenes
from tests.rig.case import SystemTest, long
from tests.rig.daemon import Daemon
from tests.rig.process import wait_for
from tests.rig.scenes import IPS

COALESCING, HASH_REPORT, RSS = 53, 57, 60  # feature bits
DATAGRAMS = 300


def toeplitz(key, data):
    """The hash, bit by bit, as its definition says."""
    bits = int.from_bytes(key, "big")
    width, result = 8 * len(key), 0
    for place in range(8 * len(data)):
        if data[place // 8] & (0x80 >> place % 8):
            result ^= bits >> (width - 32 - place) & 0xffffffff
    return result


def udp_flow(source, destination, source_port, destination_port):
    octets = [int(octet) for ip in (source, destination) for octet in ip.split(".")]
    return bytes(octets) + source_port.to_bytes(2, "big") + destination_port.to_bytes(2, "big")


class Driver(SystemTest):
    """Two guests and the daemon between them; guest b's driver is what is looked at."""

    def setUp(self):
        super().setUp()
        self.daemon = Daemon(self.work)

    def pair(self, cpus=2, flavour=None, **keys):
        guests = scenes.networked(self, self.daemon, machine={"cpus": cpus, "flavour": flavour},
                                  control_queue=True, **keys)
        guests[1].must("iperf3 -s -D && sleep 0.5")
        return guests

    def offered(self, guest, bit):
        return guest.must(f"cat /sys/class/net/{guest.nic}/device/features")[bit] == "1"

    def send(self, sender, port, rate="3M"):
        """One flow of datagrams to guest b, and the little that iperf3 has to say besides."""
        sender.must(f"iperf3 -c {IPS[1]} -u -b {rate} -l 1000 -k {DATAGRAMS} --cport {port} "
                    ">/dev/null", 120)

    def received(self, guest):
        """Packets by queue, as the driver counts them; of a driver that does not show it (6.9 and
        later), as the daemon does."""
        text = guest.must(f"ethtool -S {guest.nic}")
        counts = re.findall(r"rx_queue_(\d+)_packets: (\d+)", text)
        if not counts:
            queues = self.port(f"net-{guest.name}")["virtqueues"]
            return [queue["chains"] for queue in queues[:-1] if queue["index"] % 2 == 0]
        return [int(count) for _, count in sorted((int(queue), count) for queue, count in counts)]

    def growth(self, guest, act):
        before = self.received(guest)
        act()
        return [now - then for now, then in zip(self.received(guest), before)]

    def table(self, guest):
        """(the driver's key, its table)."""
        text = guest.must(f"ethtool -x {guest.nic}")
        key = bytes.fromhex(re.search(r"((?:[0-9a-f]{2}:){39}[0-9a-f]{2})", text)
                            .group(1).replace(":", ""))
        rows = re.findall(r"^\s*\d+:((?:\s+\d+)+)\s*$", text, re.MULTILINE)
        return key, [int(entry) for row in rows for entry in row.split()]

    def check_flows(self, a, b, ports):
        """Each flow arrives at the queue that the driver's own key and table say."""
        key, table = self.table(b)
        self.assertEqual((len(key), len(table)), (40, 128))
        used = set()
        for port in ports:
            queue = table[toeplitz(key, udp_flow(IPS[0], IPS[1], port, 5201)) % len(table)]
            grown = self.growth(b, lambda port=port: self.send(a, port))
            self.assertGreaterEqual(grown[queue], DATAGRAMS * 9 // 10, f"{port}: {grown}")
            self.assertLess(sum(grown) - grown[queue], DATAGRAMS // 2, f"{port}: {grown}")
            used.add(queue)
        return used

    def check_rss(self, flavour=None):
        a, b = self.pair(queues=2, flavour=flavour)
        self.assertTrue(self.offered(b, RSS))
        b.must(f"ethtool -L {b.nic} combined 2")
        for weights, only in (("0 1", 1), ("1 0", 0)):
            b.must(f"ethtool -X {b.nic} weight {weights}")
            self.assertEqual(set(self.table(b)[1]), {only})
            grown = self.growth(b, lambda: self.send(a, 6000))
            self.assertGreaterEqual(grown[only], DATAGRAMS * 9 // 10)
            self.assertLess(grown[1 - only], DATAGRAMS // 10)  # what has no hash: ARP
        b.must(f"ethtool -X {b.nic} equal 2")
        used = self.check_flows(a, b, range(6001, 6007))
        key = ":".join(f"{byte:02x}" for byte in range(0x11, 0x11 + 40))
        b.must(f"ethtool -X {b.nic} hkey {key}")
        used |= self.check_flows(a, b, range(6001, 6005))
        self.assertEqual(used, {0, 1})
        self.report(f"{b.kernel}: 10 flows, each at the queue of its hash")
        return a, b

    def test_rss(self):
        self.check_rss()

    @long("another kernel")
    def test_rss_6_12(self):
        self.check_rss("cloud-6.12")

    def test_hash_report(self):
        """The header of every frame is 8 bytes longer, in both directions."""
        a, b = self.pair(queues=2, hash_report=True)
        for guest in (a, b):
            self.assertTrue(self.offered(guest, HASH_REPORT))
            guest.must(f"ethtool -K {guest.nic} rxhash on")
            self.assertRegex(guest.must(f"ethtool -k {guest.nic}"), "receive-hashing: on")
        self.assertGreaterEqual(scenes.ping(a, IPS[1]), 3)
        b.must(f"ethtool -L {b.nic} combined 2 && ethtool -X {b.nic} equal 2")
        self.check_flows(a, b, (6001, 6002))
        for sender, receiver, ip in ((a, b, IPS[0]), (b, a, IPS[1])):
            scenes.checked_transfer(sender, receiver, ip)
        for guest in (a, b):
            self.assertEqual(guest.kernel_log("BUG:|WARNING:"), "")

    def interrupts(self, guest, queue):
        text = guest.must(f"grep '{queue}$' /proc/interrupts")
        return sum(int(count) for count in re.findall(r"\s(\d+)(?=\s)", text.split(":", 1)[1]))

    def check_coalescing(self, flavour=None):
        a, b = self.pair(cpus=1, flavour=flavour)
        self.assertTrue(self.offered(b, COALESCING))

        def calls():
            before = self.interrupts(b, "input.0")
            # Slow enough that the guest is done with one before the next one comes.
            a.must(f"ping -c 200 -i 0.005 -s 100 {IPS[1]}", 120)
            return self.interrupts(b, "input.0") - before
        plain = calls()
        b.must(f"ethtool -C {b.nic} rx-usecs 50000 rx-frames 1000 tx-frames 1")
        text = b.must(f"ethtool -c {b.nic}")
        self.assertRegex(text, r"rx-usecs:\s+50000")
        self.assertRegex(text, r"rx-frames:\s+1000")
        driver = self.port("net-b")["driver"]
        self.assertEqual((driver["rx_usecs"], driver["rx_frames"]), (50000, 1000))
        held = calls()
        b.must(f"ethtool -C {b.nic} rx-usecs 0 rx-frames 0 tx-frames 1")
        again = calls()
        self.report(f"{b.kernel}: 200 packets called {plain} times, {held} when held back, "
                    f"{again} afterwards")
        self.assertLess(held, plain // 2)
        self.assertGreater(again, 2 * held)
        # The number of packets ends the wait before the time does, in this case for ever.
        b.must(f"ethtool -C {b.nic} rx-usecs 4000000000 rx-frames 5 tx-frames 1")
        sent = a.must(f"ping -c 5 -i 0.2 -W 5 {IPS[1]}; true", 60)
        self.assertRegex(sent, "[1-5] packets received")
        b.must(f"ethtool -C {b.nic} rx-usecs 0 rx-frames 0 tx-frames 1")
        self.assertGreaterEqual(scenes.ping(a, IPS[1]), 3)

    def test_coalescing(self):
        self.check_coalescing()

    @long("another kernel")
    def test_coalescing_6_12(self):
        self.check_coalescing("cloud-6.12")

    def port(self, name):
        return next(port for port in self.daemon.ask("query-ports") if port["name"] == name)

    def test_daemon_killed(self):
        """What the driver set up outlives the daemon: it is not asked again."""
        a, b = self.pair(queues=2)
        b.must(f"ethtool -L {b.nic} combined 2 && ethtool -X {b.nic} weight 0 1")
        strange = "52:54:00:99:99:99"
        a.must(f"/usr/sbin/ip neigh add 10.9.0.77 lladdr {strange} dev {a.nic}")
        for _ in range(2):
            self.daemon.kill9()
            self.daemon.start()
            # Connected is not yet set up again.
            wait_for("the guests' queues to run again", lambda: all(
                any(queue["enabled"] for queue in each["virtqueues"])
                for each in self.daemon.ask("query-ports")), 180)
            self.assertTrue(self.port("net-b")["driver"]["rss"])
            self.assertGreaterEqual(scenes.ping(a, IPS[1]), 3)
            grown = self.growth(b, lambda: self.send(a, 6000))
            self.assertGreaterEqual(grown[1], DATAGRAMS * 9 // 10)
            self.assertLess(grown[0], DATAGRAMS // 10)
            a.run("ping -c 10 -i 0.1 -W 1 10.9.0.77")
            self.assertGreaterEqual(self.port("net-b")["counters"]["filtered"], 10)
        b.must(f"ethtool -X {b.nic} weight 1 0")
        grown = self.growth(b, lambda: self.send(a, 6000))
        self.assertLess(grown[1], DATAGRAMS // 10)


if __name__ == "__main__":
    inside.main(("cloud", "cloud-6.12"), memory_mb=6144)
