"""DPDK's virtio driver (virtio-user) as two guests on one daemon: every frame counted, its
contents checked."""

import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import pcap
from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.process import wait_for
from tests.rig.testpmd import Testpmd

A, B = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
RING = 1024
FRAMES = 800  # fewer than a ring holds, so that none may be lost however late the receiver runs


class Testpmds(SystemTest):
    def pair(self, queues=1, options="", mode="listen"):
        """A daemon with two ports, and the words that make a client of each."""
        daemon = Daemon(self.work, mode="adaptive")
        self.sockets = [daemon.port(name, queues=queues, mode=mode) for name in ("a", "b")]
        server = ",server=1" if mode == "connect" else ""
        self.users = [f"net_virtio_user0,path={path},mac={mac},queues={queues},"
                      f"queue_size={RING}{server}{options}"
                      for path, mac in zip(self.sockets, (A, B))]
        return daemon

    def counters(self, daemon, name):
        return daemon.ask("query-counters")["ports"][name]

    def exchange(self, queues=1, options="", mode="listen"):
        """A plays a capture into its port; B captures what it receives: the same frames."""
        frames = [pcap.frame(B, A, number, 60 + number * 37 % 1455) for number in range(FRAMES)]
        inputs = [self.work / f"in{queue}.pcap" for queue in range(queues)]
        outputs = [self.work / f"out{queue}.pcap" for queue in range(queues)]
        for queue, path in enumerate(inputs):
            pcap.write(path, frames[queue::queues])
        source = "net_pcap0," + ",".join(f"rx_pcap={path}" for path in inputs)
        sink = "net_pcap0," + ",".join(f"tx_pcap={path}" for path in outputs)

        daemon = self.pair(queues, options, mode)
        if mode == "listen":
            self.use(daemon)
        a = Testpmd(self.work, "tpa", [source, self.users[0]], queues)
        b = Testpmd(self.work, "tpb", [sink, self.users[1]], queues)
        for client in (b, a):
            self.use(client.start(wait=mode == "listen"))
        if mode == "connect":
            wait_for("the clients' sockets", lambda: all(map(os.path.exists, self.sockets)))
            self.use(daemon)
            for client in (b, a):
                client.ready()
        ports = {client: self.port_of(client) for client in (a, b)}
        b("start")
        a("set fwd io retry")
        a("start")
        wait_for("the frames", lambda: b.counts(ports[b]).get("RX-packets", 0) >= FRAMES, 20, 0.2)
        self.assertEqual(a.counts(ports[a])["TX-packets"], FRAMES)
        self.assertEqual(b.counts(ports[b])["RX-packets"], FRAMES)
        mine, theirs = self.counters(daemon, "a"), self.counters(daemon, "b")
        self.assertEqual((mine["tx_packets"], theirs["rx_packets"]), (FRAMES, FRAMES))
        size = sum(map(len, frames))
        self.assertEqual((mine["tx_bytes"], theirs["rx_bytes"]), (size, size))
        self.assertEqual(sum(n for key, n in theirs.items() if key.startswith("drop_")), 0)
        a.stop_and_quit()
        b.stop_and_quit()
        captured = [pcap.read(path) for path in outputs]
        if queues == 1:
            self.assertEqual(captured[0], frames)  # in order too
        else:
            self.assertEqual(sorted(sum(captured, [])), sorted(frames))
        return captured

    def port_of(self, client):
        """The number of the virtio port: the bus decides the order."""
        for number in (0, 1):
            if "net_virtio_user" in client(f"show port info {number}"):
                return number
        raise self.failureException("testpmd has no virtio port")


class Contents(Testpmds):
    def test_split(self):
        self.exchange()

    def test_split_without_mergeable(self):
        self.exchange(options=",mrg_rxbuf=0")

    def test_split_in_order(self):
        self.exchange(options=",in_order=1")

    def test_packed(self):
        self.exchange(options=",packed_vq=1")

    def test_packed_in_order(self):
        self.exchange(options=",packed_vq=1,in_order=1")

    def test_packed_in_order_without_mergeable(self):
        self.exchange(options=",packed_vq=1,in_order=1,mrg_rxbuf=0")

    def test_split_4_queue_pairs(self):
        self.exchange(queues=4)

    def test_packed_4_queue_pairs(self):
        self.exchange(queues=4, options=",packed_vq=1")

    def test_server_mode(self):
        self.exchange(mode="connect")

    def test_server_mode_packed(self):
        self.exchange(mode="connect", options=",packed_vq=1")


class Flood(Testpmds):
    """More than the receiver can take: what was sent is what was received plus what was dropped,
    to the frame."""

    def flood(self, queues=1, options=""):
        daemon = self.use(self.pair(queues, options))
        b = self.use(Testpmd(self.work, "tpb", [self.users[1]], queues))
        a = self.use(Testpmd(self.work, "tpa", [self.users[0]], queues))
        b("set fwd rxonly")
        b("start")
        a("set fwd txonly")
        a("start")
        begun = time.monotonic()
        time.sleep(2)
        a("stop")
        seconds = time.monotonic() - begun
        sent = a.counts()["TX-packets"]
        self.assertGreater(sent, 10_000)
        wait_for("the daemon to take all frames",
                 lambda: self.counters(daemon, "a")["tx_packets"] == sent)

        def settled():
            theirs = self.counters(daemon, "b")
            drops = sum(n for key, n in theirs.items() if key.startswith("drop_"))
            return b.counts()["RX-packets"] + drops == sent and theirs["rx_packets"] + drops == sent
        wait_for("all frames received or counted as dropped", settled)
        received = b.counts()["RX-packets"]
        self.assertGreater(received, 10_000)
        self.report(f"{sent / seconds / 1e6:.2f} M frames/s sent, "
                    f"{received / seconds / 1e6:.2f} M/s received")

    def test_split(self):
        self.flood()

    def test_packed(self):
        self.flood(options=",packed_vq=1")

    def test_split_4_queue_pairs(self):
        self.flood(queues=4)

    def test_both_ways(self):
        daemon = self.use(self.pair())
        pair = [self.use(Testpmd(self.work, name, [user]))
                for name, user in zip(("tpa", "tpb"), self.users)]
        for client in pair:
            client("set fwd flowgen")
        for client in pair:
            client("start")
        time.sleep(2)
        for client in pair:
            client("stop")
        sent = [client.counts()["TX-packets"] for client in pair]
        wait_for("the daemon to take all frames", lambda: sent == [
            self.counters(daemon, name)["tx_packets"] for name in ("a", "b")])
        for number, name in ((0, "b"), (1, "a")):
            mine = self.counters(daemon, name)
            self.assertEqual(sent[number], mine["rx_packets"] + sum(
                n for key, n in mine.items() if key.startswith("drop_")), name)
        self.report(f"{sum(sent) / 2e6:.2f} M frames/s sent in all")


if __name__ == "__main__":
    main()
