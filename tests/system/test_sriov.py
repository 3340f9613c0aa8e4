"""Physical functions and their virtual functions: real sysfs, real rtnetlink, the igb driver of a
stock kernel. In the virtual host always: no NIC of a real machine is touched."""

import contextlib
import glob
import json
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import inside, settings
from tests.rig.case import SystemTest
from tests.rig.daemon import Daemon
from tests.rig.pci import driver_of, read, write
from tests.rig.process import run, wait_for

PF = "0000:01:00.0"
FOLDER = f"/sys/bus/pci/devices/{PF}"
DRIVER = "/sys/bus/pci/drivers/igb"
MACS = [f"52:54:00:00:00:{index:02x}" for index in range(16)]
FULL = {"mac": MACS[1], "vlan": 10, "qos": 3, "max_rate": 100, "spoof_check": False, "trust": True}
HOLD = "import sys; file = open(sys.argv[1], 'r+b', buffering=0); print('open'); sys.stdin.read()"


def interface():
    return os.listdir(f"{FOLDER}/net")[0]


def functions():
    """What the kernel says of each virtual function, by iproute2."""
    shown = run(["ip", "-json", "-details", "link", "show", interface()]).stdout
    return json.loads(shown)[0].get("vfinfo_list", [])


def driver(index):
    return driver_of(f"{PF}/virtfn{index}")


def group(index):
    return "/dev/vfio/" + os.path.basename(os.readlink(f"{FOLDER}/virtfn{index}/iommu_group"))


def kernel_changes():
    """How often the kernel's driver was told a value or a number, by its own log."""
    lines = run(["dmesg"]).stdout.splitlines()
    return [line for line in lines if any(word in line for word in (
        "setting MAC", "Setting VLAN", "is trusted", "is not trusted", "VFs allocated",
        "IOV Disabled"))]


class SriovTest(SystemTest):
    def setUp(self):
        super().setUp()
        write(f"{FOLDER}/sriov_numvfs", "0")
        write(f"{FOLDER}/sriov_drivers_autoprobe", "1")
        run(["ip", "link", "set", interface(), "down"])

    def daemon(self, *vfs, name="mill", **keys):
        """A daemon, not yet started, with our NIC."""
        daemon = Daemon(self.work, name=name)
        daemon.tables.append(("pf", {"pci": PF, **keys, "vf": vfs}))
        return daemon

    def refused(self, *vfs, limit=60, **keys):
        """Starts a daemon that ends by itself with status 1. Answers its error line."""
        daemon = self.daemon(*vfs, name="refused", **keys)
        write(daemon.path("toml"), daemon.text())
        done = run([settings.program("millraced"), "--config", daemon.path("toml")],
                   check=False, timeout=limit)
        said = done.stdout
        self.assertEqual(done.returncode, 1, said)
        lines = [line for line in said.splitlines() if " error: " in line]
        self.assertEqual(len(lines), 1, said)
        return lines[0]

    def make(self, count):
        """Functions that somebody else made."""
        run(["ip", "link", "set", interface(), "up"])
        write(f"{FOLDER}/sriov_drivers_autoprobe", "0")
        write(f"{FOLDER}/sriov_numvfs", str(count))
        wait_for("the link", lambda: read(f"/sys/class/net/{interface()}/operstate") == "up", 20)

    def hold(self, index):
        """A process that has the function's group open."""
        holder = subprocess.Popen([sys.executable, "-uc", HOLD, group(index)], text=True,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(self.let_go, holder)
        self.assertEqual(holder.stdout.readline(), "open\n")
        return holder

    def let_go(self, holder):
        with contextlib.suppress(BrokenPipeError, ValueError):
            holder.communicate("", timeout=20)


class Applied(SriovTest):
    def test_functions_are_made_set_and_bound(self):
        daemon = self.use(self.daemon({"index": 1, **FULL}, {"index": 2, "mac": MACS[2]}, vfs=4))
        self.assertEqual(read(f"{FOLDER}/sriov_numvfs"), "4")
        self.assertEqual(read(f"{FOLDER}/sriov_drivers_autoprobe"), "0")
        self.assertEqual([driver(index) for index in range(4)], ["vfio-pci"] * 4)
        kernel = functions()
        self.assertEqual(len(kernel), 4)
        self.assertEqual(kernel[1]["address"], MACS[1])
        self.assertEqual(kernel[1]["vlan_list"][0]["vlan"], 10)
        self.assertEqual(kernel[1]["vlan_list"][0]["qos"], 3)
        self.assertEqual(kernel[1]["rate"]["max_tx"], 100)
        self.assertIs(kernel[1]["spoofchk"], False)
        self.assertIs(kernel[1]["trust"], True)
        self.assertEqual(kernel[2]["address"], MACS[2])
        self.assertEqual(kernel[3]["address"], "00:00:00:00:00:00")

        (pf,) = daemon.ask("query-pfs")
        self.assertTrue(pf["as_configured"], pf["problem"])
        self.assertEqual((pf["interface"], pf["driver"], pf["vfs_max"]), (interface(), "igb", 7))
        self.assertEqual({key: pf["vfs"][1][key] for key in FULL}, FULL)
        self.assertEqual(f"/dev/vfio/{pf['vfs'][3]['iommu_group']}", group(3))
        shown = daemon.millctl("pf", "list").stdout
        self.assertIn("as configured", shown)
        self.assertRegex(shown, rf"1  0000:01:10.2  vfio-pci  .*{MACS[1]}  10 +100  off +on")
        again = daemon.millctl("pf", "apply").stdout
        self.assertEqual(again, f"PF {PF}: as configured already\n")

    def test_only_what_changed_is_set(self):
        with self.daemon({"index": 0, "mac": MACS[0]}, {"index": 1, **FULL}, vfs=2):
            pass
        before = kernel_changes()
        changed = {**FULL, "vlan": 11}
        daemon = self.use(self.daemon({"index": 0, "mac": MACS[0]}, {"index": 1, **changed}, vfs=2))
        self.assertEqual(functions()[1]["vlan_list"][0]["vlan"], 11)
        new = kernel_changes()[len(before):]
        self.assertEqual(len(new), 1, new)
        self.assertIn("Setting VLAN 11, QOS 0x3 on VF 1", new[0])
        self.assertIn("VF 1: VLAN 11 (QoS 3) (was VLAN 10 (QoS 3))", daemon.log())

    def test_adopted_functions_keep_what_is_not_said(self):
        self.make(3)
        run(["ip", "link", "set", interface(), "vf", "2", "mac", MACS[7]])
        daemon = self.use(self.daemon({"index": 0, "mac": MACS[5]}))
        self.assertEqual(read(f"{FOLDER}/sriov_numvfs"), "3")
        self.assertEqual([each["address"] for each in functions()],
                         [MACS[5], "00:00:00:00:00:00", MACS[7]])
        self.assertEqual([driver(index) for index in range(3)], [None] * 3)
        self.assertTrue(daemon.ask("query-pfs")[0]["adopted"])

    def test_kill_and_restart_apply_nothing_twice(self):
        daemon = self.use(self.daemon({"index": 1, **FULL}, vfs=3))
        before = kernel_changes()
        for _ in range(2):
            daemon.kill9()
            daemon.start()
            self.assertIn(f"PF {PF}: as configured already", daemon.log())
        self.assertEqual(kernel_changes(), before)
        self.assertEqual([driver(index) for index in range(3)], ["vfio-pci"] * 3)
        for index in range(3):  # nobody has one open: none is stuck
            self.let_go(self.hold(index))


class Refused(SriovTest):
    def test_a_refused_value_takes_everything_back(self):
        """igb cannot set the link's state. What was made before it is unmade."""
        line = self.refused({"index": 0, "mac": MACS[3], "link": "off"}, vfs=2)
        self.assertIn(f"PF {PF}: VF 0: link off (was link auto): Operation not supported; "
                      "everything is as it was before", line)
        self.assertEqual(read(f"{FOLDER}/sriov_numvfs"), "0")
        self.assertEqual(read(f"{FOLDER}/sriov_drivers_autoprobe"), "1")
        self.assertNotIn("UP", json.loads(run(
            ["ip", "-json", "link", "show", interface()]).stdout)[0]["flags"])

    def test_adopted_functions_get_their_values_back(self):
        self.make(2)
        name = interface()
        run(["ip", "link", "set", name, "vf", "0", "mac", MACS[4]])
        run(["ip", "link", "set", name, "vf", "1", "vlan", "7"])
        before = functions()
        line = self.refused({"index": 0, "mac": MACS[3], "trust": True},
                            {"index": 1, "vlan": 8, "max_rate": 100_000}, driver="vfio-pci")
        self.assertIn("VF 1: rate 0 to 100000 Mbit/s (was rate 0 to 0 Mbit/s): Invalid argument; "
                      "everything is as it was before", line)
        self.assertEqual(functions(), before)
        self.assertEqual([driver(index) for index in range(2)], [None] * 2)

    def test_more_than_there_can_be(self):
        self.assertIn(f"PF {PF}: vfs = 8 is more than the 7 VFs that it can have",
                      self.refused(vfs=8))
        self.assertIn(f"PF {PF}: there is no VF 0: it has no VFs; say with vfs",
                      self.refused({"index": 0, "mac": MACS[1]}))

    def test_a_held_function_is_not_taken_away(self):
        with self.daemon(vfs=2):
            pass
        holder = self.hold(1)
        begun = time.monotonic()
        line = self.refused(vfs=3)
        self.assertIn(f"VF 1 (0000:01:10.2) is held by process {holder.pid} (", line)
        self.report(f"refused after {time.monotonic() - begun:.1f} s")
        self.assertEqual(read(f"{FOLDER}/sriov_numvfs"), "2")
        self.assertIn(f"held by process {holder.pid}",
                      self.refused({"index": 1, "mac": MACS[1]}, vfs=2))
        with self.daemon({"index": 0, "mac": MACS[1]}, vfs=2) as daemon:  # the other one may be
            (held,) = daemon.ask("query-pfs")[0]["vfs"][1]["held_by"]
            self.assertEqual(held["pid"], holder.pid)
        self.let_go(holder)
        self.use(self.daemon(vfs=3))
        self.assertEqual(read(f"{FOLDER}/sriov_numvfs"), "3")

    def test_a_holder_that_cannot_be_seen(self):
        """In a PID namespace of its own the daemon does not see him, and his group tells."""
        with self.daemon(vfs=2):
            pass
        self.hold(0)
        daemon = self.daemon(name="refused", vfs=3)
        write(daemon.path("toml"), daemon.text())
        done = run(["unshare", "--pid", "--fork", "--mount-proc", settings.program("millraced"),
                    "--config", daemon.path("toml")], check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("VF 0 (0000:01:10.0) is held by a process that cannot be seen from here",
                      done.stdout)
        self.assertEqual(read(f"{FOLDER}/sriov_numvfs"), "2")


class Pool(SriovTest):
    def test_functions_are_lent_and_come_back(self):
        program = os.path.join(settings.build_folder(), "sriov", "sriov_test")
        done = run([program, "--gtest_filter=RealHost.*"], check=False,
                   env={**os.environ, "MILLRACE_SRIOV_PF": PF})
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn("[  PASSED  ] 1 test.", done.stdout)
        self.assertEqual(read(f"{FOLDER}/sriov_numvfs"), "0")


class Kept(SriovTest):
    def mended(self, daemon, act):
        """Does it, and answers the event that says it was mended."""
        with daemon.qmp() as qmp:
            act()
            return qmp.wait_event("PF_REAPPLIED", timeout=60)["data"]

    def test_a_changed_value_is_set_again(self):
        daemon = self.use(self.daemon({"index": 1, **FULL}, vfs=2))
        told = self.mended(daemon, lambda: run(
            ["ip", "link", "set", interface(), "vf", "1", "mac", MACS[9]]))
        self.assertIn(f"VF 1: wanted is MAC {MACS[1]}, the driver says MAC {MACS[9]}",
                      told["reason"])
        self.assertEqual(len(told["done"]), 1)
        self.assertEqual(functions()[1]["address"], MACS[1])
        self.assertEqual(daemon.ask("query-pfs")[0]["applied"], 2)

    def test_a_driver_that_comes_anew_gets_everything(self):
        """As after a fatal error: the driver goes, and all functions with it."""
        daemon = self.use(self.daemon({"index": 1, **FULL}, vfs=2))

        def rebind():
            write(f"{DRIVER}/unbind", PF)
            self.assertEqual(glob.glob(f"{FOLDER}/virtfn*"), [])
            write(f"{DRIVER}/bind", PF)
        self.mended(daemon, rebind)
        kernel = functions()
        self.assertEqual((len(kernel), kernel[1]["address"]), (2, MACS[1]))
        self.assertEqual([driver(index) for index in range(2)], ["vfio-pci"] * 2)
        (pf,) = daemon.ask("query-pfs")
        self.assertTrue(pf["as_configured"], pf["problem"])

    def test_a_silent_reset_is_repaired_on_demand(self):
        """A function-level reset from outside clears the hardware, and igb does not notice."""
        daemon = self.use(self.daemon({"index": 1, **FULL}, vfs=2))
        write(f"{FOLDER}/reset", "1")
        before = kernel_changes()
        done = daemon.millctl("pf", "apply", PF, "--all").stdout.splitlines()
        self.assertEqual(len(done), 7, done)
        new = kernel_changes()[len(before):]
        self.assertTrue(any(f"setting MAC {MACS[1]} on VF 1" in line for line in new), new)
        self.assertTrue(any("Setting VLAN 10, QOS 0x3 on VF 1" in line for line in new), new)
        unknown = daemon.millctl("pf", "apply", "0000:05:00.0", check=False)
        self.assertEqual(unknown.returncode, 1)
        self.assertIn("there is no [[pf]] with pci", unknown.stdout)


if __name__ == "__main__":
    inside.main(flavours=(), always=True)
