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

    def port(self, name):
        return next(port for port in self.daemon.ask("query-ports") if port["name"] == name)

    def throughput(self, a, b, what):
        for client, server, ip in ((a, b, IPS[1]), (b, a, IPS[0])):
            rate = scenes.iperf(client, server, ip)
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
        self.assertGreater(sum(self.port(n)["counters"]["tx_bytes"] for n in ("net-a", "net-b")), 0)

        a.must(f"ethtool -K {a.nic} tso off gso off")
        self.throughput(a, b, "TSO off at a")
        a.must(f"ethtool -K {a.nic} tx off sg off gro off")
        self.throughput(a, b, "no offload at a")
        a.must(f"ethtool -K {a.nic} tx on sg on tso on")
        self.throughput(a, b, "offloads on again")
        for name in ("net-a", "net-b"):
            counters = self.port(name)["counters"]
            self.assertEqual(counters["drop_malformed"], 0, counters)

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
        queues = [queue for queue in self.port("net-a")["virtqueues"] if queue["enabled"]]
        self.assertEqual(len(queues), 4)
        for guest in (a, b):  # back to one, and again
            guest.must(f"ethtool -L {guest.nic} combined 1")
        self.assertGreaterEqual(scenes.ping(a, IPS[1]), 3)

    def test_rss_and_hash_are_left_to_qemu(self):
        a, b = self.start(self.guest(0, queues=2, cpus=2, disk=False, net="rss=on,hash=on"),
                          self.guest(1, disk=False))
        self.assertGreaterEqual(scenes.ping(a, IPS[1]), 3)
        self.throughput(a, b, "rss=on,hash=on at a")

    def test_packed_ring(self):
        a, b = self.start(self.guest(0, disk=False, net="packed=on"), self.guest(1, disk=False))
        self.assertGreaterEqual(scenes.ping(a, IPS[1]), 3)
        self.throughput(a, b, "packed ring at a")
        self.assertEqual({queue["format"] for queue in self.port("net-a")["virtqueues"]},
                         {"packed"})

    def test_vlans_keep_guests_apart(self):
        """a and b are on VLAN 10, c is on 20; then c's trunk carries both."""
        guests = [self.guest(number, disk=False, vlan=vlan)
                  for number, vlan in enumerate((10, 10, 20))]
        a, b, c = self.start(*guests)
        self.assertGreaterEqual(scenes.ping(a, IPS[1]), 3)
        for ip in IPS[:2]:
            self.assertNotEqual(c.run(f"ping -c 2 -W 1 {ip}")[0], 0)
        self.assertNotEqual(a.run(f"ping -c 2 -W 1 {IPS[2]}")[0], 0)

    def test_trunk_port(self):
        a, b = self.start(self.guest(0, disk=False, vlan=10),
                          self.guest(1, disk=False, trunk=[10, 20]))
        self.assertNotEqual(b.run(f"ping -c 2 -W 1 {IPS[0]}")[0], 0)
        b.must(f"ip addr flush dev {b.nic}; /usr/sbin/ip link add link {b.nic} name v10 "
               f"type vlan id 10 && ip link set v10 up && ip addr add {IPS[1]}/24 dev v10")
        self.assertGreaterEqual(scenes.ping(b, IPS[0]), 3)
        self.assertGreaterEqual(scenes.ping(a, IPS[1]), 3)

    def test_isolated_ports(self):
        a, b = self.start(self.guest(0, disk=False, isolated=True),
                          self.guest(1, disk=False, isolated=True))
        self.assertNotEqual(a.run(f"ping -c 2 -W 1 {IPS[1]}")[0], 0)

    def test_jumbo_frames(self):
        a, b = self.pair(disk=False, mtu=9000, net="host_mtu=9000")
        for guest in (a, b):
            guest.must(f"ip link set {guest.nic} mtu 9000")
        scenes.ping(a, IPS[1])
        self.assertIn(" 0% packet loss", a.must(f"ping -c 3 -i 0.2 -s 8900 {IPS[1]}"))
        self.throughput(a, b, "MTU 9000")


class Disk(GuestsTest):
    def one(self, **more):
        return self.start(self.guest(0, **more))[0]

    def test_file_system(self):
        a, b = self.pair()
        for guest in (a, b):
            scenes.make_filesystem(guest, "vda")
        for guest in (a, b):
            self.assertEqual(scenes.write_and_verify(guest, "vda"), 4)
        for guest in (a, b):
            guest.must("umount /mnt && e2fsck -f -n /dev/vda", 120)
        # the daemon counted the same requests as the guest
        for guest, name in ((a, "disk-a"), (b, "disk-b")):
            fields = guest.must("cat /sys/block/vda/stat").split()
            counters = self.daemon.ask("query-counters")["disks"][name]
            self.assertAlmostEqual(int(fields[0]), counters["read_requests"], delta=2)
            self.assertAlmostEqual(int(fields[4]), counters["write_requests"], delta=2)
            self.assertEqual(int(fields[6]) * 512, counters["write_bytes"])
            self.assertEqual(counters["io_errors"], 0)
            self.assertGreater(counters["flush_requests"], 0)

    def test_reboot(self):
        guest = self.one()
        scenes.make_filesystem(guest, "vda")
        guest.must("echo kept >/mnt/file && sync && umount /mnt")
        for _ in range(2):
            guest.reboot()
            self.assertEqual(guest.must("mkdir -p /mnt; mount /dev/vda /mnt; cat /mnt/file; "
                                        "umount /mnt"), "kept")
            scenes.address(guest, MACS[0], IPS[0])

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
        guest.add("-device", "pcie-root-port,id=hot,chassis=1,slot=1")
        self.start(guest)
        for round in range(2):
            image = self.daemon.image("extra", 32)
            socket = self.daemon.socket(f"extra{round}")
            self.daemon.millctl("add", "disk", "name=extra", f"socket={socket}", f"path={image}")
            guest.qmp("chardev-add", id=f"x{round}", backend={"type": "socket", "data": {
                "addr": {"type": "unix", "data": {"path": socket}}, "server": False}})
            guest.qmp("device_add", driver="vhost-user-blk-pci", id="x", chardev=f"x{round}",
                      bus="hot")
            wait_for("the new disk", lambda: guest.run("test -b /dev/vdb")[0] == 0, 30, 0.5)
            guest.must("mkdir -p /x")
            scenes.make_filesystem(guest, "vdb", "/x")
            self.assertEqual(scenes.write_and_verify(guest, "vdb", 4, "/x"), 4)
            guest.must("umount /x")
            guest.qmp("device_del", id="x")
            guest.qmp.wait_event("DEVICE_DELETED", 60)
            self.assertNotEqual(guest.run("test -b /dev/vdb")[0], 0)
            guest.qmp("chardev-remove", id=f"x{round}")
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
