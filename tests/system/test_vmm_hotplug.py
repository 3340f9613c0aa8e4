"""NICs and disks that come to a running stock guest and go from it again, and guests with more
devices than one PCI bus holds."""

import hashlib
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import inside, scenes
from tests.rig.case import SystemTest, long
from tests.rig.daemon import Daemon
from tests.rig.process import RigError, wait_for
from tests.rig.qmp import Qmp, QmpError
from tests.rig.vmm import Vmm

POWERED_OFF = 0
MAC, PEER_MAC, HOT_MAC = "52:54:00:00:00:0a", "52:54:00:00:00:0b", "52:54:00:00:00:0c"
IP, PEER_IP, HOT_IP, HOT_PEER_IP = "10.9.0.1", "10.9.0.2", "10.8.0.1", "10.8.0.2"


class HotPlugTest(SystemTest):
    """A daemon, guests with control sockets, and what the host sees of them."""

    def setUp(self):
        super().setUp()
        self.daemon = Daemon(self.work)

    def guest(self, name="a", **more):
        control = str(self.work / f"{name}.control")
        more["more"] = ["--control", control, *more.get("more", ())]
        guest = self.use(Vmm(self.work, name, **more))
        guest.control = control
        return guest

    def pattern(self, name, megabytes=2):
        """A disk image of random bytes. Answers its path and their digest."""
        data = os.urandom(megabytes << 20)
        path = self.daemon.image(name, megabytes)
        with open(path, "wb") as file:
            file.write(data)
        return path, hashlib.sha256(data).hexdigest()

    def refuse(self, qmp, said, command, **arguments):
        with self.assertRaises(QmpError) as caught:
            qmp(command, **arguments)
        self.assertRegex(caught.exception.text, said)
        self.assertNotIn("\n", caught.exception.text)

    def held(self, guest):
        """How many descriptors and threads the program has."""
        folder = f"/proc/{guest.process.pid}"
        return len(os.listdir(f"{folder}/fd")), len(os.listdir(f"{folder}/task"))

    def wait_for_disk(self, guest, disk):
        wait_for(f"{disk} in the guest", lambda: guest.run(f"test -b /dev/{disk}")[0] == 0, 180,
                 0.2)

    def wait_for_nic(self, guest, mac):
        return wait_for(f"the NIC {mac} in the guest",
                        lambda: guest.run(f"grep -q {mac} /sys/class/net/*/address")[0] == 0
                        and guest.interface(mac), 180, 0.2)

    def wait_until_deleted(self, qmp, *ids):
        gone = {qmp.wait_event("DEVICE_DELETED")["data"]["device"] for _ in ids}
        self.assertEqual(gone, set(ids))


class Plug(HotPlugTest):
    """A pair of guests; what comes and goes does so in the first."""

    def pair(self, **more):
        image, self.digest = self.pattern("hot")
        self.hot_disk = self.daemon.disk("hot", path=image)
        self.hot_net = self.daemon.port("hot-net")
        a = self.guest("a", **more).net(self.daemon.port("net-a"), MAC)
        a.blk(self.daemon.disk("root", path=self.daemon.image("root", 64)))
        b = self.use(Vmm(self.work, "b")).net(self.daemon.port("net-b"), PEER_MAC)
        self.use(self.daemon)
        for guest in (a, b):
            guest.start(wait=False)
        a.wait_ready()
        b.wait_ready()
        scenes.address(a, MAC, IP)
        nic = scenes.address(b, PEER_MAC, PEER_IP)
        b.must(f"ip addr add {HOT_PEER_IP}/24 dev {nic}")
        return a, b

    def plug_both(self, qmp):
        qmp("device_add", driver="disk", id="more-disk", socket=self.hot_disk)
        qmp("device_add", driver="net", id="more-net", socket=self.hot_net, mac=HOT_MAC)

    def check_both(self, guest):
        self.wait_for_disk(guest, "vdb")
        self.assertEqual(guest.must("sha256sum </dev/vdb").split()[0], self.digest)
        self.wait_for_nic(guest, HOT_MAC)
        scenes.address(guest, HOT_MAC, HOT_IP)
        self.assertGreaterEqual(scenes.ping(guest, HOT_PEER_IP), 3)

    def unplug_both(self, qmp):
        for name in ("more-disk", "more-net"):
            qmp("device_del", id=name)
        self.wait_until_deleted(qmp, "more-disk", "more-net")

    def check_neither(self, guest):
        self.assertNotEqual(guest.run("test -e /sys/block/vdb")[0], 0)
        self.assertNotEqual(guest.run(f"grep -q {HOT_MAC} /sys/class/net/*/address")[0], 0)

    def rounds_under_traffic(self, a, b, rounds):
        scenes.make_filesystem(a, "vda")
        load = scenes.FileLoad(a, "vda")
        b.must(f"ping -i 0.2 {IP} >/tmp/ping 2>&1 &")
        with Qmp(a.control) as qmp:
            before = self.held(a)
            for _ in range(rounds):
                self.plug_both(qmp)
                self.check_both(a)
                self.assertGreater(self.held(a), before)
                self.unplug_both(qmp)
                self.check_neither(a)
                self.assertEqual(self.held(a), before)
        written = load.end(self)
        b.must("killall -INT ping; while pidof ping; do sleep 0.1; done")
        sent, received = map(int, re.search(
            r"(\d+) packets transmitted, (\d+) packets received",
            b.must("cat /tmp/ping")).groups())
        self.report(f"{a.kernel}: {rounds} rounds, {written} files verified meanwhile, {received} "
                    f"of {sent} pings answered")
        self.assertGreater(written, 0)
        self.assertGreaterEqual(received, sent - 2)
        self.assertEqual(a.kernel_log("I/O error|BUG:|WARNING:|Call Trace"), "")
        self.assertEqual([a.stop(), b.stop()], [POWERED_OFF] * 2)

    def test_rounds_under_traffic(self):
        """Several times a NIC and a disk come, work and go, beside a disk and a NIC in use; nothing
        of theirs stays behind in the guest or the program."""
        self.rounds_under_traffic(*self.pair(), 8 if os.environ.get("MILLRACE_FULL") else 3)

    @long("another kernel")
    def test_6_12(self):
        try:
            a, b = self.pair(flavour="cloud-6.12")
        except RigError as error:
            if "apt knows no kernel" not in str(error):
                raise
            self.skipTest(str(error).splitlines()[0])
        self.rounds_under_traffic(a, b, 1)

    @long("50 s")
    def test_reboot_keeps_what_was_plugged_in(self):
        a, b = self.pair(more=["--reboot", "restart"])
        with Qmp(a.control) as qmp:
            self.plug_both(qmp)
            self.check_both(a)
            where = a.must("readlink -f /sys/block/vdb")
            a.reboot()
            self.check_both(a)
            self.assertEqual(a.must("readlink -f /sys/block/vdb"), where)
            self.unplug_both(qmp)
            self.check_neither(a)
            a.reboot()
            self.check_neither(a)
            self.assertEqual(a.must("cd /sys/block && ls -d vd*"), "vda")
        self.assertEqual([a.stop(), b.stop()], [POWERED_OFF] * 2)


class Refused(HotPlugTest):
    def test_what_cannot_be_plugged_or_unplugged(self):
        """Each in one line, and the guest is what it was before."""
        disks = [self.daemon.disk(f"d{i}", path=self.pattern(f"d{i}", 1)[0]) for i in range(3)]
        guest = self.guest(more=["--hotplug-slots", "1"]).blk(disks[0])
        guest.blk(f"{self.daemon.disk('d3', path=self.pattern('d3', 1)[0])},removable=yes")
        self.use(self.daemon)
        guest.start()
        nobody = str(self.work / "nobody")
        with Qmp(guest.control) as qmp:
            before = self.held(guest)
            self.refuse(qmp, "nobody serves this socket", "device_add", driver="disk", id="x",
                        socket=nobody)
            self.refuse(qmp, "there is a device .disk0. already", "device_add", driver="disk",
                        id="disk0", socket=disks[1])
            self.refuse(qmp, "there is no device .x.", "device_del", id="x")
            self.refuse(qmp, "'disk0' cannot be unplugged", "device_del", id="disk0")
            self.assertEqual(self.held(guest), before)
            qmp("device_add", driver="disk", id="x", socket=disks[1])
            self.wait_for_disk(guest, "vdc")
            self.refuse(qmp, "--hotplug-slots", "device_add", driver="disk", id="y",
                        socket=disks[2])
            qmp("device_del", id="x")
            self.refuse(qmp, "is being unplugged already", "device_del", id="x")
            self.wait_until_deleted(qmp, "x")
            self.assertEqual(self.held(guest), before)
            qmp("device_add", driver="disk", id="y", socket=disks[2])
            self.wait_for_disk(guest, "vdc")
            qmp("device_del", id="disk1")
            self.wait_until_deleted(qmp, "disk1")
        self.assertEqual(guest.must("cd /sys/block && ls -d vd*").split(), ["vda", "vdc"])
        self.assertEqual(guest.stop(), POWERED_OFF)


class Many(HotPlugTest):
    @long("many of the same")
    def test_forty_devices_and_one_more(self):
        """2 NICs and 38 disks from the start, each what it should be, in the command line's order;
        the last of them, behind a root port, can go; another one can come."""
        guest = self.guest()
        marks = []
        for i, mac in enumerate((MAC, PEER_MAC)):
            guest.net(self.daemon.port(f"net{i}"), mac)
        for i in range(38):
            path = self.daemon.image(f"d{i}", 1)
            marks.append(f"this is disk {i:02}")
            with open(path, "r+") as file:
                file.write(marks[-1])
            guest.blk(self.daemon.disk(f"d{i}", path=path))
        path, digest = self.pattern("hot")
        hot = self.daemon.disk("hot", path=path)
        self.use(self.daemon)
        guest.start()
        names = guest.must("cd /sys/block && ls -d vd* | awk '{print length($0), $0}' | sort | "
                           "cut -d' ' -f2").split()
        self.assertEqual(len(names), 38)
        seen = guest.must("for d in " + " ".join(names) +
                          "; do head -c 15 /dev/$d; echo; done").split("\n")
        self.assertEqual(seen, marks)
        for mac in (MAC, PEER_MAC):
            self.assertTrue(guest.interface(mac))
        with Qmp(guest.control) as qmp:
            qmp("device_add", driver="disk", id="one-more", socket=hot)
            self.wait_for_disk(guest, "vdam")
            self.assertEqual(guest.must("sha256sum </dev/vdam").split()[0], digest)
            for name in ("disk37", "one-more"):
                qmp("device_del", id=name)
            self.wait_until_deleted(qmp, "disk37", "one-more")
        self.assertEqual(guest.must("ls -d /sys/block/vd* | wc -l"), "37")
        self.assertEqual(guest.stop(), POWERED_OFF)


if __name__ == "__main__":
    inside.main(("cloud", "cloud-6.12"), memory_mb=6144)
