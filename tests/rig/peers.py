"""Other vhost-user back-ends, started from Debian's packages, beside which ours is measured."""

import os
import re
import shutil
import signal

from .process import Child, RigError, run, tail, wait_for
from .testpmd import Testpmd

OVS = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
_SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"


class HugePages:
    """At least `count` huge pages of 2 MiB in the host's pool; as many as before at the end."""

    _FILE = "/proc/sys/vm/nr_hugepages"

    def __init__(self, count):
        self.count = count

    def __enter__(self):
        self.before = self._read()
        if self.before < self.count:
            with open(self._FILE, "w") as file:
                file.write(str(self.count))
            if self._read() < self.count:
                self.__exit__()
                raise RigError(f"this host has no room for {self.count} huge pages")
        return self

    def __exit__(self, *_):
        if self._read() != self.before:
            with open(self._FILE, "w") as file:
                file.write(str(self.before))

    @staticmethod
    def free():
        """Pages of the pool that nobody has."""
        with open("/proc/meminfo") as file:
            return int(re.search(r"HugePages_Free:\s+(\d+)", file.read()).group(1))

    def _read(self):
        with open(self._FILE) as file:
            return int(file.read())


class OpenVSwitch:
    """OVS-DPDK 3.1 with a learning bridge of vhost-user ports, one polling thread on `core`. All of
    it lives in a folder of its own, beside whatever OVS the host runs."""

    name = "ovs-dpdk"
    options = ("--listen",)  # its ports connect to us; those that listen take no TSO

    def __init__(self, work, core, ports=("a", "b"), tso=False):
        if not os.access(OVS, os.X_OK):
            raise RigError("there is no OVS with DPDK: apt-get install openvswitch-switch-dpdk")
        self.folder = os.path.join(work.path, "ovs")
        self.core, self.ports, self.tso = core, ports, tso
        self.prefix = f"bench{os.getpid()}{'t' * tso}"
        self.children = []

    def socket(self, port):
        return os.path.join(self.folder, port)

    def __enter__(self):
        os.makedirs(self.folder, exist_ok=True)
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for child in reversed(self.children):
            child.signal(signal.SIGCONT)
            child.kill()
        self.children = []
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(f"/var/run/dpdk/{self.prefix}", ignore_errors=True)

    def _start(self):
        environment = {"OVS_RUNDIR": self.folder, "OVS_DBDIR": self.folder}
        database = os.path.join(self.folder, "conf.db")
        self.db = "unix:" + os.path.join(self.folder, "db.sock")
        run(["ovsdb-tool", "create", database, _SCHEMA])
        self.children.append(Child(
            ["ovsdb-server", database, f"--remote=p{self.db}", f"--unixctl={self.folder}/db.ctl"],
            f"{self.folder}/db.log", env=environment))
        wait_for("OVS's database", lambda: os.path.exists(self.db[5:]))
        self.vsctl("--no-wait", "init")
        self.vsctl("--no-wait", "set", "Open_vSwitch", ".", "other_config:dpdk-init=true",
                   f"other_config:pmd-cpu-mask={1 << self.core:#x}",
                   "other_config:dpdk-socket-mem=512",
                   f"other_config:userspace-tso-enable={str(self.tso).lower()}",
                   f'other_config:dpdk-extra="--no-pci --file-prefix={self.prefix}"')
        self.ctl = f"{self.folder}/vswitchd.ctl"
        self.switch = Child([OVS, self.db, f"--unixctl={self.ctl}"], f"{self.folder}/vswitchd.log",
                            env=environment)
        self.children.append(self.switch)
        wait_for("OVS", lambda: self.switch.expect_running() and os.path.exists(self.ctl), 60)
        self.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        for port in self.ports:
            self.vsctl("add-port", "br0", port, "--", "set", "Interface", port,
                       "type=dpdkvhostuserclient",
                       f"options:vhost-server-path={self.socket(port)}")

    def vsctl(self, *words):
        return run(["ovs-vsctl", f"--db={self.db}", "--timeout=30", *words]).stdout

    def appctl(self, *words):
        return run(["ovs-appctl", "-t", self.ctl, *words]).stdout

    def log(self):
        return tail(f"{self.folder}/vswitchd.log")

    def pause(self):
        self.switch.signal(signal.SIGSTOP)

    def resume(self):
        self.switch.signal(signal.SIGCONT)

    def busy(self):
        """(cycles of work, packets) of the polling thread since the start."""
        text = self.appctl("dpif-netdev/pmd-stats-show")
        pmd = text[text.index("pmd thread"):]
        cycles = int(re.search(r"processing cycles: (\d+)", pmd).group(1))
        return cycles, int(re.search(r"packets received: (\d+)", pmd).group(1))


class NetVhost(Testpmd):
    """dpdk-testpmd that forwards between its vhost port and one other device, as they come, on
    `core`; it counts its own cycles."""

    options = ()

    def __init__(self, work, core, device, name="net_vhost"):
        super().__init__(work, name, [])
        self.name = "testpmd net_vhost"
        self.prefix = f"{name}{os.getpid()}"
        shells = [each for each in range(os.cpu_count()) if each != core] or [core]
        self.command = [
            "dpdk-testpmd", "--lcores", f"0@{shells[0]},1@{core}", "--no-pci", "--in-memory",
            f"--file-prefix={self.prefix}", "--socket-mem=256", "--no-telemetry",
            "--vdev", f"net_vhost0,iface={self.socket('a')}", "--vdev", device,
            "--", "-i", "--nb-cores=1", "--rxd=1024", "--txd=1024", "--no-flush-rx",
            "--total-num-mbufs=24576", "--record-core-cycles", "--forward-mode=io"]

    def socket(self, _):
        return os.path.join(self.work.path, f"{self.prefix}.sock")

    def __enter__(self):
        if not shutil.which("dpdk-testpmd"):
            raise RigError("there is no dpdk-testpmd: apt-get install dpdk-dev")
        try:
            self.start()
            self("start")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.resume()
        self.kill()
        shutil.rmtree(f"/var/run/dpdk/{self.prefix}", ignore_errors=True)

    def pause(self):
        self.process.signal(signal.SIGSTOP)

    def resume(self):
        if self.process:
            self.process.signal(signal.SIGCONT)

    def busy(self):
        """(cycles in rounds that found packets, None) since the start."""
        found = re.search(r"\(total cycles=(\d+)", self("show fwd stats all"))
        return int(found.group(1)) if found else 0, None


class StorageDaemon:
    """qemu-storage-daemon with one disk of nothing: reads and writes go nowhere."""

    name = "qemu-storage-daemon"
    options = ()

    def __init__(self, work, core, size=1 << 30):
        self.work, self.core, self.size = work, core, size
        self.child = None

    def socket(self, _):
        return os.path.join(self.work.path, "qsd.sock")

    def __enter__(self):
        if not shutil.which("qemu-storage-daemon"):
            raise RigError("there is no qemu-storage-daemon: apt-get install qemu-system-common")
        self.child = Child(
            ["taskset", "-c", self.core, "qemu-storage-daemon",
             "--object", "iothread,id=io",
             "--blockdev", f"driver=null-co,node-name=n,size={self.size},read-zeroes=on",
             "--export", "type=vhost-user-blk,id=e,node-name=n,writable=on,iothread=io,"
             f"addr.type=unix,addr.path={self.socket('')}"],
            os.path.join(self.work.path, "qsd.log"))
        wait_for("qemu-storage-daemon", lambda: self.child.expect_running() and
                 os.path.exists(self.socket("")), 30)
        return self

    def __exit__(self, *_):
        self.child.signal(signal.SIGCONT)
        self.child.kill()

    def pause(self):
        self.child.signal(signal.SIGSTOP)

    def resume(self):
        self.child.signal(signal.SIGCONT)

    def busy(self):
        """(cycles, None): all of its processor time, since it does not poll."""
        return self.child.cpu_seconds() * cycles_per_second(), None


def cycles_per_second():
    """Of the time-stamp counter, as the kernel found it out at boot."""
    found = re.search(r"tsc: (?:Refined TSC clocksource calibration|Detected): ([\d.]+) MHz",
                      run(["dmesg"], check=False).stdout)
    if found:
        return float(found.group(1)) * 1e6
    with open("/proc/cpuinfo") as file:
        return float(re.search(r"cpu MHz\s*: ([\d.]+)", file.read()).group(1)) * 1e6
