"""The control socket of a running daemon: every command, every event, and millctl's words for
them."""

import json
import os
import re
import socket
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import pcap, settings
from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.process import Child, wait_for
from tests.rig.qmp import QmpError
from tests.rig.qtest import BlkDriver, QtestQemu, VirtioPci

MAC, LEARNED = "52:54:00:00:00:01", "52:54:00:00:00:77"
MIB = 1 << 20


class ControlTest(SystemTest):
    def setUp(self):
        super().setUp()
        self.daemon = Daemon(self.work)
        self.port = self.daemon.port("web0", mac=MAC)
        self.image = self.daemon.image("root", 16)
        self.disk = self.daemon.disk("web0-root", path=self.image)
        self.use(self.daemon)
        wait_for("all to be there", lambda: self.ask("query-status")["disks"] == 1)

    def ask(self, command, **arguments):
        return self.daemon.ask(command, **arguments)

    def refused(self, kind, command, **arguments):
        with self.assertRaises(QmpError) as caught:
            self.ask(command, **arguments)
        self.assertEqual(caught.exception.kind, kind)
        self.assertNotIn("\n", caught.exception.text)
        return caught.exception.text

    def capture(self):
        """An uplink's device that plays one frame in, from LEARNED."""
        path = self.work / "in.pcap"
        pcap.write(path, [pcap.frame("ff:ff:ff:ff:ff:ff", LEARNED, 0, 100)])
        return f"net_pcap0,rx_pcap={path},tx_pcap={self.work / 'out.pcap'}"

    def addresses(self):
        return {each["mac"]: each for each in self.ask("query-addresses")}


class Commands(ControlTest):
    def test_all_are_here(self):
        """A command that is new needs a line here, and a test."""
        self.assertEqual({each["name"] for each in self.ask("query-commands")}, {
            "query-commands", "query-version", "query-status", "query-ports", "query-disks",
            "query-uplinks", "query-sessions", "query-reactors", "query-counters", "query-all",
            "query-metrics", "query-addresses", "port-add", "port-remove", "port-flush",
            "move-queue",
            "disk-add", "disk-remove", "disk-resize", "uplink-add", "uplink-remove", "quit",
            "query-companions", "rng-add", "rng-remove", "console-add", "console-remove",
            "console-port-add", "console-port-remove", "balloon-add", "balloon-remove",
            "balloon-resize", "mem-add", "mem-remove", "mem-resize", "query-pfs", "pf-apply",
            "query-mirrors", "mirror-add", "mirror-remove", "function-lease", "function-return"})

    def test_arguments_that_are_not_wanted(self):
        for each in self.ask("query-commands"):
            with self.subTest(each["name"]):
                self.refused("GenericError", each["name"], colour="red")
        self.assertEqual(self.ask("query-status")["ports"], 1)

    def test_query_version(self):
        version = self.ask("query-version")
        numbers = version["qemu"]
        text = f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}"
        self.assertEqual(version["package"], f"millrace {text}")
        with self.daemon.qmp() as qmp:
            self.assertEqual(qmp.greeting["QMP"]["version"], version)

    def test_query_status(self):
        status = self.ask("query-status")
        self.assertEqual(
            {key: status[key] for key in ("state", "pid", "ports", "disks", "uplinks",
                                          "connected")},
            {"state": "running", "pid": self.daemon.process.pid, "ports": 1, "disks": 1,
             "uplinks": 0, "connected": 0})
        self.assertEqual(status["reactors"], len(self.ask("query-reactors")))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.port)
            wait_for("one to be connected", lambda: self.ask("query-status")["connected"] == 1)
        wait_for("it to be gone", lambda: self.ask("query-status")["connected"] == 0)
        self.assertGreater(self.ask("query-status")["uptime_s"], status["uptime_s"])

    def test_query_reactors(self):
        first = self.ask("query-reactors")
        time.sleep(0.2)
        second = self.ask("query-reactors")
        self.assertEqual([each["index"] for each in first], list(range(len(first))))
        for before, after in zip(first, second):
            self.assertIn(before["core"], os.sched_getaffinity(0))
            self.assertEqual(before["mode"], "adaptive")
            passed = (after["cycles"] - before["cycles"]) / after["cycles_per_second"]
            self.assertGreaterEqual(passed, 0.2)
            self.assertLessEqual(after["busy_cycles"], after["cycles"])
            self.assertLessEqual(after["busy_rounds"], after["rounds"])

    def test_query_metrics(self):
        """Every line is one of Prometheus' text, and every counter of query-counters is there."""
        lines = self.ask("query-metrics").splitlines()
        samples = {}
        for line in lines:
            if line.startswith("#"):
                self.assertRegex(line, r"^# TYPE millrace_\w+ (counter|gauge|summary)$")
                continue
            found = re.fullmatch(r'(millrace_\w+)(\{\w+="[^"]*"(?:,\w+="[^"]*")*\})? (\S+)', line)
            self.assertIsNotNone(found, line)
            samples[found.group(1) + (found.group(2) or "")] = float(found.group(3))
        counters = self.ask("query-counters")
        for name in counters["ports"]["web0"]:
            self.assertIn(f'millrace_port_{name}_total{{port="web0"}}', samples)
        for name in counters["disks"]["web0-root"]:
            suffix = "" if name == "in_flight" else "_total"
            self.assertIn(f'millrace_disk_{name}{suffix}{{disk="web0-root"}}', samples)
        self.assertEqual(samples['millrace_disk_bytes{disk="web0-root"}'], 16 * MIB)
        self.assertEqual(samples['millrace_port_connected{port="web0"}'], 0)

    def test_query_all(self):
        """The lists of the single queries, in one answer."""
        everything = self.ask("query-all")
        self.assertEqual(set(everything), {"time_ns", "status", "ports", "disks", "companions",
                                           "uplinks", "mirrors", "reactors"})
        for key in ("ports", "disks", "companions", "uplinks", "mirrors"):
            self.assertEqual(everything[key], self.ask(f"query-{key}"))

    def test_uplinks_and_addresses(self):
        """An uplink comes, is listed, teaches an address, is flushed, and goes."""
        self.assertEqual(self.ask("query-uplinks"), [])
        self.ask("uplink-add", name="out", device=self.capture(), isolated=True)
        (uplink,) = self.ask("query-uplinks")
        self.assertEqual((uplink["name"], uplink["state"], uplink["link_up"], uplink["isolated"],
                          uplink["driver"]), ("out", "running", True, True, "net_pcap"))
        self.assertEqual(uplink["offloads"], {
            "checksum": "software", "tso": "software", "vlan_insert": "software",
            "vlan_strip": "software", "vlan_filter": "none", "checksum_check": "none"})
        wait_for("the address", lambda: LEARNED in self.addresses())
        found = self.addresses()
        self.assertEqual((found[LEARNED]["port"], found[LEARNED]["static"], found[LEARNED]["vlan"]),
                         ("out", False, 0))
        self.assertEqual((found[MAC]["port"], found[MAC]["static"]), ("web0", True))
        self.ask("port-flush", name="web0")
        self.assertIn(LEARNED, self.addresses())
        self.ask("port-flush", name="out")
        self.assertEqual(set(self.addresses()), {MAC})
        self.refused("GenericError", "uplink-add", name="out", device="net_null0")
        self.refused("GenericError", "uplink-add", name="web0", device="net_null0")
        self.ask("uplink-add", name="null", device="net_null0")
        self.assertEqual(len(self.ask("query-uplinks")), 2)
        for name in ("out", "null"):
            self.ask("uplink-remove", name=name)
        self.assertEqual(self.ask("query-uplinks"), [])
        self.refused("DeviceNotFound", "uplink-remove", name="out")
        self.ask("uplink-add", name="out", device=self.capture())  # the same once more
        wait_for("the address again", lambda: LEARNED in self.addresses())
        self.ask("port-flush")
        self.assertEqual(set(self.addresses()), {MAC})
        self.refused("DeviceNotFound", "port-flush", name="nobody")

    def test_ports_and_disks(self):
        """They come with their keys, and names and sockets stay unique."""
        self.ask("port-add", name="db0", socket=self.daemon.socket("db0"), trunk=[10, 20],
                 queues=2)
        port = next(each for each in self.ask("query-ports") if each["name"] == "db0")
        self.assertEqual((port["trunk"], port["queues"], port["state"]), ([10, 20], 2, "waiting"))
        self.assertIn("db0", self.refused("GenericError", "port-add", name="db0",
                                          socket=self.daemon.socket("other")))
        self.assertIn(self.port, self.refused("GenericError", "disk-add", name="x",
                                              socket=self.port, backend="null", size="1MiB"))
        self.refused("GenericError", "disk-add", name="x", socket=self.daemon.socket("x"),
                     path="/none/such")
        self.assertFalse(os.path.exists(self.daemon.socket("x")))
        self.ask("port-remove", name="db0")
        self.refused("DeviceNotFound", "port-remove", name="db0")
        self.refused("DeviceNotFound", "disk-remove", name="x")
        self.assertEqual(len(self.ask("query-sessions")), 2)

    def test_companions(self):
        """Entropy, a console with ports, a balloon and memory come with their keys, and go."""
        for kind in ("rng", "console", "balloon", "mem"):
            self.ask(f"{kind}-add", name=f"a-{kind}", socket=self.daemon.socket(kind))
            self.refused("GenericError", f"{kind}-add", name=f"a-{kind}",
                         socket=self.daemon.socket("other"))
            self.refused("GenericError", f"{kind}-add", name="x", socket=self.port)
            self.refused("DeviceNotFound", f"{kind}-remove", name="nobody")
        listed = {each["name"]: each for each in self.ask("query-companions")}
        self.assertEqual({name: each["kind"] for name, each in listed.items()},
                         {"a-rng": "rng", "a-console": "console", "a-balloon": "balloon",
                          "a-mem": "mem"})
        agent = self.daemon.socket("agent")
        self.ask("console-port-add", console="a-console", name="agent", socket=agent)
        self.refused("GenericError", "console-port-add", console="a-console", name="agent",
                     socket=self.daemon.socket("again"))
        self.refused("DeviceNotFound", "console-port-add", console="nobody", name="agent",
                     socket=self.daemon.socket("again"))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(agent)
        self.ask("console-port-remove", console="a-console", name="agent")
        self.assertFalse(os.path.exists(agent))
        self.refused("DeviceNotFound", "console-port-remove", console="a-console", name="agent")
        self.ask("balloon-resize", name="a-balloon", size="64MiB")
        self.refused("GenericError", "balloon-resize", name="a-balloon", size="much")
        self.refused("DeviceNotFound", "balloon-resize", name="nobody", size="1MiB")
        self.assertEqual(self.ask("mem-resize", name="a-mem", size="64MiB"),
                         {"name": "a-mem", "bytes": 64 * MIB})
        listed = {each["name"]: each for each in self.ask("query-companions")}
        self.assertEqual(listed["a-mem"]["counters"]["requested_bytes"], 64 * MIB)
        self.assertIn("give a multiple of 2",
                      self.refused("GenericError", "mem-resize", name="a-mem", size="1MiB"))
        self.refused("GenericError", "mem-resize", name="a-mem")
        self.refused("DeviceNotFound", "mem-resize", name="a-balloon", size="2MiB")
        for kind in ("rng", "console", "balloon", "mem"):
            self.ask(f"{kind}-remove", name=f"a-{kind}")
            self.assertFalse(os.path.exists(self.daemon.socket(kind)))
        self.assertEqual(self.ask("query-companions"), [])

    def test_disk_resize(self):
        """To a size, and to what the file has by now."""
        self.assertEqual(self.ask("disk-resize", name="web0-root", size="32MiB"),
                         {"name": "web0-root", "bytes": 32 * MIB})
        self.assertEqual(os.path.getsize(self.image), 32 * MIB)
        os.truncate(self.image, 48 * MIB)
        self.assertEqual(self.ask("disk-resize", name="web0-root"),
                         {"name": "web0-root", "bytes": 48 * MIB})
        self.assertEqual(self.ask("query-disks")[0]["bytes"], 48 * MIB)
        self.refused("GenericError", "disk-resize", name="web0-root", size=1000)
        self.refused("DeviceNotFound", "disk-resize", name="nobody", size="1MiB")


class Events(ControlTest):
    def listen(self, count, *options):
        """millctl events, once it is listening: its output so far is one event of ours."""
        log = self.work / f"events-{count}.log"
        child = self.use(Child([settings.program("millctl"), "--socket", self.daemon.control,
                                *options, "events", "--count", count], log))

        def heard():
            self.ask("port-add", name="probe", socket=self.daemon.socket("probe"))
            self.ask("port-remove", name="probe")
            return self.lines(log)
        wait_for("the first event", heard)
        wait_for("the last of them", lambda: self.lines(log)[-1].startswith("PORT_REMOVED"))
        return child, log, len(self.lines(log))

    def lines(self, log):
        """The events of a log, their times taken off."""
        with open(log) as file:
            lines = file.read().splitlines()
        for line in lines:
            self.assertRegex(line, r"^\d+\.\d{6} [A-Z_]+ \{.*\}$")
        return [line.split(" ", 1)[1] for line in lines]

    def test_as_millctl_tells_them(self):
        child, log, heard = self.listen(100)
        self.ask("port-add", name="db0", socket=self.daemon.socket("db0"))
        self.ask("port-remove", name="db0")
        self.ask("disk-add", name="d", socket=self.daemon.socket("d"), backend="null", size="1GiB")
        self.ask("disk-resize", name="d", size="2GiB")
        self.ask("disk-remove", name="d")
        self.ask("uplink-add", name="u", device="net_null0")
        self.ask("uplink-remove", name="u")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.port)
            wait_for("it to be connected", lambda: self.ask("query-status")["connected"])
        wait_for("it to be gone", lambda: not self.ask("query-status")["connected"])
        self.ask("quit")
        self.assertEqual(child.wait(20), 0)  # the last event ends it
        self.assertEqual(self.daemon.process.wait(20), 0)
        events = [line.split(" ", 1) for line in self.lines(log)[heard:]]
        self.assertEqual([name for name, _ in events], [
            "PORT_ADDED", "PORT_REMOVED", "DISK_ADDED", "DISK_RESIZED", "DISK_REMOVED",
            "UPLINK_ADDED", "UPLINK_REMOVED", "SESSION_CONNECTED", "SESSION_DISCONNECTED",
            "SHUTDOWN"])
        data = [json.loads(text) for _, text in events]
        self.assertEqual(data[:7], [
            {"name": "db0"}, {"name": "db0"}, {"name": "d"}, {"name": "d", "bytes": 2 << 30},
            {"name": "d"}, {"name": "u"}, {"name": "u"}])
        self.assertEqual((data[7]["kind"], data[7]["name"]), ("port", "web0"))
        self.assertIn(f"pid {os.getpid()} ", data[7]["peer"])
        self.assertEqual((data[8]["kind"], data[8]["name"]), ("port", "web0"))
        self.assertTrue(data[9]["reason"])
        self.daemon.stopped = True

    def test_count_and_json(self):
        child = self.use(Child([settings.program("millctl"), "--socket", self.daemon.control,
                                "--json", "events", "--count", "3"], self.work / "three.log"))

        def ended():
            self.ask("disk-resize", name="web0-root")
            return not child.running()
        wait_for("three events", ended, step=0.1)
        self.assertEqual(child.wait(), 0)
        with open(self.work / "three.log") as file:
            events = [json.loads(line) for line in file]
        self.assertEqual([each["event"] for each in events], ["DISK_RESIZED"] * 3)
        now = time.time()
        for each in events:
            self.assertAlmostEqual(each["timestamp"]["seconds"], now, delta=60)
            self.assertEqual(each["data"], {"name": "web0-root", "bytes": 16 * MIB})

    def test_queue_fault(self):
        machine = self.use(QtestQemu(self.work).blk(self.disk).start())
        device = VirtioPci(machine, machine.virtio_devices()[0])
        device.negotiate(0)
        ring = device.queue(0)
        device.start()
        self.assertEqual(BlkDriver(device, ring).write(0, bytes(512)), BlkDriver.OK)
        with self.daemon.qmp() as qmp:
            ring.add([(1 << 50, 16, False), (1 << 50, 1, True)])
            ring.publish()
            data = qmp.wait_event("QUEUE_FAULT")["data"]
        self.assertEqual((data["kind"], data["name"], data["queue"]), ("disk", "web0-root", 0))
        (queue,) = self.ask("query-disks")[0]["virtqueues"]
        self.assertEqual(queue["fault"], data["fault"])
        self.assertIn("fault", self.daemon.millctl("status").stdout)


class Words(ControlTest):
    """millctl's sub-commands against a daemon, as text and as JSON."""

    def millctl(self, *words):
        done = self.daemon.millctl(*words, check=False)
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def json(self, *words):
        return self.daemon.millctl_json(*words)

    def test_lists(self):
        self.ask("uplink-add", name="out", device=self.capture())
        wait_for("the address", lambda: LEARNED in self.addresses())
        self.ask("port-add", name="db0", socket=self.daemon.socket("db0"))
        for kind, rows in (("ports", ["db0", "web0"]), ("disks", ["web0-root"]),
                           ("uplinks", ["out"]), ("sessions", ["db0", "web0", "web0-root"])):
            with self.subTest(kind):
                title, *lines = self.millctl(kind).splitlines()
                self.assertTrue(title.startswith("NAME "), title)
                self.assertEqual([line.split()[0] for line in lines], rows)
                self.assertEqual([each["name"] for each in self.json(kind)], rows)
        self.assertEqual(self.millctl("reactors").split()[0], "INDEX")
        self.assertEqual([each["index"] for each in self.json("reactors")],
                         [int(line.split()[0])
                          for line in self.millctl("reactors").splitlines()[1:]])
        addresses = self.millctl("addresses")
        self.assertRegex(addresses, rf"{LEARNED} +0 +out +[\d.]+ +no\n")
        self.assertRegex(addresses, rf"{MAC} +0 +web0 +[\d.]+ +yes\n")
        self.assertEqual({each["mac"] for each in self.json("addresses")}, {MAC, LEARNED})
        self.assertRegex(self.millctl("counters"), r"uplinks +out +tx_packets +1\n")
        self.assertEqual(self.json("counters")["uplinks"]["out"]["tx_packets"], 1)
        self.assertIn('millrace_uplink_tx_packets_total{uplink="out"} 1\n', self.millctl("metrics"))
        self.assertIn('millrace_uplink_tx_packets_total{uplink="out"} 1\n', self.json("metrics"))
        self.millctl("flush", "out")
        self.assertEqual([each["mac"] for each in self.json("addresses")], [MAC])
        self.millctl("flush")

    def test_status(self):
        """Two samples: the second with the rates between them."""
        status = self.json("status", "--interval", "0.1")
        self.assertLess(0.09, status["rates"]["interval_s"])
        self.assertEqual(set(status["rates"]["ports"]), {"web0"})
        self.assertEqual(set(status["rates"]["disks"]), {"web0-root"})
        log = self.work / "status.log"
        child = self.use(Child([settings.program("millctl"), "--socket", self.daemon.control,
                                "--json", "status", "--watch", "--interval", "0.1"], log))

        def three():
            with open(log) as file:
                return [json.loads(line) for line in file if line.endswith("\n")][2:]
        found = wait_for("three objects", three)
        self.assertIn("rates", found[0])
        self.daemon.stop()
        self.assertEqual(child.wait(20), 3)

    def test_changes(self):
        """Each is silent as text, and an object as JSON."""
        self.assertEqual(self.millctl("add", "port", "name=7", "vlan=10",
                                      f"socket={self.daemon.socket('7')}"), "")
        self.assertEqual(self.json("add", "disk", "name=d", "backend=ram", "size=1MiB",
                                   f"socket={self.daemon.socket('d')}"), {})
        self.assertEqual(self.json("add", "uplink", "name=u", "device=net_null0", "trunk=10,20"),
                         {})
        self.assertEqual(self.json("uplinks")[0]["trunk"], [10, 20])
        self.assertEqual(self.millctl("resize", "d", "2MiB"), "")
        self.assertEqual(self.json("resize", "web0-root"),
                         {"name": "web0-root", "bytes": 16 * MIB})
        self.assertEqual(self.json("flush", "7"), {})
        self.assertEqual(self.json("add", "mirror", "name=m", "from=7,web0", "to=u",
                                   "direction=in"), {})
        (mirror,) = self.json("mirrors")
        self.assertEqual(mirror, {"name": "m", "from": ["7", "web0"], "to": "u",
                                  "direction": "in", "counters": mirror["counters"]})
        self.assertRegex(self.millctl("mirrors"), r"m +7,web0 +u +in +\d+ +\d+ +\d+\n")
        self.assertIn('millrace_mirror_frames_total{mirror="m"}', self.millctl("metrics"))
        for kind, name in (("mirror", "m"), ("port", "7"), ("disk", "d"), ("uplink", "u")):
            self.assertEqual(self.json("remove", kind, name), {})
        self.assertEqual(self.ask("query-status")["ports"], 1)

    def test_raw(self):
        request = '{"execute": "query-version", "id": 7}'
        answer = json.loads(self.millctl("raw", request))
        self.assertEqual(answer, {"return": self.ask("query-version"), "id": 7})
        self.assertEqual(self.json("raw", request), answer)
        done = self.daemon.millctl("raw", '{"execute": "nonsense"}', check=False)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(json.loads(done.stdout)["error"]["class"], "CommandNotFound")

    def test_quit(self):
        self.assertEqual(self.json("quit"), {})
        self.assertEqual(self.daemon.process.wait(20), 0)
        self.daemon.stopped = True


if __name__ == "__main__":
    main()
