"""One emulated NIC's function and the wire behind it, as `bench/uplinks` has them in the virtual
host: the function itself, who sends at the wire's other end, and who serves a guest by it."""

import glob
import os
import re
import signal
import subprocess

from tests.rig import assets, virtual_host_image
from tests.rig.daemon import Daemon
from tests.rig.pci import FUNCTIONS, give
from tests.rig.peers import NetVhost
from tests.rig.process import RigError, run, wait_for

PF, FAR = "0000:02:00.0", "0000:00:11.0"  # the function's NIC; the kernel's at the other end
DEVICES = ["-device", "pcie-root-port,id=rp1,chassis=2,slot=2,addr=12.0",
           "-netdev", "hubport,id=wire0,hubid=1",
           "-device", "igb,bus=rp1,netdev=wire0,mac=52:54:00:77:00:00",
           "-netdev", "hubport,id=wire1,hubid=1",
           "-device", "e1000e,addr=11.0,netdev=wire1,mac=52:54:00:77:00:01"]
GUEST = "02:0a:00:00:00:00"  # millrace-bench's own address
CORE, CLIENT_CORE = 0, 1
HUGE_PAGES = 128  # of 2 MiB, for dpdk-testpmd
PLUGINS = ("librte_bus_pci", "librte_bus_vdev", "librte_mempool_ring", "librte_net_vhost",
           "librte_net_e1000")
DRIVERS = "/run/millrace-drivers"  # where they are in the virtual host


def shell(line):
    return run(["bash", "-c", line]).stdout.strip()


def interface(address):
    found = glob.glob(f"{FUNCTIONS}/{address}/net/*")
    return os.path.basename(found[0]) if found else None


class Wire:
    """The function that is measured, bound to vfio-pci, and the interface at the other end."""

    def __init__(self, jumbo):
        self.mtu = 9000 if jumbo else 1500
        give(FAR, "e1000e")
        self.far = wait_for("the far interface", lambda: interface(FAR), 30)
        shell(f"ip link set {self.far} mtu {self.mtu} up")
        self.function = self._physical() if jumbo else self._virtual()
        give(self.function, "vfio-pci")
        wait_for("the far interface's link",
                 lambda: shell(f"cat /sys/class/net/{self.far}/carrier") == "1", 60)

    def _physical(self):
        """Linux's driver of igb's virtual functions takes no mtu from DPDK's: frames of 9000 bytes
        are for the physical one."""
        if os.path.exists(f"{FUNCTIONS}/{PF}/sriov_numvfs"):
            shell(f"echo 0 >{FUNCTIONS}/{PF}/sriov_numvfs")
        return PF

    def _virtual(self):
        at = f"{FUNCTIONS}/{PF}"
        give(PF, "igb")
        pf = wait_for("the physical function's interface", lambda: interface(PF), 30)
        if shell(f"cat {at}/sriov_numvfs") == "0":
            shell(f"ip link set {pf} up; echo 0 >{at}/sriov_drivers_autoprobe; "
                  f"echo 1 >{at}/sriov_numvfs")
        wait_for("its link", lambda: shell(f"cat /sys/class/net/{pf}/carrier") == "1", 60)
        shell(f"ip link set {pf} vf 0 mac {GUEST}")
        return os.path.basename(os.readlink(f"{at}/virtfn0"))


class Source:
    """The kernel's packet generator at the far interface: as many frames for the guest as go."""

    FOLDER = "/proc/net/pktgen"

    def __init__(self, wire):
        self.wire, self.child = wire, None
        if not os.path.isdir(self.FOLDER):
            _, modules, _ = assets.kernel(virtual_host_image.FLAVOUR)
            shell(f"insmod {modules}/kernel/net/core/pktgen.ko")
        self._tell(f"kpktgend_{CLIENT_CORE}", "rem_device_all", f"add_device {wire.far}")

    def _tell(self, file, *words):
        for word in words:
            try:
                with open(f"{self.FOLDER}/{file}", "w") as control:
                    control.write(f"{word}\n")
            except OSError as error:
                raise RigError(f"pktgen: {file}: {word}: {error.strerror}") from None

    def start(self, size):
        self._tell(self.wire.far, "count 0", "clone_skb 0", f"pkt_size {size}", "delay 100000",
                   "burst 4", f"dst_mac {GUEST}", "dst 10.0.0.1", "src_min 10.0.0.2")
        self.child = subprocess.Popen(["sh", "-c", f"echo start >{self.FOLDER}/pgctrl"])

    def stop(self):
        """Answers how many frames it sent."""
        self._tell("pgctrl", "stop")
        self.child.wait(30)
        with open(f"{self.FOLDER}/{self.wire.far}") as file:
            return int(re.search(r"pkts-sofar: (\d+)", file.read()).group(1))


class Ours:
    """millraced, whose only uplink is the function, in one of its modes while it is the turn's."""

    name = "millraced"
    MODES = {"direct": {"direct": True}, "zero_copy": {"zero_copy": True},
             "copy": {"zero_copy": False}}
    words = ("--inflight",)  # as millrace-vmm has it: buffers come back in any order

    def __init__(self, work, wire):
        self.wire, self.mode = wire, None
        self.daemon = Daemon(work, cores=[CORE])
        self.daemon.memory = {"dpdk_mb": 64}  # pinned, which takes long here

    def __enter__(self):
        self.daemon.start()
        return self

    def __exit__(self, *_):
        if self.daemon.process:
            self.daemon.process.kill()

    def socket(self, _):
        return self.daemon.socket("a")

    def pause(self):
        self.daemon.process.signal(signal.SIGSTOP)

    def resume(self):
        self.daemon.process.signal(signal.SIGCONT)

    def ask(self, command, **arguments):
        with self.daemon.qmp(timeout=180) as qmp:
            return qmp(command, **arguments)

    def add(self, kind, **keys):
        words = [f"{key}={str(value).lower()}" for key, value in keys.items()]
        self.daemon.millctl("add", kind, *words, timeout=180)

    def take(self, mode):
        """Has the function from now on."""
        self.resume()
        self.mode = mode
        more = {"mtu": self.wire.mtu} if self.wire.mtu > 1500 else {}
        self.add("uplink", name="wire", pci=self.wire.function, mac=GUEST, **more,
                 **self.MODES[mode])
        direct = {"direct": "wire"} if mode == "direct" else {}
        self.add("port", name="a", socket=self.socket(""), mac=GUEST, **direct, **more)

    def leave(self):
        self.ask("port-remove", name="a")
        self.ask("uplink-remove", name="wire")
        self.pause()

    def reachable(self):
        """The client is there: waits until the device runs, and reaches its memory if it shall."""
        def mapped():
            uplink = self.ask("query-uplinks")[0]
            return uplink["link_up"] and uplink["carries"] and (self.mode == "copy" or (
                uplink["memory"] and
                all(each["state"] == "mapped" for each in uplink["memory"])))
        wait_for("the client's memory to be mapped", mapped, 60)

    def seen(self):
        """(cycles in rounds that found work, frames, counters of port and uplink)."""
        with self.daemon.qmp(timeout=60) as qmp:
            counted = {}
            for command, prefix in (("query-uplinks", "wire"), ("query-ports", "port")):
                for key, count in qmp(command)[0]["counters"].items():
                    counted[f"{prefix}.{key}"] = count
            busy = sum(each["busy_cycles"] for each in qmp("query-reactors"))
        # One way is idle. What no one was there for, or had no place, is no frame that arrived.
        return busy, counted["port.rx_packets"] + counted["wire.rx_packets"], counted


class Theirs(NetVhost):
    """dpdk-testpmd, which passes frames between a vhost port and the function."""

    words = ()

    def __init__(self, work, wire):
        super().__init__(work, CORE, "")
        self.wire = wire
        at = self.command.index("--")
        vdev = ["--vdev", f"net_vhost0,iface={self.socket('a')}"]
        # Of 9000 bytes: whole in a buffer, since not every port scatters
        more = ["--max-pkt-len=9018", "--mbuf-size=10240", "--total-num-mbufs=8192"] \
            if wire.mtu > 1500 else []
        self.command = [
            "dpdk-testpmd", *self.command[1:3], "-a", wire.function, "--in-memory",
            f"--file-prefix={self.prefix}", "--socket-mem=128", "--no-telemetry", *vdev,
            *self.command[at:], *more]

    def take(self, _):
        self.text = b""
        self.start(120)
        self("start")

    def leave(self):
        self("stop")
        self.kill()
        os.unlink(self.socket(""))

    def reachable(self):
        pass

    def seen(self):
        """The same, less the counters. The function's own count has frames that were not taken yet,
        so it counts where there is no guest alone."""
        text = self("show fwd stats all")
        total = re.search(r"\(total cycles=(\d+) / total \w+ packets=(\d+)\)", text)
        if not total:
            return 0, 0, {}
        guest = text.partition("statistics for port 1 ")[2].partition("----\n\n")[0]
        counts = [int(count) for count in re.findall(r"[RT]X-packets: (\d+)", guest)]
        return int(total.group(1)), sum(counts[:2]) or int(total.group(2)), {}

    def alone(self, engine, size, during):
        """What during() answers while the function and its driver work alone, with no guest."""
        self("stop")
        pieces = [min(2048, size - at) for at in range(0, size, 2048)]  # a buffer each
        for word in ("set portlist 0", f"set fwd {engine}",
                     f"set txpkts {','.join(map(str, pieces))}", "start"):
            self(word)
        seen = during()
        self("stop")
        for word in ("set portlist 0,1", "set fwd io", "start"):
            self(word)
        return seen


def few_plugins():
    """In the virtual host DPDK's programs take half a minute to read all of its drivers: here they
    find those that they are linked with and those that are wanted. This boot's alone."""
    if os.path.isdir(DRIVERS):
        return
    linked = re.findall(r"(librte_\w+)\.so", shell("ldd $(command -v dpdk-testpmd) || true"))
    for folder in glob.glob("/usr/lib/x86_64-linux-gnu/dpdk/pmds-*"):
        kept = [path for name in {*linked, *PLUGINS} for path in glob.glob(f"{folder}/{name}.so*")]
        shell(f"mkdir {DRIVERS} && cp -a {' '.join(kept)} {DRIVERS} && "
              f"mount --bind {DRIVERS} {folder}")
