"""QEMU as a front-end: shared memory, vhost-user devices, QMP."""

import os

from . import settings
from .process import Child, tail
from .qmp import Qmp


class Qemu:
    """One QEMU process. Devices are added before start(); `qmp` is there after it.

    net() and blk() take the daemon's socket, or the socket to listen on where server=True. `huge`:
    its memory is of huge pages, which the machine has to have."""

    def __init__(self, work, name="vm", memory_mb=256, cpus=1, binary=None, machine="q35",
                 reconnect=True, huge=False):
        self.work, self.name = work, name
        self.binary = settings.qemu(binary)
        self.version = settings.qemu_version(self.binary)
        self.reconnect = reconnect
        self.devices, self.hot_nics = 0, set()
        self.process = self.qmp = None
        self.arguments = [
            "-nodefaults", "-no-user-config", "-display", "none", "-m", f"{memory_mb}M",
            "-smp", str(cpus), "-machine", f"{machine},memory-backend=mem",
            "-object", f"memory-backend-memfd,id=mem,size={memory_mb}M,share=on"
            f"{',hugetlb=on,hugetlbsize=2M' if huge else ''}",
            "-qmp", f"unix:{self.path('qmp')},server=on,wait=off"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def path(self, suffix):
        return os.path.join(str(self.work.path), f"{self.name}.{suffix}")

    def add(self, *arguments):
        self.arguments += [str(argument) for argument in arguments]
        return self

    def chardev(self, identity, socket, server=False):
        """The text of a -chardev for a vhost-user socket."""
        if server:
            return f"socket,id={identity},path={socket},server=on,wait=off"
        again = ",reconnect=1" if self.reconnect else ""
        return f"socket,id={identity},path={socket}{again}"

    def net(self, socket, mac, queues=1, options="", server=False):
        """A NIC with `queues` pairs. `options` are more properties of virtio-net-pci."""
        number = self._next()
        self.add("-chardev", self.chardev(f"cn{number}", socket, server),
                 "-netdev", f"vhost-user,id=nd{number},chardev=cn{number},queues={queues}")
        vectors = f",vectors={self.vectors(queues)},mq={'on' if queues > 1 else 'off'}"
        return self.add("-device", f"virtio-net-pci,netdev=nd{number},id=net{number},mac={mac},"
                        f"romfile={vectors}{_more(options)}")

    def vectors(self, queues):
        """How many MSI-X vectors a NIC has. None, and legacy interrupts, where QEMU 7.2 runs
        without KVM: there it undoes a KVM interrupt route that it never made, and ends with
        SIGSEGV, when a driver masks a vector of a running vhost-user NIC. Seen with 7.2.22 of
        Debian 12, with millraced and with DPDK's net_vhost as the backend; its disks are well."""
        if self.version < (8, 0) and settings.accelerator() == "tcg":
            return 0
        return 2 * queues + 2

    def blk(self, socket, queues=1, options="", server=False):
        """A disk. `options` are more properties of vhost-user-blk-pci."""
        number = self._next()
        self.add("-chardev", self.chardev(f"cb{number}", socket, server))
        return self.add("-device", f"vhost-user-blk-pci,chardev=cb{number},id=blk{number},"
                        f"num-queues={queues}{_more(options)}")

    def hot_add(self, driver, identity, socket, bus, **properties):
        """Plugs a vhost-user device into the running machine."""
        self.qmp("chardev-add", id=f"c-{identity}", backend={"type": "socket", "data": {
            "addr": {"type": "unix", "data": {"path": socket}}, "server": False}})
        backend = {"chardev": f"c-{identity}"}
        if "net" in driver:
            self.qmp("netdev_add", type="vhost-user", id=f"n-{identity}", **backend)
            backend = {"netdev": f"n-{identity}", "vectors": self.vectors(1)}
            self.hot_nics.add(identity)
        self.qmp("device_add", driver=driver, id=identity, bus=bus, **backend, **properties)

    def hot_remove(self, identity, timeout=60):
        """Asks the guest for the device; takes it, and what was behind it, away."""
        self.qmp("device_del", id=identity)
        while self.qmp.wait_event("DEVICE_DELETED", timeout)["data"].get("device") != identity:
            pass
        if identity in self.hot_nics:
            self.hot_nics.remove(identity)
            self.qmp("netdev_del", id=f"n-{identity}")  # and its chardev
        else:
            self.qmp("chardev-remove", id=f"c-{identity}")

    def _next(self):
        self.devices += 1
        return self.devices

    def command(self):
        return [self.binary, "-accel", settings.accelerator(), *self.arguments]

    def start(self, timeout=60):
        """Starts the process; answers when its monitor does."""
        self.process = Child(self.command(), self.path("log"), name=f"QEMU {self.name}")
        self.qmp = Qmp(self.path("qmp"), timeout, self.process)
        return self

    def kill(self):
        if self.qmp:
            self.qmp.close()
            self.qmp = None
        if self.process:
            self.process.kill()
            self.process = None

    def log(self):
        return tail(self.path("log"))


def _more(options):
    return f",{options}" if options else ""
