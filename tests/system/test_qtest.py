"""Virtio devices poked register by register through QEMU, without a guest."""

import os
import signal
import struct
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig.case import RigError, SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.process import run, wait_for
from tests.rig.qtest import (EVENT_IDX, INDIRECT, RING_PACKED, BlkDriver, QtestQemu, VirtioPci)

DISK_MB = 64
SECTORS = DISK_MB * 2048
# virtio 1.2 5.2.3
SEG_MAX, BLK_SIZE, FLUSH, TOPOLOGY, MQ, DISCARD, WRITE_ZEROES = (
    1 << bit for bit in (2, 6, 9, 10, 12, 13, 14))
BLK = SEG_MAX | BLK_SIZE | MQ | DISCARD | WRITE_ZEROES | FLUSH
UNMAP = 1


class BlkTest(SystemTest):
    ring_features = 0
    options = ""

    def setUp(self):
        super().setUp()
        self.daemon = Daemon(self.work)
        self.image = self.daemon.image("disk", DISK_MB)

    def machine(self, queues=1, options="", **keys):
        """The daemon, and a machine with one disk of it."""
        socket = self.daemon.disk("disk", path=self.image, queues=queues, **keys)
        self.use(self.daemon)
        options = ",".join(filter(None, [options, self.options]))
        machine = self.use(QtestQemu(self.work).blk(socket, queues, options).start())
        return machine, VirtioPci(machine, machine.virtio_devices()[0])

    def driver(self, device, features=0, indirect=False, queue=0):
        device.negotiate(BLK | features | self.ring_features)
        ring = device.queue(queue)
        device.start()
        return BlkDriver(device, ring, indirect)

    def queue(self):
        """The first queue as the daemon sees it."""
        return self.daemon.ask("query-disks")[0]["virtqueues"][0]

    def exchange(self, blk, base=0):
        """Writes, reads back, asks for the name."""
        for number in range(40):
            data = bytes([number + base & 0xFF]) * 4096
            self.assertEqual(blk.write(8 * (base + number), data), BlkDriver.OK)
        self.assertEqual(blk.flush(), BlkDriver.OK)
        for number in range(40):
            self.assertEqual(blk.read(8 * (base + number), 4096),
                             bytes([number + base & 0xFF]) * 4096)
        status, name, used = blk.request(BlkDriver.GET_ID, read=20)
        self.assertEqual((status, used), (BlkDriver.OK, 21))
        self.assertEqual(name.rstrip(b"\0"), b"disk")


class Scenarios:
    """What QEMU's own test of vhost-user-blk asks, and more; run over both ring formats."""

    def test_basic(self):
        _, device = self.machine()
        blk = self.driver(device)
        self.assertEqual(blk.capacity(), SECTORS)
        self.exchange(blk)

    def test_indirect(self):
        _, device = self.machine()
        blk = self.driver(device, INDIRECT, indirect=True)
        self.assertTrue(device.accepted & INDIRECT)
        self.exchange(blk)

    def test_event_index(self):
        _, device = self.machine()
        blk = self.driver(device, EVENT_IDX)
        self.assertTrue(device.accepted & EVENT_IDX)
        for wanted in (True, False, True):
            before = self.queue()
            for number in range(10):
                blk.ring.want_calls(wanted)
                self.assertEqual(blk.write(8 * number, bytes([number]) * 4096), BlkDriver.OK)
            after = self.queue()
            self.assertEqual([after[key] - before[key] for key in ("calls", "calls_suppressed")],
                             [10, 0] if wanted else [0, 10])
        self.exchange(blk)

    def test_8_queues(self):
        _, device = self.machine(queues=8)
        device.negotiate(BLK | self.ring_features)
        self.assertEqual(device.queues_max(), 8)
        rings = [device.queue(index, 64) for index in range(8)]
        device.start()
        for number, ring in enumerate(rings):
            self.exchange(BlkDriver(device, ring), 100 * number)

    def test_more_queues_than_used(self):
        _, device = self.machine(queues=8)
        blk = self.driver(device)  # one of eight is ever enabled
        self.exchange(blk)

    def test_driver_restart(self):
        _, device = self.machine()
        for round in range(5):
            self.exchange(self.driver(device), 50 * round)
        device.reset()

    def test_reads_zeros_of_a_fresh_image(self):
        _, device = self.machine()
        blk = self.driver(device)
        for sector in (0, 12345, SECTORS - 8):
            self.assertEqual(blk.read(sector, 4096), bytes(4096))

    def test_ranges(self):
        """DISCARD and WRITE_ZEROES: what is good, and the status of each thing that is not."""
        _, device = self.machine()
        blk = self.driver(device)
        self.assertEqual(device.accepted & (DISCARD | WRITE_ZEROES), DISCARD | WRITE_ZEROES)
        self.assertEqual(blk.write(8, b"\x5a" * 4096), BlkDriver.OK)
        for kind in (BlkDriver.DISCARD, BlkDriver.WRITE_ZEROES):
            with self.subTest(kind=kind):
                self.assertEqual(blk.range(kind, (0, 0xFFFFFFFF, 0)), BlkDriver.IOERR)
                self.assertEqual(blk.range(kind, (SECTORS + 1, 1, 0)), BlkDriver.IOERR)
                self.assertEqual(blk.range(kind, (SECTORS - 1, 2, 0)), BlkDriver.IOERR)
                self.assertEqual(blk.range(kind, (0, 1, 2)), BlkDriver.UNSUPP)
                self.assertEqual(blk.range(kind, (0, 1, 0x80000000)), BlkDriver.UNSUPP)
        self.assertEqual(blk.range(BlkDriver.DISCARD, (0, 1, UNMAP)), BlkDriver.UNSUPP)
        self.assertEqual(blk.read(8, 4096), b"\x5a" * 4096)
        for flags in (0, UNMAP):
            self.assertEqual(blk.write(8, b"\x5a" * 4096), BlkDriver.OK)
            self.assertEqual(blk.range(BlkDriver.WRITE_ZEROES, (8, 8, flags)), BlkDriver.OK)
            self.assertEqual(blk.read(8, 4096), bytes(4096))
        self.assertEqual(blk.range(BlkDriver.DISCARD, (16, 8, 0)), BlkDriver.OK)

    def test_more_segments_than_allowed(self):
        """max_discard_seg and max_write_zeroes_seg are what the device says, and hold."""
        _, device = self.machine()
        blk = self.driver(device)
        for kind, offset in ((BlkDriver.DISCARD, 40), (BlkDriver.WRITE_ZEROES, 52)):
            most = device.get(offset, 4, device.config)
            self.assertGreaterEqual(most, 1)
            good = [(8 * number, 8, 0) for number in range(most)]
            self.assertEqual(blk.range(kind, *good), BlkDriver.OK)
            self.assertNotEqual(blk.range(kind, *good, (0, 8, 0)), BlkDriver.OK)

    def test_limits_of_discards_are_told(self):
        """`discard_max` of the configuration is what the driver reads, and a range beyond it is
        refused; it holds for write-zeroes too."""
        _, device = self.machine(discard_max="1MiB")
        blk = self.driver(device)
        most, ranges, alignment, zeroes = (device.get(at, 4, device.config)
                                           for at in (36, 40, 44, 48))
        self.assertEqual(most, 2048)
        self.assertGreaterEqual(ranges, 1)
        self.assertGreaterEqual(alignment, 1)
        self.assertEqual(zeroes, most)
        self.assertEqual(blk.range(BlkDriver.DISCARD, (0, 2048, 0)), BlkDriver.OK)
        self.assertNotEqual(blk.range(BlkDriver.DISCARD, (0, 2049, 0)), BlkDriver.OK)

    def test_beyond_the_end(self):
        _, device = self.machine()
        blk = self.driver(device)
        self.assertEqual(blk.write(SECTORS, bytes(512)), BlkDriver.IOERR)
        self.assertEqual(blk.write(SECTORS - 1, bytes(1024)), BlkDriver.IOERR)
        status, _, used = blk.request(BlkDriver.IN, (1 << 64) - 1, read=512)
        self.assertEqual(status, BlkDriver.IOERR)
        self.assertGreaterEqual(used, 1)
        self.assertEqual(blk.write(SECTORS - 1, b"\1" * 512), BlkDriver.OK)

    def test_file_system_without_room(self):
        """A sparse image outgrows what lies below it: that write fails, and nothing else."""
        point = self.work / "small"
        os.mkdir(point)
        run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", point])
        self.addCleanup(run, ["umount", "-l", point], check=False)
        self.image = os.path.join(point, "disk.img")
        with open(self.image, "wb") as file:
            file.truncate(DISK_MB << 20)
        _, device = self.machine()
        blk = self.driver(device)
        data, statuses = b"\x5a" * 65536, []
        for number in range(DISK_MB):
            statuses.append(blk.write(number * 128, data))
        written = statuses.count(BlkDriver.OK)
        self.assertEqual(set(statuses), {BlkDriver.OK, BlkDriver.IOERR})
        self.assertTrue(32 <= written <= 48, written)
        self.assertEqual(self.daemon.ask("query-disks")[0]["counters"]["io_errors"],
                         DISK_MB - written)
        self.assertEqual(blk.read(0, 65536), data)
        self.assertEqual(blk.write(0, data), BlkDriver.OK)
        self.assertEqual(blk.flush(), BlkDriver.OK)

    def test_block_device(self):
        """A device of 4 KiB blocks: they and its topology reach the driver, and so does its growth;
        less than a block is refused."""
        try:
            loop = run(["losetup", "--find", "--show", "--sector-size=4096", self.image]).stdout
        except (OSError, RigError) as error:
            self.skipTest(f"skipped: no loop devices on this machine: {error}")
        self.image, image = loop.strip(), self.image
        self.addCleanup(run, ["losetup", "-d", self.image], check=False)
        _, device = self.machine()
        device.negotiate(BLK | TOPOLOGY | self.ring_features)
        ring = device.queue(0)
        device.start()
        blk = BlkDriver(device, ring)
        block_size, exponent, offset, least, best = struct.unpack("<IBBHI", b"".join(
            device.get(at, 1, device.config).to_bytes(1, "little") for at in range(20, 32)))
        self.assertEqual((block_size, block_size << exponent, offset), (4096, 4096, 0))
        self.assertEqual((least, best), (1, 0))
        self.assertEqual(blk.capacity(), SECTORS)
        self.exchange(blk)
        self.assertEqual(blk.write(1, b"\1" * 512), BlkDriver.IOERR)
        os.truncate(image, 2 * DISK_MB << 20)
        run(["losetup", "--set-capacity", self.image])
        self.daemon.millctl("resize", "disk")
        wait_for("the new size", lambda: blk.capacity() == 2 * SECTORS)
        self.assertEqual(blk.write(SECTORS, b"\2" * 4096), BlkDriver.OK)
        self.assertEqual(blk.read(SECTORS, 4096), b"\2" * 4096)

    def test_unknown_request(self):
        _, device = self.machine()
        blk = self.driver(device)
        self.assertEqual(blk.request(0x7777)[0], BlkDriver.UNSUPP)
        self.exchange(blk)

    def test_malformed_chain_costs_only_its_queue(self):
        """A chain outside memory poisons that queue; the other one, and a reset, are unharmed."""
        machine, device = self.machine(queues=2)
        device.negotiate(BLK | self.ring_features)
        bad, good = device.queue(0), device.queue(1)
        device.start()
        bad.add([(1 << 50, 16, False), (1 << 50, 1, True)])
        bad.publish()
        self.exchange(BlkDriver(device, good))
        wait_for("the queue's fault to be told", lambda: any(
            queue["fault"] for queue in self.daemon.ask("query-disks")[0]["virtqueues"]))
        self.exchange(self.driver(device))

    def test_hotplug(self):
        """A second disk is plugged in, used, and removed."""
        machine, device = self.machine()
        blk = self.driver(device)
        path = self.daemon.image("second", 16)
        socket = self.daemon.socket("second")
        self.daemon.ask("disk-add", name="second", socket=socket, path=path)
        machine.qmp("chardev-add", id="hot", backend={"type": "socket", "data": {
            "addr": {"type": "unix", "data": {"path": socket}}, "server": False}})
        options = {key: value == "on" for key, value in
                   (pair.split("=") for pair in filter(None, self.options.split(",")))}
        machine.qmp("device_add", driver="vhost-user-blk-pci", id="hot", chardev="hot",
                    addr="0x10", **options)
        hot = VirtioPci(machine, 0x10 << 3)
        second = self.driver(hot)
        self.assertEqual(second.capacity(), 16 * 2048)
        for sector in (0, 800):
            self.assertEqual(second.write(sector, b"\7" * 512), BlkDriver.OK)
            self.assertEqual(second.read(sector, 512), b"\7" * 512)
        hot.reset()
        machine.qmp("device_del", id="hot")
        machine.ask(f"outl 0xae08 {1 << 0x10:#x}")  # what the guest does: eject, through ACPI
        machine.qmp.wait_event("DEVICE_DELETED", 20)
        self.daemon.ask("disk-remove", name="second")
        self.exchange(blk)


class Split(Scenarios, BlkTest):
    pass


class Packed(Scenarios, BlkTest):
    ring_features = RING_PACKED
    options = "packed=on"

    def driver(self, device, features=0, indirect=False, queue=0):
        blk = super().driver(device, features, indirect, queue)
        self.assertTrue(device.accepted & RING_PACKED)
        return blk


class Nic(SystemTest):
    MTU = 1 << 3

    def test_mtu_of_the_front_end(self):
        """QEMU's `host_mtu=` is what the driver reads, and what the daemon shows of the port."""
        daemon = Daemon(self.work)
        socket = daemon.port("nic", mtu=9000)
        self.use(daemon)
        shown = lambda: daemon.ask("query-ports")[0]["mtu"]
        self.assertEqual(shown(), 9000)
        machine = self.use(QtestQemu(self.work).net(socket, "52:54:00:00:00:01",
                                                    options="host_mtu=1450").start())
        device = VirtioPci(machine, machine.virtio_devices()[0])
        self.assertTrue(device.negotiate(self.MTU) & self.MTU)
        self.assertEqual(device.get(10, 2, device.config), 1450)
        for queue in (0, 1):
            device.queue(queue)
        device.start()
        wait_for("the front-end's mtu", lambda: shown() == 1450)


class Drain(BlkTest):
    """A request that does not end: its file system is frozen."""

    def stuck(self):
        """The daemon is told to end, and cannot. Answers what thaws the file system."""
        small = self.daemon.image("small", DISK_MB)
        point = self.work / "frozen"
        os.mkdir(point)
        try:
            run(["mkfs.ext4", "-q", small])
            run(["mount", "-o", "loop", small, point])
        except (OSError, RigError) as error:
            self.skipTest(f"skipped: no loop devices on this machine: {error}")
        self.addCleanup(run, ["umount", "-l", point], check=False)
        self.addCleanup(run, ["fsfreeze", "-u", point], check=False)
        self.image = os.path.join(point, "disk.img")
        with open(self.image, "wb") as file:
            file.truncate(16 << 20)
        _, device = self.machine()
        blk = self.driver(device)
        run(["fsfreeze", "-f", point])
        blk.begin(BlkDriver.OUT, 0, bytes(512))
        wait_for("the request to be taken", lambda: self.daemon.ask("query-disks")[0]["counters"][
            "in_flight"] == 1, 20)
        self.daemon.stopped = True
        self.daemon.process.signal(signal.SIGTERM)
        wait_for("the drain", lambda: "stopping: SIGTERM" in self.daemon.log())
        return lambda: run(["fsfreeze", "-u", point])

    def ended(self, line, thaw):
        wait_for("the daemon to give up", lambda: line in self.daemon.log(), 60)
        thaw()  # a process with a request under work in the kernel is not gone before it ends
        self.assertEqual(self.daemon.process.wait(30), 1)
        self.assertNotIn("drained", self.daemon.log().replace("not drained", ""))
        self.daemon.process.kill()

    def test_second_signal(self):
        thaw = self.stuck()
        self.daemon.process.signal(signal.SIGTERM)
        self.ended("a second signal: ending without draining", thaw)

    def test_no_end(self):
        thaw = self.stuck()
        self.ended("not drained after 30 s: ending without it", thaw)


if __name__ == "__main__":
    main()
