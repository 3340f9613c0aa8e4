"""Stock Debian guests in QEMU, served by one daemon: what a person does with them."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import scenes
from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.guest import Guest
from tests.rig.process import wait_for

MACS = ["52:54:00:00:00:0a", "52:54:00:00:00:0b", "52:54:00:00:00:0c"]
IPS = ["10.9.0.1", "10.9.0.2", "10.9.0.3"]
RING_RESET, HASH_REPORT, RSS = 40, 57, 60  # feature bits
ROOT_PORT = "pcie-root-port,id=hot,chassis=1,slot=1"


class GuestsTest(SystemTest):
    def setUp(self):
        super().setUp()
        self.daemon = Daemon(self.work)

    def guest(self, number, queues=1, cpus=1, net="", disk=True, **keys):
        """A guest (not started) with a NIC and a disk, configured in the daemon too."""
        name = "abc"[number]
        guest = Guest(self.work, name, cpus=cpus)
        guest.net(self.daemon.port(f"net-{name}", queues=queues, **keys), MACS[number], queues, net)
        if disk:
            image = self.daemon.image(f"disk-{name}", 64)
            guest.blk(self.daemon.disk(f"disk-{name}", path=image, queues=queues), queues)
        return guest

    def start(self, *guests):
        """Boots all at once, gives them addresses."""
        self.use(self.daemon)
        for guest in guests:
            self.use(guest)
            guest.start(wait=False)
        for number, guest in enumerate(guests):
            guest.wait_ready()
            guest.nic = scenes.address(guest, MACS[number], IPS[number])
        return guests

    def pair(self, **more):
        return self.start(self.guest(0, **more), self.guest(1, **more))

    def bytes_a_packet(self, a, b):
        """The mean length of what a sends to b in a while."""
        before = self.port("net-a")["counters"]
        scenes.iperf(a, b, IPS[1], 1)
        after = self.port("net-a")["counters"]
        length = ((after["tx_bytes"] - before["tx_bytes"]) /
                  (after["tx_packets"] - before["tx_packets"]))
        self.report(f"{length:.0f} bytes a packet")
        return length

    def unreachable(self, guest, ip):
        self.assertNotEqual(guest.run(f"ping -c 2 -W 1 {ip}")[0], 0)

    def port(self, name):
        return next(port for port in self.daemon.ask("query-ports") if port["name"] == name)

    def throughput(self, a, b, what):
        for client, server, ip in ((a, b, IPS[1]), (b, a, IPS[0])):
            rate = scenes.iperf(client, server, ip, 2)
            self.report(f"{what}, {client.name} to {server.name}: {rate / 1e9:.2f} Gbit/s")
            self.assertGreater(rate, 1e6)


class Network(GuestsTest):
    def test_ping_and_throughput_with_and_without_offloads(self):
        a, b = self.pair(disk=False)
        self.assertGreaterEqual(scenes.ping(a, IPS[1]), 3)
        self.assertGreaterEqual(scenes.ping(b, IPS[0]), 3)
        offered = a.must(f"ethtool -k {a.nic}")
        self.assertIn("tcp-segmentation-offload: on", offered)
        self.assertIn("tx-checksumming: on", offered)
        self.throughput(a, b, "all offloads")
        self.assertGreater(self.bytes_a_packet(a, b), 2 * 1514)

        a.must(f"ethtool -K {a.nic} tso off gso off")
        self.throughput(a, b, "TSO off at a")
        self.assertLessEqual(self.bytes_a_packet(a, b), 1514)
        a.must(f"ethtool -K {a.nic} tx off sg off gro off")
        self.throughput(a, b, "no offload at a")
        a.must(f"ethtool -K {a.nic} tx on sg on tso on gso on")
        self.throughput(a, b, "offloads on again")
        for name in ("net-a", "net-b"):
            counters = self.port(name)["counters"]
            wrong = ("drop_malformed", "drop_too_long", "drop_queue_fault", "drop_source")
            self.assertEqual({name: counters[name] for name in wrong}, dict.fromkeys(wrong, 0))

    def test_receiver_without_offloads_gets_segments(self):
        """One guest sends 64 KiB segments to a guest that was told of no offload at all."""
        bare = "guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,guest_csum=off"
        a, b = self.start(self.guest(0, disk=False), self.guest(1, disk=False, net=bare))
        scenes.ping(a, IPS[1])
        self.throughput(a, b, "receiver without offloads")
        self.assertGreater(self.port("net-b")["counters"]["segmented"], 0)

    def test_counters_agree_with_the_guest(self):
        a, b = self.pair(disk=False)
        scenes.ping(a, IPS[1], 10)
        scenes.iperf(a, b, IPS[1], 2)
        for guest, name in ((a, "net-a"), (b, "net-b")):
            wait_for("the counters to agree", lambda: self._agree(guest, name), 20, 0.2)

    def _agree(self, guest, name):
        sent, received = scenes.packets(guest, guest.nic)
        counters = self.port(name)["counters"]
        return (counters["tx_packets"], counters["rx_packets"]) == (sent, received)

    def test_multiqueue(self):
        a, b = self.pair(queues=2, cpus=2)
        for guest in (a, b):
            self.assertRegex(guest.must(f"ethtool -l {guest.nic}"), r"Combined:\s+2")
            guest.must(f"ethtool -L {guest.nic} combined 2")
            self.assertEqual(guest.must("ls /sys/block/vda/mq | wc -l"), "2")
        scenes.ping(a, IPS[1])
        rate = scenes.iperf(a, b, IPS[1], 3, "-P 4")
        self.report(f"2 queue pairs, 4 streams: {rate / 1e9:.2f} Gbit/s")
        for pairs in (1, 2):
            for guest in (a, b):
                guest.must(f"ethtool -L {guest.nic} combined {pairs}")
                queues = self.port(f"net-{guest.name}")["virtqueues"]
                self.assertEqual(sum(queue["enabled"] for queue in queues), 2 * pairs, queues)
            self.assertGreaterEqual(scenes.ping(a, IPS[1]), 3)

    def test_rss_and_hash_are_left_to_qemu(self):
        a, b = self.start(self.guest(0, queues=2, cpus=2, disk=False, net="rss=on,hash=on"),
                          self.guest(1, disk=False))
        self.assertGreaterEqual(scenes.ping(a, IPS[1]), 3)
        self.throughput(a, b, "rss=on,hash=on at a")
        device = f"/sys/class/net/{a.nic}/device/features"
        features = a.must(f"cat {device}")
        self.assertEqual((features[HASH_REPORT], features[RSS]), ("0", "0"))

    def test_ring_reset_is_not_offered_past_qemu(self):
        """QEMU passes the bit on and tells the daemon nothing when its guest resets a queue: the
        guest would go on with a new ring and the daemon with the old one."""
        a, b = self.pair(disk=False)
        features = a.must(f"cat /sys/class/net/{a.nic}/device/features")
        self.assertEqual(features[RING_RESET], "0")
        self.assertNotEqual(a.run(f"ethtool -G {a.nic} rx 64 tx 64")[0], 0)
        self.assertGreaterEqual(scenes.ping(a, IPS[1]), 3)

    def test_packed_ring(self):
        a, b = self.start(self.guest(0, disk=False, net="packed=on"), self.guest(1, disk=False))
        self.assertGreaterEqual(scenes.ping(a, IPS[1]), 3)
        self.throughput(a, b, "packed ring at a")
        self.assertEqual({queue["format"] for queue in self.port("net-a")["virtqueues"]},
                         {"packed"})

    def test_vlans_keep_guests_apart(self):
        """a and b are on VLAN 10, c is on 20."""
        guests = [self.guest(number, disk=False, vlan=vlan)
                  for number, vlan in enumerate((10, 10, 20))]
        a, b, c = self.start(*guests)
        self.assertGreaterEqual(scenes.ping(a, IPS[1]), 3)
        for ip in IPS[:2]:
            self.unreachable(c, ip)
        self.unreachable(a, IPS[2])

    def test_trunk_port(self):
        a, b = self.start(self.guest(0, disk=False, vlan=10),
                          self.guest(1, disk=False, trunk=[10, 20]))
        self.unreachable(b, IPS[0])
        for vlan in (20, 30, 10):
            b.must(f"ip addr flush dev {b.nic}; ip link del v >/dev/null 2>&1; "
                   f"/usr/sbin/ip link add link {b.nic} name v type vlan id {vlan} && "
                   f"ip link set v up && ip addr add {IPS[1]}/24 dev v")
            if vlan != 10:
                self.unreachable(b, IPS[0])
        self.assertGreaterEqual(scenes.ping(b, IPS[0]), 3)
        self.assertGreaterEqual(scenes.ping(a, IPS[1]), 3)
        self.throughput(a, b, "access port and trunk")

    def test_isolated_ports(self):
        """a and b are isolated from each other, not from c."""
        a, b, c = self.start(*(self.guest(number, disk=False, isolated=number < 2)
                               for number in range(3)))
        self.assertGreaterEqual(scenes.ping(a, IPS[2]), 3)
        self.assertGreaterEqual(scenes.ping(c, IPS[1]), 3)
        self.unreachable(a, IPS[1])
        self.unreachable(b, IPS[0])

    def test_hot_add_and_remove(self):
        a, b = self.guest(0, disk=False), Guest(self.work, "b")
        b.add("-device", ROOT_PORT)
        self.use(b).start(wait=False)
        self.start(a)
        b.wait_ready()
        for round in range(2):
            socket = self.daemon.socket(f"extra{round}")
            self.daemon.millctl("add", "port", "name=extra", f"socket={socket}")
            b.hot_add("virtio-net-pci", f"x{round}", socket, "hot", mac=MACS[1])
            wait_for("the new NIC", lambda: b.interface(MACS[1]), 60, 0.5)
            b.nic = scenes.address(b, MACS[1], IPS[1])
            self.assertGreaterEqual(scenes.ping(b, IPS[0]), 3)
            self.throughput(a, b, f"NIC added, round {round + 1}")
            b.hot_remove(f"x{round}")
            self.assertEqual(b.interface(MACS[1]), "")
            self.daemon.millctl("remove", "port", "extra")
            self.assertEqual([port["name"] for port in self.daemon.ask("query-ports")], ["net-a"])

    def test_jumbo_frames(self):
        a, b = self.pair(disk=False, mtu=9000, net="host_mtu=9000")
        for guest in (a, b):
            guest.must(f"ip link set {guest.nic} mtu 9000")
        scenes.ping(a, IPS[1])
        self.assertIn(" 0% packet loss", a.must(f"ping -c 3 -i 0.2 -s 8900 {IPS[1]}"))
        self.throughput(a, b, "MTU 9000")


class Disk(GuestsTest):
    def setUp(self):
        super().setUp()
        self.counted = {}

    def one(self, **more):
        return self.start(self.guest(0, **more))[0]

    def test_file_system(self):
        a, b = self.pair()
        for guest in (a, b):
            self._count_both(guest)  # from here: firmware has read the first sector of its own
            guest.must("dd if=/dev/vda of=/dev/null bs=64k count=16 iflag=direct && "
                       "dd if=/dev/urandom of=/dev/vda bs=64k count=16 oflag=direct", 60)
            self.assertEqual(self._agree(guest), {"read_requests": 16, "read_bytes": 1 << 20,
                                                  "flush_requests": 0, "discard_requests": 0,
                                                  "write_requests": 16, "write_bytes": 1 << 20})
            scenes.make_filesystem(guest, "vda")
        for guest in (a, b):
            self.assertEqual(scenes.write_and_verify(guest, "vda"), 4)
        for guest in (a, b):
            guest.must("umount /mnt && e2fsck -f -n /dev/vda", 120)
            # a guest counts flushes and zeroed ranges as writes too, so not those here
            counted = self._agree(guest, "read_requests", "read_bytes", "flush_requests",
                                  "discard_requests")
            self.assertGreater(counted["flush_requests"], 0)
            self.assertGreater(counted["discard_requests"], 0)
            self.assertGreaterEqual(counted["read_bytes"], 16 << 20)
            disk = self.daemon.ask("query-counters")["disks"][f"disk-{guest.name}"]
            self.assertEqual((disk["io_errors"], disk["unsupported"], disk["in_flight"]), (0, 0, 0))

    def _count_both(self, guest):
        """What the guest counts (Linux: Documentation/block/stat.rst), and what the daemon does."""
        fields = [int(word) for word in guest.must("cat /sys/block/vda/stat").split()]
        theirs = {"read_requests": fields[0], "read_bytes": fields[2] * 512,
                  "write_requests": fields[4], "write_bytes": fields[6] * 512,
                  "discard_requests": fields[11], "flush_requests": fields[15]}
        disk = self.daemon.ask("query-counters")["disks"][f"disk-{guest.name}"]
        ours = {name: disk[name] for name in theirs}
        before = self.counted.get(guest.name, (theirs, ours))
        self.counted.setdefault(guest.name, before)
        return ({name: now[name] - then[name] for name in now}
                for now, then in zip((theirs, ours), before))

    def _agree(self, guest, *names):
        """What both counted since the first look, which has to be the same."""
        theirs, ours = self._count_both(guest)
        names = names or ours.keys()
        self.assertEqual({name: theirs[name] for name in names},
                         {name: ours[name] for name in names})
        return ours

    def test_reboot(self):
        guest, peer = self.pair()
        scenes.make_filesystem(guest, "vda")
        guest.must("echo kept >/mnt/file && sync && umount /mnt")
        for _ in range(2):
            guest.reboot()
            self.assertEqual(guest.must("mkdir -p /mnt; mount /dev/vda /mnt; cat /mnt/file; "
                                        "umount /mnt"), "kept")
            scenes.address(guest, MACS[0], IPS[0])
            self.assertGreaterEqual(scenes.ping(peer, IPS[0]), 3)

    def test_driver_unbind_and_bind(self):
        a, b = self.pair()
        scenes.make_filesystem(a, "vda")
        a.must("echo kept >/mnt/file && umount /mnt")
        for _ in range(3):
            a.must("""set -e
for driver in virtio_net virtio_blk; do
  for device in $(cd /sys/bus/virtio/drivers/$driver && ls -d virtio*); do
    echo $device >/sys/bus/virtio/drivers/$driver/unbind
    echo $device >/sys/bus/virtio/drivers/$driver/bind
  done
done""")
            wait_for("the disk", lambda: a.run("test -b /dev/vda")[0] == 0)
            self.assertEqual(a.must("mount /dev/vda /mnt; cat /mnt/file; umount /mnt"), "kept")
            a.nic = scenes.address(a, MACS[0], IPS[0])
            self.assertGreaterEqual(scenes.ping(a, IPS[1]), 3)

    def test_hot_add_and_remove(self):
        guest = self.guest(0)
        guest.add("-device", ROOT_PORT)
        self.start(guest)
        for round in range(2):
            image = self.daemon.image("extra", 32)
            socket = self.daemon.socket(f"extra{round}")
            self.daemon.millctl("add", "disk", "name=extra", f"socket={socket}", f"path={image}")
            guest.hot_add("vhost-user-blk-pci", f"x{round}", socket, "hot")
            wait_for("the new disk", lambda: guest.run("test -b /dev/vdb")[0] == 0, 60, 0.5)
            guest.must("mkdir -p /x")
            scenes.make_filesystem(guest, "vdb", "/x")
            self.assertEqual(scenes.write_and_verify(guest, "vdb", 4, "/x"), 4)
            guest.must("umount /x")
            guest.hot_remove(f"x{round}")
            self.assertNotEqual(guest.run("test -b /dev/vdb")[0], 0)
            self.daemon.millctl("remove", "disk", "extra")
            self.assertEqual([disk["name"] for disk in self.daemon.ask("query-disks")], ["disk-a"])

    def test_resize_reaches_the_guest(self):
        guest = self.one()
        self.assertEqual(guest.must("cat /sys/block/vda/size"), str(64 * 2048))
        self.daemon.millctl("resize", "disk-a", "96MiB")
        wait_for("the new size", lambda: guest.must("cat /sys/block/vda/size") == str(96 * 2048))
        guest.must("dd if=/dev/zero of=/dev/vda bs=1M seek=95 count=1 conv=fsync")

    def test_discard(self):
        guest = self.one()
        guest.must("dd if=/dev/urandom of=/dev/vda bs=1M count=16 conv=fsync 2>/dev/null")
        image = self.work / "disk-a.img"
        before = os.stat(image).st_blocks
        guest.must("blkdiscard /dev/vda")
        self.assertLess(os.stat(image).st_blocks, before)

    def test_readonly(self):
        guest = Guest(self.work, "a")
        image = self.daemon.image("disk-a", 16)
        guest.blk(self.daemon.disk("disk-a", path=image, readonly=True))
        self.use(self.daemon)
        self.use(guest)
        guest.start()
        self.assertEqual(guest.must("cat /sys/block/vda/ro"), "1")
        self.assertNotEqual(guest.run("dd if=/dev/zero of=/dev/vda bs=512 count=1")[0], 0)

    def test_packed_ring_and_memory_disk(self):
        guest = Guest(self.work, "a")
        guest.blk(self.daemon.disk("ram", backend="ram", size="64MiB"), 1, "packed=on")
        self.use(self.daemon)
        self.use(guest)
        guest.start()
        scenes.make_filesystem(guest, "vda")
        self.assertEqual(scenes.write_and_verify(guest, "vda"), 4)
        disk = self.daemon.ask("query-disks")[0]
        self.assertEqual(disk["virtqueues"][0]["format"], "packed")


class Kernel(GuestsTest):
    def test_generic_kernel(self):
        """Debian's other kernel, the one with every driver."""
        guest = Guest(self.work, "a", flavour="generic")
        guest.net(self.daemon.port("net-a"), MACS[0])
        guest.blk(self.daemon.disk("disk-a", path=self.daemon.image("disk-a", 64)))
        self.start(guest)
        self.assertNotIn("cloud", guest.must("uname -r"))
        scenes.make_filesystem(guest, "vda")
        self.assertEqual(scenes.write_and_verify(guest, "vda", 4), 4)


if __name__ == "__main__":
    main()
