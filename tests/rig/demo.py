"""What ./demo shows, once everything is built: two guests at work, and that they were right.
Where KVM can run them they are millrace-vmm's, else QEMU's."""

import os
import re
import subprocess
import sys
import time
import tomllib

from . import process, scenes, settings
from .daemon import Daemon
from .guest import Guest
from .process import Child, RigError, Workspace, run
from .vmm import Vmm

EXAMPLE = os.path.join(settings.SOURCE, "examples", "first-light.toml")
HOST = "10.77.0.1"
IPS = ["10.77.0.11", "10.77.0.12"]


class Demo:
    def __init__(self, work):
        self.work, self.rows, self.began = work, [], time.monotonic()
        self.own_vmm = settings.kvm()[0] and not os.environ.get("MILLRACE_QEMU")

    def say(self, text):
        print(f"  [{time.monotonic() - self.began:5.1f} s] {text}", flush=True)

    def row(self, what, result):
        self.rows.append((what, result))
        self.say(f"{what}: {result}")

    def daemon(self):
        """The example's configuration, its files moved into our own folder."""
        with open(EXAMPLE) as file:
            text = file.read()
        for folder in ("/run/millrace/", "/var/lib/millrace/"):
            text = text.replace(folder, self.work.path + "/")
        self.config = tomllib.loads(text)
        self.interface = re.search(r"iface=(\w+)", self.config["uplink"][0]["device"]).group(1)
        if os.path.exists(f"/sys/class/net/{self.interface}"):
            raise RigError(f"this machine already has an interface {self.interface}")
        for disk in self.config["disk"]:
            with open(disk["path"], "wb") as file:
                file.truncate(256 << 20)
        path = self.work / "first-light.toml"
        with open(path, "w") as file:
            file.write(text)
        daemon = Daemon(self.work)
        daemon.control = self.config["control"]["socket"]
        daemon.start(config=path)
        return daemon

    def guests(self):
        made = []
        for number, (port, disk) in enumerate(zip(self.config["port"], self.config["disk"])):
            mac = port.get("mac") or f"52:54:00:00:00:{number + 1:02x}"
            if self.own_vmm:
                guest = Vmm(self.work, "AB"[number]).net(port["socket"], mac).blk(disk["socket"])
            else:
                guest = Guest(self.work, "AB"[number])
                guest.net(port["socket"], mac, port.get("queues", 1))
                guest.blk(disk["socket"], disk.get("queues", 1))
            guest.mac = mac
            made.append(guest)
        return made[:2]

    def boot(self, a, b):
        for guest in (a, b):
            guest.start(wait=False)
        for guest, ip in zip((a, b), IPS):
            guest.wait_ready(240)
            scenes.address(guest, guest.mac, ip)
            self.row(f"guest {guest.name}", f"Linux {guest.must('uname -r')}, "
                     f"up in {guest.must('cut -d. -f1 /proc/uptime')} s")

    def network(self, a, b):
        run(["ip", "addr", "add", f"{HOST}/24", "dev", self.interface])
        run(["ip", "link", "set", self.interface, "up"])
        for guest, ip, what in ((a, IPS[1], "A to B"), (b, IPS[0], "B to A"),
                                (a, HOST, "A to host"), (b, HOST, "B to host")):
            self.row(f"ping {what}", f"{scenes.ping(guest, ip, 5)} of 5 answered")
        for client, server, ip in ((a, b, IPS[1]), (b, a, IPS[0])):
            rate = scenes.iperf(client, server, ip, 4)
            self.row(f"TCP {client.name} to {server.name}", f"{rate / 1e9:.2f} Gbit/s")
        with Child(["iperf3", "-s", "-1", "-B", HOST], self.work / "iperf.log"):
            time.sleep(0.5)
            text = a.must(f"iperf3 -c {HOST} -t 4 -J", 60)
        rate = float(re.findall(r'"bits_per_second":\s*([\d.e+]+)', text)[-1])
        if not rate:
            raise RigError("no data from guest A to the host")
        self.row("TCP A to host", f"{rate / 1e9:.2f} Gbit/s")

    def disks(self, a, b):
        for guest in (a, b):
            scenes.make_filesystem(guest, "vda")
        for guest in (a, b):
            good = scenes.write_and_verify(guest, "vda", 64)
            if good != 4:
                raise RigError(f"guest {guest.name}: {good} of 4 files verified")
            self.row(f"disk of {guest.name}", "ext4, 64 MiB in 4 files, checksums hold")

    def show(self):
        print()
        for title, rows in (("what", self.rows),):
            width = max(len(what) for what, _ in rows)
            print(f"  {title:{width}}  result")
            print(f"  {'-' * width}  {'-' * 48}")
            for what, result in rows:
                print(f"  {what:{width}}  {result}")
        print(flush=True)


def main():
    process.install_signal_handlers()
    usable, why = settings.kvm()
    with Workspace("demo") as work:
        demo = Demo(work)
        vmm = settings.program("millrace-vmm") if demo.own_vmm else settings.qemu()
        version = subprocess.run([vmm, "--version"], text=True, check=True,
                                 stdout=subprocess.PIPE).stdout.split("\n")[0]
        demo.say(f"{version}; {'KVM' if usable else 'emulated (TCG)'}: {why}")
        daemon = demo.daemon()
        demo.say("millraced serves " + os.path.relpath(EXAMPLE, settings.SOURCE))
        try:
            a, b = demo.guests()
            with a, b:
                demo.boot(a, b)
                demo.network(a, b)
                demo.disks(a, b)
                demo.say("millctl status:")
                print(daemon.millctl("status").stdout, flush=True)
                for guest in (a, b):
                    guest.must("umount /mnt")
                    if guest.stop():
                        raise RigError(f"guest {guest.name} did not end well\n{guest.log()}")
            daemon.stop()
            demo.row("millraced", "drained, exit status 0")
        except BaseException:
            print(daemon.log(), file=sys.stderr)
            raise
        finally:
            daemon.process.kill()
        if os.path.exists(f"/sys/class/net/{demo.interface}"):
            raise RigError(f"{demo.interface} was left behind")
        demo.show()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RigError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(1)
