"""A foreign client: dpdk-testpmd with two NICs of DPDK's own virtio driver (virtio-user), both on
one core. Frames that a capture repeats without end go out of the first, what comes in at the second
is counted and dropped."""

import contextlib
import dataclasses
import os
import re
import shutil
import time

from tests.rig import pcap
from tests.rig.process import RigError, wait_for
from tests.rig.testpmd import Testpmd

from .lines import PERCENTILES, WARM_UP

RING = 1024  # of each queue, as our own client's
FROM, TO = "02:0e:00:00:00:01", "02:0e:00:00:00:02"
MEET_MOST = 15  # seconds until the back-end has both NICs at work
VERIFIED = 800  # frames of the twin: fewer than a ring holds, so none may be lost


def need_testpmd():
    if not shutil.which("dpdk-testpmd"):
        raise RigError("there is no dpdk-testpmd: apt-get install dpdk-dev")


class VirtioUsers(Testpmd):
    """The process. `sockets` are where the NICs' back-ends are, `listen`: where they come to; huge
    pages for its memory are the caller's care. Its shell has the core of the NICs, too, so that the
    back-end's is the back-end's alone."""

    def __init__(self, work, name, sockets, core, source, sink, listen=False, packed=False):
        super().__init__(work, name, [])
        more = ",server=1" * listen + ",packed_vq=1" * packed
        nics = [f"net_virtio_user{number},path={socket},mac={mac},queue_size={RING}{more}"
                for number, (socket, mac) in enumerate(zip(sockets, (FROM, TO)))]
        self.devices = [source, *nics, sink]
        self.command = [
            "dpdk-testpmd", "--lcores", f"0@{core},1@{core}", "--no-pci", "--in-memory",
            "--single-file-segments", "--socket-mem=64", "--no-telemetry",
            *(word for device in self.devices for word in ("--vdev", device)),
            "--", "-i", "--nb-cores=1", f"--rxd={RING}", f"--txd={RING}", "--no-flush-rx",
            "--no-mlockall", "--total-num-mbufs=16384"]

    def ready(self, timeout=60):
        super().ready(timeout)
        self.settle()
        numbers = wait_for(f"the ports of {self.name}", self._numbers, 20, 0.2)
        self.ports = [numbers[device.split(",")[0]] for device in self.devices]
        self._meet()
        # The first of them is forwarded to the second, the third to the fourth.
        self(f"set portlist {','.join(map(str, self.ports))}")
        self("set fwd io")
        return self

    def _numbers(self):
        """Of the ports, by their devices' names: the order of the numbers is the bus's own. None
        where the shell has not told of all."""
        told = "".join(self(f"show port info {number}") for number in range(len(self.devices)))
        found = re.findall(r"Infos for port (\d+)\s.*?Device name: (\S+)", told, re.DOTALL)
        numbers = {name: int(number) for number, name in found}
        return numbers if len(numbers) == len(self.devices) else None

    def _meet(self):
        """Sends a few frames from each NIC until each has some, which takes until the back-end has
        both at work. The switch has learnt where both are then."""
        nics = self.ports[1:3]
        self(f"set portlist {nics[0]},{nics[1]}")
        self("set fwd rxonly")

        def met():
            self("start tx_first 1")
            time.sleep(0.05)
            self("stop")
            return all(self.counts(nic)["RX-packets"] for nic in nics)
        wait_for(f"frames between the NICs of {self.name}", met, MEET_MOST)

    def typed(self):
        """What to type for the same."""
        ports = ",".join(map(str, self.ports))
        return f"{' '.join(self.command)} # at its prompt: set portlist {ports}; start"

    def received(self):
        """Frames that came in at the second NIC so far."""
        return self.counts(self.ports[2])["RX-packets"]


@dataclasses.dataclass
class TestpmdSide:
    """A contestant with ports "a" and "b", and this client that drives it; a context manager. The
    client is started by the first run and stays until the end."""

    contestant: object
    size: int
    packed: bool = False
    client: object = None

    @property
    def name(self):
        return self.contestant.name

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.client:
            self.client.kill()
            self.client = None

    def once(self, bench):
        """One run. Cycles are those of the contestant from before it to after it, for each frame
        that arrived meanwhile; the rate is that of the time after the warm-up."""
        self.client = self.client or self._start(bench)
        busy, already = self.contestant.busy()[0], self.client.received()
        self.client("start")
        time.sleep(WARM_UP)
        began, first = time.monotonic(), self.client.received()
        time.sleep(bench.seconds)
        ended, last = time.monotonic(), self.client.received()
        self.client("stop")
        arrived = self.client.received() - already
        if last == first:
            raise RigError(f"{self.name}: no frame of dpdk-testpmd's arrived")
        return {"per_second": (last - first) / (ended - began), "all_operations": arrived,
                "cycles": (self.contestant.busy()[0] - busy) / arrived,
                "latency_us": dict.fromkeys(PERCENTILES), "command": self.client.typed()}

    def verify(self, bench):
        """The same NICs with frames whose every byte is known, captured where they arrive."""
        sent = [pcap.frame(TO, FROM, number, self.size) for number in range(VERIFIED)]
        source, sink = (bench.work / f"twin-{end}.pcap" for end in ("in", "out"))
        pcap.write(source, sent)
        with self._client(bench, f"net_pcap0,rx_pcap={source}",
                          f"net_pcap1,tx_pcap={sink}") as client:
            client("set fwd io retry")
            client("start")
            with contextlib.suppress(RigError):  # what is missing is told below
                wait_for("frames", lambda: client.received() >= VERIFIED, 10)
            client.stop_and_quit()
        seen = [frame for frame in pcap.read(sink) if frame[:6] == pcap.mac(TO)]
        if seen != sent:
            right = sum(frame in sent for frame in seen)
            raise RigError(f"{self.name}: of {VERIFIED} frames of dpdk-testpmd's {len(seen)} "
                           f"arrived, {right} of them as they were sent")
        return f"{len(seen)} frames"

    def _start(self, bench):
        # Another number, the same flow: a switch that keeps flows has the least to look up.
        path = bench.work / f"frames{self.size}.pcap"
        pcap.write(path, [pcap.frame(TO, FROM, 512 * number, self.size) for number in range(64)])
        return self._client(bench, f"net_pcap0,rx_pcap={path},infinite_rx=1",
                            "net_null0,no-rx=1").start()

    def _client(self, bench, source, sink):
        listen = "--listen" in self.contestant.options
        sockets = [self.contestant.socket(port) for port in ("a", "b")]
        if listen:  # those of a client that was here before
            for socket in filter(os.path.exists, sockets):
                os.unlink(socket)
        return VirtioUsers(bench.work, f"dpdk-testpmd at {self.name}", sockets, bench.client_core,
                           source, sink, listen, self.packed)
