"""The control socket of millrace-vmm: every command against a stock guest, every event, dumps that
gdb and readelf read, and millctl's words for it. In the virtual host where KVM is not here."""

import json
import os
import re
import socket
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import inside, settings
from tests.rig.case import SystemTest
from tests.rig.daemon import Daemon
from tests.rig.process import Child, run, wait_for
from tests.rig.qmp import Qmp, QmpError
from tests.rig.vmm import Vmm

POWERED_OFF, FAILED, USAGE, RESET, PANICKED = 0, 1, 2, 3, 4  # the program's exit statuses
MAC = "52:54:00:00:00:0a"
# The guest obeys its power button as busybox's acpid does it.
OBEY = """modprobe button && modprobe evdev && mkdir -p /etc/acpi/PWRF
printf '#!/bin/sh\\nsync; poweroff -f\\n' >/etc/acpi/PWRF/00000080
chmod +x /etc/acpi/PWRF/00000080
ls /dev/input/event* && acpid -l /tmp/acpid.log"""


class ControlTest(SystemTest):
    def boot(self, cpus=2, more=(), **keys):
        self.path = self.work / "vm.control"
        guest = Vmm(self.work, cpus=cpus, more=["--control", self.path, "--name", "web0", *more],
                    **keys)
        return self.use(guest)

    def qmp(self):
        return self.use(Qmp(self.path, timeout=60, process=self.guest.process))

    def refused(self, said, command, kind="GenericError", **arguments):
        with self.assertRaises(QmpError) as caught:
            self.control(command, **arguments)
        self.assertEqual(caught.exception.kind, kind)
        self.assertNotIn("\n", caught.exception.text)
        self.assertRegex(caught.exception.text, said)

    def cpu_ticks(self):
        """Processor time of the vCPU threads so far."""
        ticks = []
        for cpu in self.control("query-cpus-fast"):
            with open(f"/proc/{self.guest.process.pid}/task/{cpu['thread-id']}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
            ticks.append(int(fields[11]) + int(fields[12]))
        return ticks


class Commands(ControlTest):
    def setUp(self):
        super().setUp()
        self.daemon = Daemon(self.work)
        self.net = self.daemon.port("net")
        self.disk = self.daemon.disk("disk", path=self.daemon.image("disk", 16))
        self.spare = self.daemon.disk("spare", path=self.daemon.image("spare", 16))
        self.use(self.daemon)
        self.guest = self.boot().net(self.net, MAC).blk(self.disk)
        self.guest.start()
        self.control = self.qmp()

    def test_a_life(self):
        """One boot, one step after the other: what a guest can be asked, and what comes of it."""
        for step in (self.queries, self.nonsense, self.stop_and_cont, self.devices,
                     self.daemon_comes_and_goes, self.reset, self.powerdown):
            with self.subTest(step.__name__):
                step()

    def queries(self):
        ask = self.control
        self.assertEqual({each["name"] for each in ask("query-commands")}, {
            "query-commands", "query-status", "query-name", "query-version", "query-kvm",
            "query-cpus-fast", "query-devices", "query-dump", "stop", "cont", "system_powerdown",
            "system_reset", "quit", "device_add", "device_del", "dump-guest-memory", "getfd",
            "closefd"})
        self.assertEqual(ask("query-status"), {"running": True, "status": "running"})
        self.assertEqual(ask("query-name"), {"name": "web0"})
        self.assertEqual(ask("query-kvm"), {"enabled": True, "present": True})
        self.assertEqual(ask("query-version"), self.control.greeting["QMP"]["version"])
        self.assertEqual(ask("query-dump"), {"status": "none", "completed": 0, "total": 0})
        cpus = ask("query-cpus-fast")
        self.assertEqual([cpu["cpu-index"] for cpu in cpus], [0, 1])
        tasks = os.listdir(f"/proc/{self.guest.process.pid}/task")
        self.assertTrue({str(cpu["thread-id"]) for cpu in cpus} <= set(tasks))
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)
        second = run([*self.guest.command[:3], "--console", "none", "--control", self.path],
                     check=False)
        self.assertEqual(second.returncode, FAILED)
        self.assertIn("is in use by another process", second.stdout)

    def nonsense(self):
        for command in ("stop", "quit", "query-status", "system_reset"):
            self.refused("there is no argument \"colour\"", command, colour="red")
        self.refused("there is no command", "human-monitor-command", kind="CommandNotFound")
        self.refused("\"driver\" is missing", "device_add", id="x", socket="/s")
        self.refused("\"driver\" is net, disk", "device_add", driver="gpu", id="x", socket="/s")
        self.refused("\"id\" is made of", "device_add", driver="net", id="a b", socket="/s")
        self.refused("\"queues\" has to be", "device_add", driver="net", id="x", socket="/s",
                     queues=0)
        self.refused("no argument \"mac\"", "device_add", driver="disk", id="x", socket="/s",
                     mac=MAC)
        self.refused("nobody serves", "device_add", driver="disk", id="x",
                     socket=str(self.work / "nobody"))
        self.refused("already", "device_add", driver="disk", id="disk0", socket=self.spare)
        self.refused("no device", "device_del", kind="DeviceNotFound", id="nobody")
        self.refused("no descriptor came", "getfd", fdname="x")
        self.refused("there is no descriptor", "closefd", fdname="x")
        self.refused("there is no descriptor", "dump-guest-memory", paging=False, protocol="fd:x")
        self.refused("fd:NAME or file:PATH", "dump-guest-memory", paging=False, protocol="x")
        self.refused("has to be false", "dump-guest-memory", paging=True, protocol="fd:x")
        with socket.socket(socket.AF_UNIX) as silent:  # answers nothing: no reason to wait long
            silent.bind(str(self.work / "silent"))
            silent.listen()
            self.refused("has not answered in 2 s", "device_add", driver="disk", id="x",
                         socket=str(self.work / "silent"))
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(self.path)
            raw.sendall(b"\x00\xff nonsense\n{]\n" + b"[" * 40)
            said = b"".join(iter(lambda: raw.recv(65536), b""))
        self.assertIn(b"nested deeper than 32 levels", said)
        self.assertTrue(self.control("query-status")["running"])

    def stop_and_cont(self):
        guest = self.guest
        guest.must("echo kvm-clock >/sys/devices/system/clocksource/clocksource0/"
                   "current_clocksource; (while :; do :; done) >/dev/null 2>&1 & "
                   "echo $! >/tmp/loop")
        begun = time.monotonic()
        before = float(guest.must("cat /proc/uptime").split()[0])
        self.control("stop")
        stood = time.monotonic()
        self.assertEqual(self.control("query-status")["status"], "paused")
        ticks = self.cpu_ticks()
        time.sleep(3)
        self.assertEqual(self.cpu_ticks(), ticks)
        self.control("stop")
        stood = time.monotonic() - stood
        self.control("cont")
        after = float(guest.must("cat /proc/uptime").split()[0])
        passed = time.monotonic() - begun
        self.assertLess(after - before, passed - stood + 0.2)
        self.control.wait_event("STOP")
        self.control.wait_event("RESUME")
        self.assertFalse([each for each in self.control.events if each["event"] == "STOP"])
        wait_for("the vCPUs to run", lambda: self.cpu_ticks() > ticks)
        guest.must("kill $(cat /tmp/loop)")
        self.assertEqual(guest.kernel_log("soft lockup|rcu.*stall|BUG:"), "")

    def devices(self):
        listed = {each["id"]: each for each in self.control("query-devices")}
        self.assertEqual({name: each["driver"] for name, each in listed.items()},
                         {"net0": "net", "disk0": "disk"})
        self.assertTrue(all(each["connected"] for each in listed.values()))
        self.assertEqual(listed["disk0"]["socket"], self.disk)
        self.assertGreaterEqual(listed["net0"]["queues"], 2)
        self.control("device_add", driver="disk", id="spare0", socket=self.spare)
        self.assertIn("spare0", [each["id"] for each in self.control("query-devices")])
        self.control("device_del", id="spare0")
        gone = self.control.wait_event("DEVICE_DELETED")
        self.assertEqual(gone["data"]["device"], "spare0")
        self.assertNotIn("spare0", [each["id"] for each in self.control("query-devices")])

    def daemon_comes_and_goes(self):
        self.daemon.kill9()
        events = [self.control.wait_event("DEVICE_DISCONNECTED") for _ in range(2)]
        self.assertEqual({each["data"]["id"] for each in events}, {"net0", "disk0"})
        self.assertTrue(all(each["data"]["reason"] for each in events))
        self.assertFalse(any(each["connected"] for each in self.control("query-devices")))
        self.daemon.start()
        events = [self.control.wait_event("DEVICE_RECONNECTED") for _ in range(2)]
        self.assertEqual({each["data"]["id"] for each in events}, {"net0", "disk0"})
        self.assertTrue(all(each["connected"] for each in self.control("query-devices")))

    def reset(self):
        """Although a guest's own reset would end the program; what was plugged in stays, and what
        was paused, too."""
        first = self.guest.boot_id
        self.control("device_add", driver="disk", id="kept", socket=self.spare)
        self.control("stop")
        self.control("system_reset")
        data = self.control.wait_event("RESET")["data"]
        self.assertEqual(data, {"guest": False, "reason": "host-qmp-system-reset"})
        self.assertEqual(self.control("query-status")["status"], "paused")
        self.control("cont")
        self.guest.wait_ready()
        self.assertNotEqual(self.guest.boot_id, first)
        listed = {each["id"]: each["connected"] for each in self.control("query-devices")}
        self.assertEqual(listed, {"net0": True, "disk0": True, "kept": True})
        self.guest.must("ls /dev/vda /dev/vdb && head -c 4096 /dev/vdb >/dev/null")

    def powerdown(self):
        self.guest.must(OBEY)
        self.control("system_powerdown")
        self.control.wait_event("POWERDOWN")
        data = self.control.wait_event("SHUTDOWN")["data"]
        self.assertEqual(data, {"guest": True, "reason": "guest-shutdown"})
        self.assertEqual(self.guest.process.wait(180), POWERED_OFF)
        self.assertFalse(os.path.exists(self.path))


class Words(ControlTest):
    """millctl vm: its words, its output, its exit statuses."""

    DONE, REFUSED, BAD_LINE, NOBODY = 0, 1, 2, 3

    def vm(self, *words, status=DONE, where=None):
        done = run([settings.program("millctl"), "vm", where or self.path, *words], check=False)
        self.assertEqual(done.returncode, status, done.stdout)
        return done.stdout

    def test_all(self):
        daemon = Daemon(self.work)
        disk = daemon.disk("disk", path=daemon.image("disk", 16))
        spare = daemon.disk("spare", path=daemon.image("spare", 16))
        self.use(daemon)
        self.guest = self.boot().blk(disk)
        self.guest.start()
        events = Child([settings.program("millctl"), "--json", "vm", self.path, "events"],
                       self.work / "events.log")
        self.use(events)
        self.control = self.qmp()
        self.assertEqual(self.vm("status"), "web0: running, 2 vCPUs\n")
        self.assertEqual(self.vm("stop"), "")
        self.assertEqual(self.vm("status"),
                         "web0: paused (stopped by the control socket), 2 vCPUs\n")
        self.assertEqual(json.loads(self.vm("status", "--json"))["status"], "paused")
        self.vm("cont")
        self.assertRegex(self.vm("devices"), r"ID +DRIVER +QUEUES +BACK-END +SOCKET\n"
                         rf"disk0 +disk +\d+ +connected +{disk}\n")
        self.vm("add", "disk", "id=spare0", f"socket={spare}")
        self.assertIn("spare0", self.vm("devices"))
        self.vm("del", "spare0", "--wait")
        self.assertNotIn("spare0", self.vm("devices"))
        core = str(self.work / "core")
        self.assertRegex(self.vm("dump", core), r"core: 25[67] MiB, \d+ MiB of them on the disk")
        self.assertEqual(Core(core).physical(0xe0000, 8), b"RSD PTR ")
        self.refusals()
        first = self.guest.boot_id
        self.vm("reset")
        self.guest.wait_ready()
        self.assertNotEqual(self.guest.boot_id, first)
        self.guest.must(OBEY)
        self.vm("powerdown")
        self.assertEqual(self.guest.process.wait(180), POWERED_OFF)
        self.assertEqual(events.wait(30), self.DONE)
        with open(self.work / "events.log") as file:
            told = [json.loads(line)["event"] for line in file]
        self.assertEqual(told, ["STOP", "RESUME", "DEVICE_DELETED", "DUMP_COMPLETED", "RESET",
                                "POWERDOWN", "SHUTDOWN"])
        self.assertIn("cannot reach millrace-vmm", self.vm("status", status=self.NOBODY))

    def refusals(self):
        self.assertIn("millctl: there is no device \"x\"", self.vm("del", "x",
                                                                    status=self.REFUSED))
        self.assertIn("nobody serves", self.vm("add", "disk", "id=x", "socket=/no/such",
                                               status=self.REFUSED))
        self.assertIn("not key=value", self.vm("add", "disk", "x", status=self.BAD_LINE))
        self.assertIn("no argument \"colour\"", self.vm("add", "net", "id=x", "socket=/x",
                                                        "colour=red", status=self.REFUSED))
        self.assertIn("cannot open", self.vm("dump", "/no/such/core", status=self.REFUSED))
        self.assertIn("regular file", self.vm("dump", "/dev/null", status=self.REFUSED))
        self.vm("nonsense", status=self.BAD_LINE)
        self.vm(status=self.BAD_LINE)


class Core:
    """An ELF core file of a guest, as this test reads it by itself."""

    def __init__(self, path):
        self.path = path
        with open(path, "rb") as file:
            head = file.read(64)
            self.kind, self.machine = struct.unpack_from("<HH", head, 16)
            offset, = struct.unpack_from("<Q", head, 32)
            size, count = struct.unpack_from("<HH", head, 54)
            file.seek(offset)
            segments = [struct.unpack("<IIQQQQQQ", file.read(size)) for _ in range(count)]
        # (guest-physical address, size, place in the file)
        self.loads = [(each[4], each[5], each[2]) for each in segments if each[0] == 1]

    def physical(self, address, size):
        for start, length, place in self.loads:
            if start <= address < start + length:
                with open(self.path, "rb") as file:
                    file.seek(place + address - start)
                    return file.read(size)
        raise AssertionError(f"nothing at {address:#x} in {self.path}")

    def count(self, pattern):
        with open(self.path, "rb") as file:
            return file.read().count(pattern)


class Dumps(ControlTest):
    """What is in a guest's memory is in the dump, where it was; the guest stands still
    meanwhile."""

    PLACE = 0xf8000  # memory that the kernel's map calls reserved: whoever writes there is alone

    def check(self, path, cpus):
        core = Core(path)
        self.assertEqual((core.kind, core.machine), (4, 62))  # ET_CORE, x86-64
        self.assertEqual(core.physical(0xe0000, 8), b"RSD PTR ")
        notes = run(["readelf", "--notes", "--program-headers", "--wide", path]).stdout
        self.assertNotRegex(notes, "(?i)warning|error")
        self.assertEqual(len(re.findall(r"CORE +\S+\s+NT_PRSTATUS", notes)), cpus, notes)
        self.assertEqual(len(re.findall("^ +QEMU ", notes, re.M)), cpus, notes)
        read = run(["gdb", "-nx", "-batch", "-ex", "info threads", "-ex", "info registers",
                    "-ex", "x/1xg 0xe0000", "--core", path]).stdout
        self.assertEqual(len(re.findall(r"LWP \d+", read.split("rax")[0])) >= cpus, True, read)
        self.assertRegex(read, r"rip +0xffffffff[89a-f]")  # in the kernel's text
        self.assertIn("0x2052545020445352", read)  # "RSD PTR ", by its guest-physical address
        return core

    def write_marks(self):
        """A word at a place that is known, a page of it anywhere."""
        words = [int.from_bytes(os.urandom(4), "little") for _ in range(4)]
        for index, word in enumerate(words):
            self.guest.must(f"devmem {self.PLACE + 4 * index:#x} 32 {word:#x}")
        text = self.guest.must("od -An -tx8 -N16 /dev/urandom | tr -d ' \\n' >/tmp/mark; "
                               "cat /tmp/mark")
        self.assertEqual(len(text), 32)
        return struct.pack("<4I", *words), text.encode()

    def holds(self, core, marks):
        self.assertEqual(core.physical(self.PLACE, 16), marks[0])
        self.assertGreaterEqual(core.count(marks[1]), 1)

    def leave(self, name, path, mode="wb"):
        """Gives the guest's program a descriptor under that name."""
        with open(path, mode) as file:
            socket.send_fds(self.control.socket, [json.dumps({
                "execute": "getfd", "arguments": {"fdname": name}}).encode()], [file.fileno()])
        self.assertEqual(self.control._read(), {"return": {}})

    def test_on_demand(self):
        self.guest = self.boot(memory_mb=320)
        self.guest.start()
        self.control = self.qmp()
        marks = self.write_marks()
        path = str(self.work / "core")
        # In its sandbox it opens nothing, and says what to do instead.
        self.refused(f"cannot open {path}: .*getfd", "dump-guest-memory", paging=False,
                     protocol=f"file:{path}")
        self.leave("core", path)
        self.control("dump-guest-memory", paging=False, protocol="fd:core")
        done = self.control.wait_event("DUMP_COMPLETED")["data"]["result"]
        self.assertEqual(done, self.control("query-dump"))
        self.assertEqual((done["status"], done["total"]), ("completed", 320 << 20))
        self.assertEqual(done["completed"], done["total"])
        core = self.check(path, cpus=2)
        self.holds(core, marks)
        used = os.stat(path).st_blocks * 512
        self.report(f"320 MiB of memory, {used >> 20} MiB on the disk")
        self.assertLess(used, 200 << 20)
        self.guest.must("true")
        self.assertTrue(self.control("query-status")["running"])
        self.paused_and_by_descriptor(marks)
        self.full_disk()
        self.control("quit")
        self.assertEqual(self.control.wait_event("SHUTDOWN")["data"],
                         {"guest": False, "reason": "host-qmp-quit"})
        self.assertEqual(self.guest.process.wait(180), POWERED_OFF)

    def paused_and_by_descriptor(self, marks):
        """A guest that was paused stays so. Meanwhile the control socket answers others."""
        path = str(self.work / "core2")
        self.control("stop")
        self.leave("core", path)
        self.control("dump-guest-memory", paging=False, detach=True, protocol="fd:core")
        with Qmp(self.path) as other:
            self.assertIn(other("query-dump")["status"], ("active", "completed"))
            self.assertIn(other("query-status")["status"], ("save-vm", "paused"))
        self.control.wait_event("DUMP_COMPLETED")
        self.assertEqual(self.control("query-status")["status"], "paused")
        self.holds(Core(path), marks)
        self.refused("there is no descriptor", "dump-guest-memory", paging=False,
                     protocol="fd:core")
        self.leave("core", path, "rb")
        self.refused("not open for writing", "dump-guest-memory", paging=False, protocol="fd:core")
        self.control("cont")
        self.guest.must("true")

    def full_disk(self):
        """One clear error, nothing left behind, and the guest goes on."""
        point = self.work / "small"
        os.mkdir(point)
        run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", point])
        self.addCleanup(run, ["umount", point])
        self.leave("core", f"{point}/core")
        self.refused("cannot write the dump, after .* No space left on device",
                     "dump-guest-memory", paging=False, protocol="fd:core")
        self.assertEqual(os.stat(f"{point}/core").st_blocks, 0)
        self.assertEqual(self.control("query-dump")["status"], "failed")
        self.control.wait_event("DUMP_COMPLETED")
        self.refused("cannot open /no/such/core.*getfd", "dump-guest-memory", paging=False,
                     protocol="file:/no/such/core")
        self.leave("null", "/dev/null")
        self.refused("regular file", "dump-guest-memory", paging=False, protocol="fd:null")
        self.guest.must("true")

    def test_on_panic(self):
        path = str(self.work / "panic")
        self.guest = self.boot(cpus=1, more=["--dump-on-panic", path])
        self.guest.start()
        self.control = self.qmp()
        self.guest.must("modprobe pvpanic-mmio")
        marks = self.write_marks()
        self.guest.send("echo c >/proc/sysrq-trigger")
        self.assertEqual(self.control.wait_event("GUEST_PANICKED")["data"]["action"], "poweroff")
        self.control.wait_event("DUMP_COMPLETED")
        self.assertEqual(self.control.wait_event("SHUTDOWN")["data"]["reason"], "guest-panic")
        self.assertEqual(self.guest.process.wait(180), PANICKED)
        core = self.check(path, cpus=1)
        self.holds(core, marks)
        self.assertGreaterEqual(core.count(b"sysrq triggered crash"), 1)


if __name__ == "__main__":
    inside.main(memory_mb=4096)
