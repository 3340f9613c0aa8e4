"""The companions of a stock guest (entropy, console ports, balloon), served by the daemon. Where
this machine's KVM cannot run stock guests, all of it runs in the virtual host."""

import hashlib
import os
import socket
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import inside
from tests.rig.case import SystemTest
from tests.rig.daemon import Daemon
from tests.rig.process import wait_for
from tests.rig.vmm import Vmm

POWERED_OFF = 0


class Companions(SystemTest):
    def setUp(self):
        super().setUp()
        self.daemon = Daemon(self.work)

    def guest(self, **devices):
        """A guest with these devices: option -> its socket. The daemon is started first."""
        self.use(self.daemon)
        guest = self.use(Vmm(self.work))
        for option, socket in devices.items():
            guest.companion(option.replace("_", "-"), socket)
        return guest.start()

    def figures(self, name):
        return next(each["counters"] for each in self.daemon.ask("query-companions")
                    if each["name"] == name)


class Rng(Companions):
    def test_entropy(self):
        """The guest's kernel draws from the device, and no two draws are the same; also once the
        daemon was killed and is back."""
        guest = self.guest(rng=self.daemon.companion("rng", "r0"))
        guest.must("modprobe virtio-rng")
        self.assertEqual(guest.must("cat /sys/class/misc/hw_random/rng_current"), "virtio_rng.0")
        draw = "dd if=/dev/hwrng bs=64 count=256 2>/dev/null | tee /tmp/drawn | sha256sum"
        digests = {guest.must(draw) for _ in range(3)}
        self.assertEqual(guest.must("stat -c %s /tmp/drawn"), "16384")
        self.assertGreater(int(guest.must("gzip -c /tmp/drawn | wc -c")), 16384, "compressible")
        figures = self.figures("r0")
        self.assertGreaterEqual(figures["bytes"], 3 * 16384)
        self.daemon.kill9()
        self.daemon.start()
        digests |= {guest.must(draw) for _ in range(3)}
        self.assertEqual(len(digests), 6)
        self.assertGreaterEqual(self.figures("r0")["bytes"], 3 * 16384)
        self.assertEqual(guest.stop(), POWERED_OFF)

    def test_hot_removed_and_added(self):
        """By the control socket, as ports and disks are."""
        self.use(self.daemon)
        socket = self.daemon.socket("late")
        self.daemon.millctl("add", "rng", "name=late", f"socket={socket}", "bytes_per_second=64KiB")
        guest = self.use(Vmm(self.work)).companion("rng", socket).start()
        guest.must("modprobe virtio-rng")
        draw = "dd if=/dev/hwrng bs=64 count=16 2>/dev/null | wc -c"
        self.assertEqual(guest.must(draw), "1024")
        self.daemon.millctl("remove", "rng", "late")
        self.assertEqual(self.daemon.ask("query-companions"), [])
        self.daemon.millctl("add", "rng", "name=late", f"socket={socket}")
        self.assertEqual(guest.must(draw), "1024")
        self.assertEqual(guest.stop(), POWERED_OFF)


class Console(Companions):
    """Ports between programs of the host and of the guest."""

    def setUp(self):
        super().setUp()
        self.agent, self.terminal = self.daemon.socket("agent"), self.daemon.socket("tty")
        ports = [{"name": "agent", "socket": self.agent},
                 {"name": "tty", "socket": self.terminal, "terminal": True}]
        self.console = self.daemon.companion("console", "c0", port=ports)

    def connect(self, path):
        """A program of the host."""
        program = self.use(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        program.settimeout(60)
        program.connect(path)
        return program

    def hear(self, program, size):
        heard = bytearray()
        while len(heard) < size:
            piece = program.recv(min(1 << 16, size - len(heard)))
            self.assertTrue(piece, f"hung up after {len(heard)} bytes")
            heard += piece
        return bytes(heard)

    def device(self, guest, name):
        """The guest's file of a port, once there is one."""
        wait = (f"for i in $(seq 100); do grep -lx {name} /sys/class/virtio-ports/*/name "
                "2>/dev/null && exit; sleep 0.1; done; exit 1")
        return "/dev/" + guest.must(wait).split("/")[4]

    def port(self, name):
        return next(port for port in self.daemon.ask("query-companions")[0]["ports"]
                    if port["name"] == name)

    def boot(self):
        guest = self.guest(virtio_console=self.console)
        guest.must("modprobe virtio_console")
        return guest

    def test_a_life(self):
        """One boot, one use of the ports after the other."""
        guest = self.boot()
        for step in (self.use_channel, self.use_terminal, self.plug_ports, self.kill_daemon):
            with self.subTest(step.__name__):
                step(guest)
        self.assertEqual(guest.stop(), POWERED_OFF)

    def use_channel(self, guest):
        """Megabytes both ways, with a host that is slow to read; their digests tell."""
        device = self.device(guest, "agent")
        program = self.connect(self.agent)
        size = 12 << 20  # more than there is room for on the way
        digest = guest.must(f"dd if=/dev/urandom of=/tmp/sent bs=1M count={size >> 20} 2>&1 | "
                            "cat >/dev/null; sha256sum </tmp/sent").split()[0]
        guest.must(f"(cat /tmp/sent >{device}; echo $? >/tmp/done) >/dev/null 2>&1 &")
        wait_for("the guest to be held up",
                 lambda: self.port("agent")["bytes_out"] >= 65536, 180)
        guest.must("sleep 1; test ! -e /tmp/done")
        self.assertLess(self.port("agent")["bytes_out"], size // 2)
        self.assertEqual(hashlib.sha256(self.hear(program, size)).hexdigest(), digest)
        self.assertEqual(guest.must("while [ ! -s /tmp/done ]; do sleep 0.1; done; cat /tmp/done"),
                         "0")
        guest.must(f"(head -c {size} {device} | sha256sum >/tmp/got; touch /tmp/done2) "
                   ">/dev/null 2>&1 &")
        sent = os.urandom(size)
        program.sendall(sent)
        got = guest.must("while [ ! -e /tmp/done2 ]; do sleep 0.1; done; cat /tmp/got", 120)
        self.assertEqual(got.split()[0], hashlib.sha256(sent).hexdigest())
        self.assertEqual(self.port("agent")["dropped_bytes"], 0)
        program.close()

    def use_terminal(self, guest):
        """A terminal of the guest's, /dev/hvc0."""
        program = self.connect(self.terminal)
        wait_for("the terminal", lambda: self.port("tty")["guest_open"], 180)
        guest.must("stty -F /dev/hvc0 raw -echo; echo a line >/dev/hvc0")
        self.assertEqual(self.hear(program, 7).strip(), b"a line")
        guest.must("(head -n 1 /dev/hvc0 >/tmp/line; touch /tmp/done3) >/dev/null 2>&1 &\n"
                   "until ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q hvc0; do sleep 0.1; done")
        program.sendall(b"from the host\n")
        self.assertEqual(guest.must("while [ ! -e /tmp/done3 ]; do sleep 0.1; done; cat /tmp/line"),
                         "from the host")
        program.close()

    def plug_ports(self, guest):
        """A port comes and goes while the guest runs."""
        self.device(guest, "agent")
        late = self.daemon.socket("late")
        for _ in range(2):
            self.daemon.millctl("add", "console-port", "console=c0", "name=late", f"socket={late}")
            device = self.device(guest, "late")
            program = self.connect(late)
            guest.must(f"echo hello >{device}")
            self.assertEqual(self.hear(program, 6), b"hello\n")
            self.daemon.millctl("remove", "console-port", "late", "--console", "c0")
            self.assertEqual(program.recv(1), b"")
            guest.must(f"for i in $(seq 100); do test -e {device} || exit 0; sleep 0.1; done; "
                       "exit 1")

    def kill_daemon(self, guest):
        """Ports that a program of the guest has open work again with the next daemon."""
        device = self.device(guest, "agent")
        guest.must(f"cat >/tmp/echo <<'END'\n{ECHO.format(device)}END\n"
                   "sh /tmp/echo >/dev/null 2>&1 &")
        for number in range(3):
            program = self.connect(self.agent)
            program.sendall(b"round %d\n" % number)
            self.assertEqual(self.hear(program, 8), b"round %d\n" % number)
            self.daemon.kill9()
            self.daemon.start()


# A read ends at once while no program of the host is there.
ECHO = """exec 3<>{}
while true; do
  if read -r line <&3; then echo "$line" >&3; else sleep 0.1; fi
done
"""


class Balloon(Companions):
    """Memory that a guest has no use for is the host's again."""

    def resident_mb(self, guest):
        """What of the guest's memory the host has pages for: the blocks of its memory file."""
        folder = f"/proc/{guest.process.pid}/fd"
        for number in os.listdir(folder):
            path = os.path.join(folder, number)
            if os.readlink(path).startswith("/memfd:"):
                return os.stat(path).st_blocks * 512 >> 20
        raise AssertionError("the guest has no memory file")

    def boot(self, memory_mb=512, **keys):
        socket_path = self.daemon.companion("balloon", "b0", stats_s=1, **keys)
        self.use(self.daemon)
        guest = self.use(Vmm(self.work, memory_mb=memory_mb)).companion("balloon", socket_path)
        guest.start()
        guest.must("modprobe virtio_balloon")
        return guest

    def test_free_page_reporting(self):
        """A guest that used memory and freed it costs the host little more than before."""
        guest = self.boot()
        before = self.resident_mb(guest)
        guest.must("mkdir -p /tmp/m && mount -t tmpfs -o size=400m m /tmp/m && "
                   "dd if=/dev/zero of=/tmp/m/fill bs=1M count=256 2>&1 | cat >/dev/null")
        used = self.resident_mb(guest)
        self.assertGreater(used, before + 200)
        guest.must("rm /tmp/m/fill; umount /tmp/m; echo 1 >/proc/sys/vm/compact_memory")
        wait_for("the host to have the memory again",
                 lambda: self.resident_mb(guest) < used - 200, 180)
        after = self.resident_mb(guest)
        figures = self.figures("b0")
        self.report(f"512 MiB guest: {before} MiB of the host's before, {used} with 256 MiB in "
                    f"use, {after} after; {figures['reclaimed_bytes'] >> 20} MiB given back")
        self.assertGreater(figures["reported_bytes"], 200 << 20)
        # What came back is good memory.
        guest.must("dd if=/dev/urandom of=/tmp/a bs=1M count=64 2>&1 | cat >/dev/null; "
                   "cp /tmp/a /tmp/b && cmp /tmp/a /tmp/b", 120)
        self.assertEqual(guest.stop(), POWERED_OFF)

    def test_inflate_and_deflate(self):
        """The operator's word takes memory and gives it back; the daemon's death changes
        nothing."""
        guest = self.boot(reporting=False, size="64MiB")

        def settle(megabytes):
            wait_for(f"a balloon of {megabytes} MiB",
                     lambda: self.figures("b0")["actual_bytes"] == megabytes << 20, 180)

        def free_mb():
            return int(guest.must("grep MemFree /proc/meminfo").split()[1]) >> 10
        settle(64)
        first, resident = free_mb(), self.resident_mb(guest)
        self.daemon.millctl("balloon", "b0", "192MiB")
        settle(192)
        self.assertLess(free_mb(), first - 100)
        self.assertLessEqual(self.resident_mb(guest), resident + 16)
        wait_for("the guest's figures", lambda: self.figures("b0")["guest_total_bytes"], 180)
        self.daemon.kill9()
        self.daemon.start()
        settle(192)
        # Nor did the guest take any of it back meanwhile: the record comes before the driver looks.
        wait_for("the guest's figures", lambda: self.figures("b0")["stats_updates"] > 2, 180)
        figures = self.figures("b0")
        self.assertEqual(figures["target_bytes"], 192 << 20)
        self.assertEqual((figures["deflated_bytes"], figures["inflated_bytes"]), (0, 0))
        self.daemon.millctl("balloon", "b0", "0")
        settle(0)
        self.assertGreater(free_mb(), first + 40)
        guest.must("dd if=/dev/urandom of=/tmp/a bs=1M count=64 2>&1 | cat >/dev/null; "
                   "cp /tmp/a /tmp/b && cmp /tmp/a /tmp/b", 120)
        self.assertEqual(guest.stop(), POWERED_OFF)


if __name__ == "__main__":
    inside.main()
