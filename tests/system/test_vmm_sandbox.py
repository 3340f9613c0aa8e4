"""millrace-vmm's sandbox under real KVM: a guest's whole life in it, and an ordinary user's guest.
Where this machine's KVM cannot run stock guests, all of it runs in the virtual host."""

import os
import re
import shlex
import sys
import tomllib

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import assets, inside, scenes, settings
from tests.rig.case import SystemTest
from tests.rig.daemon import Daemon
from tests.rig.process import run, wait_for
from tests.rig.vmm import Vmm

POWERED_OFF = 0
MAC, IP = "52:54:00:00:00:0a", "10.9.0.1"
NOBODY = 65534


def threads(pid):
    """Answers {thread's name: its fields of /proc/PID/task/*/status}."""
    found = {}
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/status") as file:
            fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        found[f"{fields['Name']} {task}"] = fields
    return found


class Life(SystemTest):
    """Everything that a guest does, behind the sandbox."""

    def check_confined(self, guest, kinds):
        """Every thread has its filters: the main thread's own, and one more for the others."""
        seen = threads(guest.process.pid)
        own = [name for name in seen if name.startswith(tuple(kinds))]
        self.assertEqual({name.rsplit(" ", 1)[0] for name in own}, set(kinds))
        for name, fields in seen.items():
            self.assertEqual((fields["Seccomp"], fields["NoNewPrivs"]), ("2", "1"), name)
        main = int(seen[f"millrace-vmm {guest.process.pid}"]["Seccomp_filters"])
        for name in own:
            if not name.startswith("millrace-vmm "):
                self.assertEqual(int(seen[name]["Seccomp_filters"]), main + 1, name)

    def test_boot_devices_restart_and_power_off(self):
        daemon = Daemon(self.work)
        guest = self.use(Vmm(self.work, "vm", cpus=2, more=["--reboot", "restart"]))
        guest.net(daemon.port("net"), MAC)
        guest.blk(daemon.disk("disk", path=daemon.image("disk", 64)))
        self.use(daemon)
        guest.start()
        kinds = ["millrace-vmm", "vcpu 0", "vcpu 1", "backend-link"]
        self.check_confined(guest, kinds)
        scenes.make_filesystem(guest, "vda")
        self.assertEqual(scenes.write_and_verify(guest, "vda", 8), 4)
        daemon.kill9()
        daemon.start()
        wait_for("the guest to come back", lambda: [
            each["connected"] for each in daemon.ask("query-sessions")] == [True, True], 180)
        self.assertEqual(scenes.write_and_verify(guest, "vda", 8), 4)
        guest.must("umount /mnt")
        guest.reboot()  # a new machine, from inside the sandbox
        self.check_confined(guest, kinds)
        guest.must("mkdir -p /mnt && mount /dev/vda /mnt && ls /mnt && umount /mnt")
        self.assertEqual(guest.kernel_log("I/O error|BUG:|WARNING:"), "")
        pid, agent = guest.process.pid, guest.path("agent")
        self.assertTrue(os.path.exists(agent))
        with open(f"/proc/{pid}/status") as file:
            self.assertIn("NoNewPrivs:\t1", file.read())
        self.assertEqual(guest.stop(), POWERED_OFF)
        self.assertFalse(os.path.exists(agent), "the console's socket is left behind")
        self.assertNotIn("sandbox", guest.log())

    def test_no_file_is_opened_once_the_guest_runs(self):
        """strace sees every attempt of every thread: with devices, over a daemon that dies and a
        restart of the guest."""
        trace = self.work / "trace"
        daemon = Daemon(self.work)
        guest = self.use(Vmm(self.work, "vm", cpus=2, more=["--reboot", "restart"]))
        guest.net(daemon.port("net"), MAC)
        guest.blk(daemon.disk("disk", path=daemon.image("disk", 64)))
        guest.command[:0] = ["strace", "-f", "-qq", "-o", trace, "-e",
                             "trace=%file,seccomp,execve"]
        self.use(daemon)
        guest.start()
        daemon.kill9()
        daemon.start()
        guest.must("dd if=/dev/vda of=/dev/null bs=64k count=16 iflag=direct", 120)
        guest.reboot()
        self.assertEqual(guest.stop(), POWERED_OFF)
        with open(trace) as file:
            calls = [line.split(maxsplit=1)[1] for line in file]
        starts = [at for at, call in enumerate(calls) if call.startswith("seccomp(")]
        self.assertGreaterEqual(len(starts), 9)  # main, and twice two vCPUs and two devices
        # What is asked of a descriptor has no path, or the one that stands for the descriptor.
        harmless = re.compile(r'seccomp\(|\+\+\+|---|(newfstatat|statx)\(\d+, "",|'
                              r'readlink\("/proc/self/fd/\d+"|<\.\.\. \w+ resumed|'
                              + re.escape(f'unlink("{guest.path("agent")}")'))
        late = [call for call in calls[starts[0]:] if not harmless.match(call)]
        self.assertEqual(late, [])

    def test_switched_off_it_says_so(self):
        guest = self.use(Vmm(self.work, "vm", more=["--sandbox", "off"])).start()
        for name, fields in threads(guest.process.pid).items():
            self.assertEqual(fields["NoNewPrivs"], "0", name)
        self.assertEqual(guest.log().count("the sandbox is off"), 1)
        self.assertEqual(guest.stop(), POWERED_OFF)


class Ordinary(SystemTest):
    """A user without privileges who may open /dev/kvm."""

    def as_nobody(self, guest):
        os.chmod(str(self.work.path), 0o777)
        guest.command[:0] = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY),
                             "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]

    def test_runs_a_stock_guest(self):
        before = os.stat("/dev/kvm")
        self.addCleanup(os.chmod, "/dev/kvm", before.st_mode & 0o7777)
        self.addCleanup(os.chown, "/dev/kvm", before.st_uid, before.st_gid)
        guest = self.use(Vmm(self.work, "vm"))
        self.as_nobody(guest)
        os.chown("/dev/kvm", 0, 0)
        os.chmod("/dev/kvm", 0o600)
        done = run(guest.command, check=False, timeout=60)
        said = [line for line in done.stdout.splitlines() if line.startswith("millrace-vmm: ")]
        self.assertEqual((done.returncode, len(said)), (1, 1), done.stdout)
        self.assertIn("no permission to open /dev/kvm", said[0])
        os.chown("/dev/kvm", 0, NOBODY)
        os.chmod("/dev/kvm", 0o660)
        guest.start()
        for name, fields in threads(guest.process.pid).items():
            self.assertEqual(fields["Uid"].split(), [str(NOBODY)] * 4, name)
            self.assertEqual(int(fields["CapEff"], 16), 0, name)
        self.assertEqual(guest.must("echo alive"), "alive")
        self.assertEqual(guest.stop(), POWERED_OFF)


class Probe(SystemTest):
    """Why /dev/kvm cannot be used is one line. Each in a mount namespace of its own."""

    def said(self, mount):
        vmlinuz = assets.kernel("cloud")[0]
        program = shlex.join([settings.program("millrace-vmm"), "--kernel", vmlinuz])
        done = run(["unshare", "-m", "sh", "-c", f"{mount} && exec {program}"], check=False,
                   timeout=60)
        lines = [line for line in done.stdout.splitlines() if line.startswith("millrace-vmm: ")]
        self.assertEqual((done.returncode, len(lines)), (1, 1), done.stdout)
        return lines[0]

    def test_there_is_no_kvm(self):
        line = self.said("mount -t tmpfs none /dev")
        self.assertRegex(line, "/dev/kvm does not exist: load the module")

    def test_the_processor_runs_no_guests(self):
        cpuinfo = self.work / "cpuinfo"
        with open("/proc/cpuinfo") as real, open(cpuinfo, "w") as file:
            file.write(re.sub(r"\b(vmx|svm)\b", "", real.read()))
        line = self.said(f"mount --bind {cpuinfo} /proc/cpuinfo")
        self.assertRegex(line, "neither VMX nor SVM.*cannot run a stock kernel: use a machine")


class File(SystemTest):
    """A guest that a TOML file describes."""

    def test_the_example_boots(self):
        """examples/vmm/guest.toml with the daemon of examples/minimal.toml, both as they stand but
        for their paths; the command line says what a test wants otherwise."""
        guest = self.use(Vmm(self.work, "vm"))
        options = dict(zip(guest.command[1::2], guest.command[2::2]))
        texts = {}
        for name in ("minimal.toml", "vmm/guest.toml"):
            with open(os.path.join(settings.SOURCE, "examples", name)) as file:
                texts[name] = file.read().replace("/run/millrace/", self.work.path + "/")
        daemon = Daemon(self.work)
        with open(daemon.path("toml"), "w") as file:
            file.write(f'[control]\nsocket = "{daemon.control}"\n{texts["minimal.toml"]}')
        daemon.start(config=daemon.path("toml"))
        self.use(daemon)
        described = tomllib.loads(texts["vmm/guest.toml"])
        text = texts["vmm/guest.toml"]
        for key in ("kernel", "initrd"):
            text = text.replace(f'"{described[key]}"', f'"{options["--" + key]}"')
        config = self.work / "guest.toml"
        with open(config, "w") as file:
            file.write(text)
        kept = ("--console", "--second-console", "--cmdline")
        guest.command = [guest.command[0], "--config", config, "--cpus", "1",
                         *(word for key in kept for word in (key, options[key]))]
        guest.start()
        self.assertEqual(guest.must("nproc"), "1")
        total = int(guest.must("grep MemTotal /proc/meminfo").split()[1]) // 1024
        wanted = int(described["memory"].rstrip("M"))
        self.assertTrue(wanted - 120 < total < wanted, total)
        self.assertEqual(int(guest.must("cat /sys/block/vda/size")), (256 << 20) // 512)
        self.assertIn(described["net"][0]["mac"], guest.must("cat /sys/class/net/*/address"))
        self.assertEqual(guest.stop(), POWERED_OFF)


if __name__ == "__main__":
    inside.main()
