"""Queues go from reactor to reactor while they are in use: nobody notices but millctl."""

import hashlib
import json
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import settings
from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.process import Child, wait_for
from tests.rig.qmp import QmpError
from tests.rig.qtest import BlkDriver, QtestQemu, VirtioPci

CORES = sorted(os.sched_getaffinity(0))[:2]
MOVES = 50
KILLS = 12
BLOCK = 4096


@unittest.skipIf(len(CORES) < 2, "two reactors need two cores")
class Reactors(SystemTest):
    def daemon(self, **reactors):
        return Daemon(self.work, cores=CORES, mode="adaptive", **reactors)

    def bench(self, name, *words):
        """A client of the daemon, at work until it has measured long enough."""
        return self.use(Child([settings.program("millrace-bench"), *words, "--json"],
                              self.work / f"{name}.log", name=name))

    def result(self, client, timeout=120):
        """What a client has to say once it ended."""
        self.assertEqual(client.wait(timeout), 0)
        with open(client.log) as file:
            return json.loads(file.read())

    def queue(self, daemon, kind, name, index):
        """A started queue as the lists have it; None: it is not started."""
        unit = next(each for each in daemon.ask(f"query-{kind}s") if each["name"] == name)
        return next((each for each in unit["virtqueues"] if each["index"] == index), None)

    def owner(self, daemon, kind, name, index):
        return self.queue(daemon, kind, name, index)["reactor"]

    def ask_for_moves(self, daemon, *queues):
        """Asks for forty moves to and fro, and does not wait. Answers the connection."""
        qmp = self.use(daemon.qmp())
        requests = [{"execute": "move-queue",
                     "arguments": {"name": name, "queue": queue, "reactor": turn % 2}}
                    for turn in range(40) for name, queue in queues]
        qmp.socket.sendall("".join(json.dumps(each) + "\n" for each in requests).encode())
        return qmp

    def refused(self, daemon, kind, piece, **arguments):
        with self.assertRaises(QmpError) as refusal:
            daemon.ask("move-queue", **arguments)
        self.assertEqual(refusal.exception.kind, kind)
        self.assertIn(piece, refusal.exception.text)


class Moves(Reactors):
    def frames(self, *options):
        daemon = self.daemon(balance=False)
        sockets = [daemon.port(name) for name in ("a", "b")]
        self.use(daemon.start())
        client = self.bench("net", "net", *sockets, "--check-every", "1", "--seconds", "8",
                            *options)
        wait_for("frames", lambda: daemon.ask("query-counters")["ports"]["b"]["rx_packets"] > 0)
        seen = set()

        def without_queue():
            return daemon.ask("query-counters")["ports"]["b"]["drop_no_queue"]
        early = without_queue()
        for move in range(MOVES):
            name, queue = (("a", 1), ("b", 0))[move % 2]
            to = 1 - self.owner(daemon, "port", name, queue)
            before = daemon.ask("query-counters")["ports"]["b"]["rx_packets"]
            daemon.ask("move-queue", name=name, queue=queue, reactor=to)
            self.assertEqual(self.owner(daemon, "port", name, queue), to)
            seen.add((name, to))
            wait_for("frames after the move", lambda: not client.running() or
                     daemon.ask("query-counters")["ports"]["b"]["rx_packets"] > before)
        late = without_queue()
        self.assertTrue(client.running(), "the frames ended before the moves")
        self.assertEqual(late, early, "frames found the receiver between two reactors")
        self.assertEqual(seen, {("a", 0), ("a", 1), ("b", 0), ("b", 1)})
        result = self.result(client)
        self.assertEqual(result["wrong"], 0)
        ports = daemon.ask("query-counters")["ports"]
        drops = {key: count for key, count in ports["b"].items()
                 if key.startswith("drop_") and count}
        # Nothing is lost that is not counted; what is counted is a receiver that was too slow.
        self.assertEqual(ports["a"]["tx_packets"], ports["b"]["rx_packets"] + sum(drops.values()))
        self.assertLessEqual(set(drops), {"drop_ring_full", "drop_link_full", "drop_no_queue"})
        # The few by which the switch learns where the receiver is may find the way back full, too.
        lost = {key for key, n in ports["a"].items() if key.startswith("drop_") and n}
        self.assertLessEqual(lost, {"drop_link_full"})
        self.report(f"{ports['a']['tx_packets']} frames, {MOVES} moves, dropped: {drops or 0}")
        return drops

    def test_frames(self):
        """Fifty moves under frames as fast as they go: each arrives whole, or is counted."""
        self.frames()

    def test_frames_that_the_receiver_can_take_are_all_delivered(self):
        """At a rate that leaves room, no move costs a frame."""
        drops = self.frames("--rate", "2000", "--burst", "4", "--packed")
        self.assertNotIn("drop_link_full", drops)

    def test_requests(self):
        """A disk's requests are answered, with the data that was written, wherever its queue is."""
        daemon = self.daemon(balance=False)
        disk = daemon.disk("disk", path=daemon.image("disk", 64))
        self.use(daemon.start())
        client = self.bench("blk", "blk", disk, "--verify", "--write", "50", "--seconds", "8")
        wait_for("the driver", lambda: self.queue(daemon, "disk", "disk", 0))

        def requests():
            counters = daemon.ask("query-counters")["disks"]["disk"]
            return counters["read_requests"] + counters["write_requests"]
        for _ in range(MOVES):
            to, before = 1 - self.owner(daemon, "disk", "disk", 0), requests()
            daemon.ask("move-queue", name="disk", queue=0, reactor=to)
            wait_for("requests after the move",
                     lambda: not client.running() or requests() > before)
        self.assertTrue(client.running(), "the requests ended before the moves")
        result = self.result(client)
        self.assertEqual(result["verified_blocks"], (64 << 20) // 4096)
        counters = daemon.ask("query-counters")["disks"]["disk"]
        self.assertEqual((counters["io_errors"], counters["in_flight"]), (0, 0))
        self.report(f"{result['operations']} requests, {MOVES} moves")

    def test_a_session_that_ends_while_its_queues_move(self):
        """Its queues stop where they are, and the next driver starts them anew."""
        daemon = self.daemon(balance=False)
        sockets = [daemon.port(name) for name in ("a", "b")]
        self.use(daemon.start())
        for turn in range(3):
            client = self.bench(f"net{turn}", "net", *sockets, "--seconds", "60")
            wait_for("the queues", lambda: self.queue(daemon, "port", "a", 1) and
                     self.queue(daemon, "port", "b", 0))
            with daemon.qmp() as one:
                for move in range(10):
                    one("move-queue", name="b", queue=0, reactor=move % 2)
                client.kill()
                for move in range(10):
                    one("move-queue", name="a", queue=1, reactor=move % 2)
            wait_for("the sessions to end", lambda: daemon.ask("query-status")["connected"] == 0)
            self.assertIsNone(self.queue(daemon, "port", "b", 0))


class Ends(Reactors):
    """What ends the daemon does not care what is on its way from one reactor to another."""

    def test_quits_with_moves_under_way(self):
        for turn in range(5):
            daemon = self.daemon(balance=False)
            ports = [daemon.port(name) for name in ("a", "b")]
            disk = daemon.disk("disk", path=daemon.image("disk", 8))
            self.use(daemon.start())
            self.bench(f"net{turn}", "net", *ports, "--seconds", "600")
            self.bench(f"blk{turn}", "blk", disk, "--seconds", "600")
            wait_for("the queues", lambda: self.queue(daemon, "port", "b", 0) and
                     self.queue(daemon, "disk", "disk", 0))
            self.ask_for_moves(daemon, ("a", 1), ("b", 0), ("disk", 0))
            daemon.stop()  # 0, or it fails

    def test_killed_with_moves_under_way(self):
        """No write is lost or refused, and its successor finds each queue where it was left."""
        daemon = self.daemon(balance=False)
        path = daemon.disk("disk", path=daemon.image("disk", 64))
        daemon.start()
        self.addCleanup(lambda: daemon.process.kill())
        machine = self.use(QtestQemu(self.work).blk(path, 1, "").start())
        device = VirtioPci(machine, machine.virtio_devices()[0])
        device.negotiate(1 << 9)
        ring = device.queue(0)
        device.start()
        blk = BlkDriver(device, ring)
        expected, cut_off = {}, 0
        for turn in range(KILLS):
            wait_for("the queue", lambda: self.queue(daemon, "disk", "disk", 0))
            data = {number: hashlib.sha256(f"{turn}.{number}".encode()).digest() * (BLOCK // 32)
                    for number in range(12)}
            flying = [blk.begin(BlkDriver.OUT, number * 8, data[number], publish=False)
                      for number in data]
            qmp = self.ask_for_moves(daemon, ("disk", 0))
            ring.publish()
            for _ in range(turn):
                qmp.file.readline()
            daemon.kill9()
            cut_off += 40 - turn - self.answers_left(qmp)
            daemon.start()
            for number, request in enumerate(flying):
                status, _, used = blk.finish(request, 60)
                self.assertEqual((status, used), (BlkDriver.OK, 1))
            expected.update(data)
        self.assertGreater(cut_off, 0, "every move was done before the kill")
        for number, data in expected.items():
            self.assertEqual(blk.read(number * 8, BLOCK), data, f"block {number}")
        self.report(f"{KILLS} kills, {cut_off} moves cut off")
        daemon.stop()

    def answers_left(self, qmp):
        """How many answers a daemon that is dead had sent."""
        try:
            return sum(b'"return"' in line for line in qmp.file)
        except OSError:
            return 0


class Placement(Reactors):
    def disks(self, **reactors):
        daemon = self.daemon(**reactors)
        sockets = [daemon.disk(name, backend="null", size="1GiB", reactors=[0])
                   for name in ("one", "two")]
        return self.use(daemon.start()), sockets

    def start(self, daemon, sockets):
        clients = [self.bench(f"blk{number}", "blk", path, "--seconds", "600")
                   for number, path in enumerate(sockets)]
        for name in ("one", "two"):
            wait_for("the queue", lambda: self.queue(daemon, "disk", name, 0))
        return clients

    def test_two_busy_queues_come_to_two_reactors(self):
        """Both are pinned to one reactor; the balancer takes one to the other as soon as it may,
        and leaves them there."""
        daemon, sockets = self.disks()
        clients = self.start(daemon, sockets)
        wait_for("the load", lambda: daemon.ask("query-reactors")[0]["load"] >= 0.7, 60, 0.2)
        self.assertEqual([self.owner(daemon, "disk", name, 0) for name in ("one", "two")], [0, 0])
        with daemon.qmp(timeout=300) as qmp:
            for name in ("one", "two"):
                qmp("move-queue", name=name, queue=0, reactor="auto")
            moved = qmp.wait_event("QUEUE_MOVED", 300)["data"]
        self.assertEqual((moved["from"], moved["reactor"], moved["reason"]), (0, 1, "load"))
        owners = sorted(self.owner(daemon, "disk", name, 0) for name in ("one", "two"))
        self.assertEqual(owners, [0, 1])
        listed = [[each["name"] for each in reactor["queues"]]
                  for reactor in daemon.ask("query-reactors")]
        self.assertEqual(sorted(sum(listed, [])), ["one", "two"])
        self.assertTrue(all(client.running() for client in clients))

    def test_nothing_moves_by_itself_where_that_is_switched_off(self):
        daemon, sockets = self.disks(balance=False)
        self.start(daemon, sockets)
        for name in ("one", "two"):
            daemon.ask("move-queue", name=name, queue=0, reactor=None)
        wait_for("the load", lambda: daemon.ask("query-reactors")[0]["load"] >= 0.7, 60, 0.2)
        # The load is measured once a second; as often as a balancer would have needed.
        for _ in range(5):
            rounds = daemon.ask("query-reactors")[0]["load"]
            wait_for("the next measurement",
                     lambda: daemon.ask("query-reactors")[0]["load"] != rounds, 30, 0.1)
        self.assertEqual([self.owner(daemon, "disk", name, 0) for name in ("one", "two")], [0, 0])

    def test_pins(self):
        """The configuration's reactors hold from the start, a command's from then on, for the next
        driver too."""
        daemon = self.daemon()
        daemon.disk("low", backend="null", size="1MiB", reactors=[1])
        ports = [daemon.port(name, queues=2, reactors=[1, 0]) for name in ("a", "b")]
        self.use(daemon.start())
        client = self.bench("first", "net", *ports, "--seconds", "600")
        wait_for("the queue", lambda: self.queue(daemon, "port", "b", 0))
        found = self.queue(daemon, "port", "b", 0)
        self.assertEqual((found["reactor"], found["pinned"]), (1, True))
        daemon.millctl("move", "b", "0", "0")
        self.assertEqual(self.owner(daemon, "port", "b", 0), 0)
        table = daemon.millctl("reactors").stdout.splitlines()
        self.assertRegex(table[0], r"^INDEX +CORE +MODE +LOAD +.*QUEUES$")
        self.assertRegex(table[1], r"\bb/0 \d+% pinned")
        daemon.millctl("move", "b", "0", "auto")
        self.assertFalse(self.queue(daemon, "port", "b", 0)["pinned"])
        daemon.millctl("move", "b", "0", "0")
        client.kill()
        wait_for("the sessions to end", lambda: daemon.ask("query-status")["connected"] == 0)
        self.bench("second", "net", *ports, "--seconds", "600")
        wait_for("the queue", lambda: self.queue(daemon, "port", "b", 0))
        self.assertEqual(self.owner(daemon, "port", "b", 0), 0)

    def test_refusals(self):
        """One line says what is wrong."""
        daemon = self.daemon()
        daemon.port("web0", queues=2)
        self.use(daemon.start())
        self.refused(daemon, "DeviceNotFound", "there is no port, disk or companion nobody",
                     name="nobody", queue=0, reactor=0)
        self.refused(daemon, "GenericError", "web0: queue 4 is not there; give 0 to 3",
                     name="web0", queue=4, reactor=0)
        self.refused(daemon, "GenericError", "web0: reactor 2 is not there; give 0 to 1",
                     name="web0", queue=0, reactor=2)
        self.refused(daemon, "GenericError", "reactor", name="web0", queue=0)
        self.refused(daemon, "GenericError", "reactor", name="web0", queue=0, reactor="fast")
        self.refused(daemon, "GenericError", "queue", name="web0", reactor=0)
        with self.assertRaises(QmpError) as refusal:
            daemon.ask("port-add", name="x", socket=daemon.socket("x"), reactors=[5])
        self.assertIn("port x: reactor 5 is not there; give 0 to 1", str(refusal.exception))


if __name__ == "__main__":
    main()
