"""Functions of the host that a stock guest drives itself: a virtual function of an igb NIC, made by
hand, with the guest's own igbvf driver on it."""

import json
import os
import re
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import inside, settings
from tests.rig.case import SystemTest, long
from tests.rig.daemon import Daemon
from tests.rig.pci import FUNCTIONS, bind, driver_of, give, read, write
from tests.rig.process import run, wait_for
from tests.rig.qmp import Qmp, QmpError
from tests.rig.vmm import Vmm

PF = "0000:01:00.0"
FIRST, SECOND = "0000:01:10.0", "0000:01:10.2"
MACS = {FIRST: "52:54:00:00:07:02", SECOND: "52:54:00:00:07:03"}
HOST_IP, GUEST_IP = "10.7.0.1", "10.7.0.2"
POWERED_OFF, FAILED, WRONG_USAGE = 0, 1, 2


def make_functions(macs=MACS):
    """Virtual functions with these addresses, bound to vfio-pci. Answers the name of the NIC whose
    they are."""
    nic = os.listdir(f"{FUNCTIONS}/{PF}/net")[0]
    run(["ip", "link", "set", nic, "up"])
    if read(f"{FUNCTIONS}/{PF}/sriov_numvfs") == "0":
        write(f"{FUNCTIONS}/{PF}/sriov_drivers_autoprobe", "0")
        write(f"{FUNCTIONS}/{PF}/sriov_numvfs", str(len(macs)))
        for number, mac in enumerate(macs.values()):
            run(["ip", "link", "set", nic, "vf", str(number), "mac", mac])
        run(["ip", "addr", "add", f"{HOST_IP}/24", "dev", nic])
    wait_for("the NIC's link", lambda: read(f"/sys/class/net/{nic}/carrier") == "1", 30)
    for address in macs:
        give(address, "vfio-pci")
    return nic


class Functions(SystemTest):
    macs = MACS

    def setUp(self):
        super().setUp()
        self.nic = make_functions(self.macs)

    def guest(self, *more, name="a", **keys):
        control = str(self.work / f"{name}.control")
        guest = self.use(Vmm(self.work, name, flavour="generic", more=["--control", control, *more],
                             **keys))
        guest.control = control
        return guest

    def take_up(self, guest, mac=MACS[FIRST]):
        """The guest's own driver on the function."""
        guest.must("modprobe igbvf")
        nic = wait_for("the guest's NIC", lambda: guest.interface(mac), 60)
        guest.must(f"ip addr replace {GUEST_IP}/24 dev {nic}; ip link set {nic} up")
        return nic

    def ping(self, guest):
        """Through the function, to the host's side of the same NIC."""
        wait_for("the host to answer",
                 lambda: guest.run(f"ping -c 1 -W 2 {HOST_IP}")[0] == 0, 60)
        self.assertIn(" 0% packet loss", guest.must(f"ping -c 3 -i 0.2 -W 5 {HOST_IP}"))

    def refuse(self, said, *more):
        """What the program says, one line, when it is started like that."""
        vmlinuz = Vmm(self.work, "r", flavour="generic").command[2]
        done = run([settings.program("millrace-vmm"), "--kernel", vmlinuz, "--console", "none",
                    "--log-level", "error",
                    *more], check=False)
        self.assertIn(done.returncode, (FAILED, WRONG_USAGE))
        self.assertRegex(done.stdout, said)
        self.assertEqual(len(done.stdout.splitlines()), 1, done.stdout)


class Passthrough(Functions):
    def test_guest_drives_a_function(self):
        guest = self.guest("--vfio", FIRST, "--reboot", "restart").start()
        nic = self.take_up(guest)
        self.ping(guest)
        interrupts = guest.must(f"grep {nic} /proc/interrupts")
        self.assertRegex(interrupts, r"PCI-MSI")
        self.report(f"{len(interrupts.splitlines())} vectors; {FIRST} answers")
        # the guest's start over is the function's, too
        guest.reboot()
        self.assertEqual(guest.run(f"ip link show {nic} 2>/dev/null")[1], "")
        self.take_up(guest)
        self.ping(guest)
        # a VMM that dies leaves nothing behind that keeps others from the function
        guest.process.process.kill()
        guest.process.wait()
        again = self.guest("--vfio", FIRST, name="b").start()
        self.take_up(again)
        self.ping(again)
        self.assertEqual(again.stop(), POWERED_OFF)

    def test_comes_and_goes(self):
        guest = self.guest("--vfio-allow", FIRST).start()
        with Qmp(guest.control) as qmp:
            for _ in range(2):
                qmp("device_add", driver="vfio", id="nic", address=FIRST)
                self.assertEqual([each["driver"] for each in qmp("query-devices")], ["vfio"])
                self.take_up(guest)
                self.ping(guest)
                qmp("device_del", id="nic")
                self.assertEqual(qmp.wait_event("DEVICE_DELETED")["data"]["device"], "nic")
            self.assertEqual(qmp("query-devices"), [])
            with self.assertRaisesRegex(QmpError, f"--vfio-allow {SECOND}"):
                qmp("device_add", driver="vfio", id="other", address=SECOND)
        self.assertEqual(guest.stop(), POWERED_OFF)

    def test_host_wants_it_back(self):
        """The host's administrator takes the function from vfio-pci: that waits for the guest."""
        guest = self.guest("--vfio", FIRST).start()
        self.take_up(guest)
        self.ping(guest)
        with Qmp(guest.control) as qmp:
            taking = threading.Thread(target=bind, args=(FIRST, None))
            taking.start()
            try:
                self.assertEqual(qmp.wait_event("DEVICE_RECALLED")["data"],
                                 {"device": "vfio0", "address": FIRST})
                self.assertEqual(qmp.wait_event("DEVICE_DELETED")["data"]["device"], "vfio0")
            finally:
                taking.join(60)
            self.assertFalse(taking.is_alive())
        self.assertIsNone(driver_of(FIRST))
        self.assertEqual(guest.run("ls /sys/class/net | grep -v lo")[1], "")  # it runs on
        self.assertRegex(guest.log(), f"the host wants {FIRST} back")
        self.assertNotRegex(guest.log(), "did not let go")
        self.assertEqual(guest.stop(), POWERED_OFF)

    def test_guest_that_keeps_it_loses_it(self):
        guest = self.guest("--vfio", FIRST).start()
        self.take_up(guest)
        with Qmp(guest.control) as qmp:
            qmp("stop")  # a guest that stands still lets go of nothing
            taking = threading.Thread(target=bind, args=(FIRST, None))
            taking.start()
            qmp.wait_event("DEVICE_DELETED")
            taking.join(60)
            self.assertFalse(taking.is_alive())
            self.assertRegex(guest.log(), "did not let go of device vfio0 in 20 s")
            qmp("cont")
        guest.must("true")
        self.assertEqual(guest.stop(), POWERED_OFF)


class Leased(Functions):
    """A guest drives a function that the daemon's pool lends it."""

    MAC = "52:54:00:00:07:aa"

    def setUp(self):
        super().setUp()
        self.daemon = Daemon(self.work)
        self.daemon.tables.append(("pf", {"pci": PF}))
        self.kept = f"{self.daemon.control}.functions"

    def kernel(self):
        """What the kernel says of the functions."""
        shown = run(["ip", "-json", "-details", "link", "show", self.nic]).stdout
        return json.loads(shown)[0]["vfinfo_list"]

    def lent(self):
        return [each["lent_to"] for each in self.daemon.ask("query-pfs")[0]["vfs"]]

    def check_return_refused(self, guest):
        done = self.daemon.millctl("return", "web0", check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"PF {PF}: VF 0 ({FIRST}) of guest web0 is held by process "
                      f"{guest.process.pid} (millrace-vmm); end it first", done.stdout)

    def check_still_there(self, guest):
        """By a daemon that has just been started."""
        self.assertEqual(self.lent(), ["guest web0", ""])
        self.assertEqual(self.kernel()[0]["address"], self.MAC)
        self.assertRegex(self.daemon.millctl("pf", "list").stdout,
                         rf"{FIRST} .*guest web0, process {guest.process.pid} \(millrace-vmm\)")
        self.check_return_refused(guest)
        self.ping(guest)

    def test_outlives_the_daemon(self):
        """The function has the lease's address, and stays the guest's while daemons are killed,
        come again, and end; it comes back reset, as it was."""
        before = self.kernel()
        self.use(self.daemon)
        address = self.daemon.millctl("lease", "name=web0", f"pf={PF}", f"mac={self.MAC}",
                                      "max_rate=500").stdout.strip()
        self.assertEqual(address, FIRST)
        self.assertEqual(driver_of(FIRST), "vfio-pci")
        (function,) = [each for each in self.kernel() if each["address"] == self.MAC]
        self.assertEqual(function["rate"]["max_tx"], 500)
        guest = self.guest("--vfio", address).start()
        nic = self.take_up(guest, self.MAC)
        self.ping(guest)
        changes = guest.must(f"cat /sys/class/net/{nic}/carrier_changes")
        guest.must(f"ping -i 0.2 {HOST_IP} >/tmp/pings 2>&1 & echo $! >/tmp/pings.pid")
        self.daemon.kill9()
        self.ping(guest)
        self.daemon.start()
        self.check_still_there(guest)
        self.daemon.stop()
        self.ping(guest)
        self.daemon.start()
        self.check_still_there(guest)
        said = guest.must("kill -INT $(cat /tmp/pings.pid); sleep 1; cat /tmp/pings")
        sent, received = re.search(r"(\d+) packets transmitted, (\d+) packets rec", said).groups()
        self.assertLessEqual(int(sent) - int(received), 1, said)
        self.assertEqual(guest.must(f"cat /sys/class/net/{nic}/carrier_changes"), changes)
        self.assertEqual(guest.stop(), POWERED_OFF)
        self.check_returned(before)

    def check_returned(self, before):
        self.daemon.millctl("return", "web0")
        self.assertEqual(self.kernel(), before)
        self.assertEqual(self.lent(), ["", ""])
        self.assertFalse(os.path.exists(self.kept))
        again = self.daemon.millctl("return", "web0", check=False)
        self.assertIn("there is no function of a guest web0", again.stdout)

    def test_is_given_back_what_was_lost(self):
        """What somebody else sets of a guest's function, the daemon sets right, while it runs and
        when it comes again; and lends no function twice."""
        before = self.kernel()
        self.use(self.daemon)
        for guest in ("web0", "web1"):
            self.daemon.ask("function-lease", name=guest,
                            **({"mac": self.MAC} if guest == "web0" else {}))
        refused = self.daemon.millctl("lease", "name=web2", check=False)
        self.assertEqual(refused.returncode, 1)
        self.assertIn("VF 0 is lent to guest web0; ", refused.stdout)
        with self.daemon.qmp() as qmp:
            run(["ip", "link", "set", self.nic, "vf", "0", "mac", MACS[FIRST]])
            told = qmp.wait_event("PF_REAPPLIED", timeout=60)["data"]
        self.assertIn(f"VF 0: wanted is MAC {self.MAC}", told["reason"])
        self.daemon.kill9()
        run(["ip", "link", "set", self.nic, "vf", "0", "mac", MACS[FIRST]])
        self.daemon.start()
        self.assertEqual(self.kernel()[0]["address"], self.MAC)
        self.assertEqual(self.lent(), ["guest web0", "guest web1"])
        self.daemon.millctl("return", "web1")
        self.check_returned(before)


class Ordinary(Functions):
    """A user without privileges, who is given the function's group."""

    NOBODY = 65534
    AS_NOBODY = ("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups",
                 "--bounding-set=-all", "--inh-caps=-all")

    def setUp(self):
        super().setUp()
        group = os.path.basename(os.readlink(f"{FUNCTIONS}/{FIRST}/iommu_group"))
        self.group = f"/dev/vfio/{group}"
        for path, mode in ((self.group, 0o600), ("/dev/kvm", 0o666)):
            before = os.stat(path)
            self.addCleanup(os.chmod, path, before.st_mode & 0o7777)
            self.addCleanup(os.chown, path, before.st_uid, before.st_gid)
            os.chown(path, 0, 0)
            os.chmod(path, mode)
        os.chmod(str(self.work.path), 0o777)
        self.user = self.guest("--vfio", FIRST)
        self.user.command[:0] = ["prlimit", "--memlock=unlimited", *self.AS_NOBODY]

    def checked(self):
        return run([*self.AS_NOBODY, settings.program("millctl"), "check-host"], check=False).stdout

    def test_is_told_what_to_type(self):
        done = run(self.user.command, check=False, timeout=60)
        said = [line for line in done.stdout.splitlines() if line.startswith("millrace-vmm: ")]
        self.assertEqual((done.returncode, len(said)), (FAILED, 1), done.stdout)
        self.assertIn(f"{FIRST}: {self.group}: this user may not open it", said[0])
        found = re.search(rf"(?m)^note +{FIRST}: .* may not be opened by this user: (chown .*)$",
                          self.checked())
        run(found.group(1).split())
        self.assertRegex(self.checked(), rf"(?m)^ok +{FIRST}: .*vfio-pci: ready")

    @long("a stock guest's start")
    def test_runs_a_guest_with_a_function(self):
        os.chown(self.group, self.NOBODY, self.NOBODY)
        self.user.start()
        self.assertEqual(os.stat(f"/proc/{self.user.process.pid}").st_uid, self.NOBODY)
        self.take_up(self.user)
        self.ping(self.user)
        self.assertEqual(self.user.stop(), POWERED_OFF)


class Refused(Functions):
    def test_one_line_each(self):
        self.refuse("there is no PCI function 0000:01:1f.7", "--vfio", "0000:01:1f.7")
        self.refuse("'eth0' is no PCI address", "--vfio", "eth0")
        self.refuse(f"{PF} belongs to the driver igb: bind it to vfio-pci", "--vfio", PF)
        bind(SECOND, None)
        self.refuse(f"{SECOND} has no driver: bind it to vfio-pci", "--vfio-allow", SECOND)

    def test_held_by_another_guest(self):
        self.guest("--vfio-allow", FIRST).start()
        self.refuse(f"{FIRST}: /dev/vfio/\d+: another process holds IOMMU group",
                    "--vfio", FIRST)

    def test_locked_memory(self):
        """A user with a limit, whom the capability to ignore it does not help."""
        vmlinuz = Vmm(self.work, "r", flavour="generic").command[2]
        done = run(["setpriv", "--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock", "prlimit",
                    "--memlock=8388608", settings.program("millrace-vmm"), "--kernel", vmlinuz,
                    "--console", "none", "--log-level", "error", "--vfio", FIRST],
                   check=False)
        self.assertEqual(done.returncode, FAILED)
        self.assertRegex(done.stdout, f"{FIRST}: cannot map 256 MiB at IOVA 0x0 for devices: .* "
                         r"may lock 8.00 MiB: raise the limit")
        self.assertEqual(len(done.stdout.splitlines()), 1, done.stdout)

    def test_check_host(self):
        millctl = settings.program("millctl")
        done = run([millctl, "check-host"], check=False)
        self.assertRegex(done.stdout, r"(?m)^ok +IOMMU: \d+ groups$")
        self.assertRegex(done.stdout, r"(?m)^ok +interrupts: are remapped$")
        self.assertRegex(done.stdout, r"(?m)^ok +VFIO: is loaded$")
        self.assertRegex(done.stdout, rf"(?m)^ok +{PF}: .*driver igb, \d+ virtual functions")
        self.assertRegex(done.stdout, rf"(?m)^ok +{FIRST}: .*vfio-pci: ready")
        bind(FIRST, None)
        done = run([millctl, "check-host"], check=False)
        self.assertRegex(done.stdout, rf"(?m)^note +{FIRST}: .*has no driver: bind it")


if __name__ == "__main__":
    inside.main(("generic",), always=True)
