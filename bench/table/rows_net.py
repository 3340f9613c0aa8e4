"""Rows of frames: N1 to N7."""

import functools
import json

from tests.rig import pcap, settings
from tests.rig.peers import HugePages, NetVhost, OpenVSwitch
from tests.rig.process import run

from .contestants import Millrace
from .kept import HERE, THERE, OutSide
from .lines import Judge, Line, Side

CYCLES = "cycles"
STOCK = ", rings as stock Linux has them"
ADDRESSES_MAX = 1 << 17  # N6's table
HUGE_PAGES = 400  # of 2 MiB, for DPDK's programs


def two_ports(daemon):
    for port in ("a", "b"):
        daemon.port(port)


def frames(contestant, *words, name=""):
    return Side(contestant, ["net", *words], name, ["net", *words, "--check-every", 1])


def against_switch(bench, stack, tso):
    stack.enter_context(HugePages(HUGE_PAGES))
    ours = stack.enter_context(Millrace(bench.work, bench.core, two_ports))
    ours.pause()
    switch = stack.enter_context(OpenVSwitch(bench.work, bench.core, tso=tso))
    switch.pause()
    return ours, switch


def limit(bench, *words):
    """What `millrace-bench limit` finds on the two cores of the comparison."""
    return json.loads(run([
        settings.program("millrace-bench"), "limit", *map(str, words), "--json",
        "--core", bench.client_core, "--other", bench.core, "--seconds", 0.5,
        "--warm-up", 0.2], timeout=30).stdout)


def bare_switch(bench, size):
    """What the processor charges for moving the frames, with no switch around it."""
    def note():
        seen = limit(bench, "switch", "--size", size)
        return f"the copy from ring to ring alone: {seen['cycles']:.0f} cycles"
    return note


def small_and_large(bench, stack):
    """N1, N2 and N5: through the switch, beside OVS-DPDK's."""
    ours, switch = against_switch(bench, stack, False)

    def line(row, title, judges, *words, note=""):
        return Line(row, title, frames(ours, "@a", "@b", *words),
                    frames(switch, "@a", "@b", *words), judges, note)

    goal = [Judge(CYCLES, "most", 1 / 3)]
    yield line("N1", "guest, switch, guest, 64 B", goal, "--size", 64, note=bare_switch(bench, 64))
    yield line("N1", f"guest, switch, guest, 64 B{STOCK}", goal, "--size", 64, "--stock")
    yield line("N2", "guest, switch, guest, 1500 B", goal, "--size", 1514,
               note=bare_switch(bench, 1514))
    if not bench.wants("N5"):
        return
    switch.resume()
    most = Side(switch, ["net", "@a", "@b", "--size", 64]).once(bench)["per_second"]
    switch.pause()
    for share in (10, 80):
        rate = int(most * share / 100)
        yield line("N5", f"latency guest, switch, guest, 64 B, {rate:,} frames a second: "
                   f"{share} % of what ovs-dpdk carries",
                   [Judge(each, "most", 1 / 2) for each in ("p50", "p99", "p99.9")],
                   "--size", 64, "--rate", rate, "--burst", 8)


def segments(bench, stack):
    """N3: 64 KiB of TCP at once; OVS with userspace-tso-enable."""
    ours, switch = against_switch(bench, stack, True)
    words = ["@a", "@b", "--tso", "--size", 65000]
    for more, text in (([], ""), (["--stock"], STOCK)):
        yield Line("N3", f"guest, switch, guest, TCP of 64 KiB{text}",
                   frames(ours, *words, *more), frames(switch, *words, *more),
                   [Judge(CYCLES, "most", 1 / 4)])


def ceiling(bench, *words):
    """What the client does where the device costs nothing."""
    def note():
        seen = limit(bench, "driver", *words)
        return f"the client alone: {seen['per_second'] / 1e6:.1f} M/s"
    return note


def with_uplink(bench, device, name="mill"):
    def set_up(daemon):
        daemon.port("a")
        daemon.uplink("uplink", device)
    return Millrace(bench.work, bench.core, set_up, name)


def beside_testpmd(bench, stack, device, name):
    stack.enter_context(HugePages(HUGE_PAGES))
    ours = stack.enter_context(with_uplink(bench, device))
    ours.pause()
    theirs = stack.enter_context(NetVhost(bench.work, bench.core, device, name))
    theirs.pause()
    return ours, theirs


def uplink_out(bench, stack):
    """N4, out: frames of the guest's to a device that forgets them."""
    ours, theirs = beside_testpmd(bench, stack, "net_null0,no-rx=1", "out")
    makers = (functools.partial(with_uplink, bench),
              functools.partial(NetVhost, bench.work, bench.core))
    for size, wire, goal in ((64, 64, 2 / 3), (1500, 1514, 1 / 3)):
        words = ["net", "@a", "--out", "--size", wire]
        sides = [OutSide(each, words, size=wire, keeper=functools.partial(make, name=f"kept{size}"))
                 for each, make in zip((ours, theirs), makers)]
        yield Line("N4", f"guest to null uplink, {size} B", *sides,
                   [Judge(CYCLES, "most", goal)], ceiling(bench, "--out", "--size", wire))


def uplink_in(bench, stack, size, wire, goal):
    """N4, back: frames of a device that has them without end (net_null's have no address)."""
    path = bench.work / f"frames{size}.pcap"
    pcap.write(path, [pcap.frame(HERE, THERE, number, wire) for number in range(256)])
    each = beside_testpmd(bench, stack, f"net_pcap0,rx_pcap={path},infinite_rx=1", f"in{size}")
    words = ["net", "@a", "--in", "--size", wire]
    yield Line("N4", f"null uplink to guest, {size} B",
               *(Side(side, words, twin=[*words, "--expect", path]) for side in each),
               [Judge(CYCLES, "most", goal)], ceiling(bench, "--in", "--size", wire))


def flatness(bench, stack):
    """N6: many ports, addresses, memory slots; beside the same daemon with few."""
    names = [f"p{number}" for number in range(512)]

    def set_up(daemon):
        for name in names:
            daemon.port(name, addresses_max=ADDRESSES_MAX)

    ours = stack.enter_context(Millrace(bench.work, bench.core, set_up,
                                        extra=f"[switch]\naddresses_max = {ADDRESSES_MAX}\n"))
    few = ["@p0", "@p1", "--size", 64, "--ring", 256]
    judges = [Judge(CYCLES, "most", 1.2)]
    note = f"both with addresses_max {ADDRESSES_MAX:,}"  # the default has room for fewer

    def line(title, words, base, than):
        return Line("N6", title, frames(ours, *words), frames(ours, *base, name=than), judges, note)

    for count in (16, 128, 512):
        sockets = [f"@{name}" for name in names[:count]]
        yield line(f"{count} ports, all busy, 64 B", [*sockets, *few[2:]], few, "2 ports")
    idle = ["--idle", *(f"@{name}" for name in names[2:])]
    yield line("512 ports, two of them busy, 64 B", [*few, *idle], few, "2 ports")
    base = ["@p0", "@p1", "--size", 64]
    yield line("65,536 addresses, 64 B", [*base, "--addresses", 65536], base, "1 address")
    yield line("500 memory slots, 64 B", [*base, "--slots", 500], base, "1 slot")
    # Beside 2, not 1: with more than one the client puts its buffers at other places.
    base = ["@p0", "@p1", "--size", 1514, "--slots"]
    yield line("500 memory slots, 1500 B", [*base, 500], [*base, 2], "2 slots")


def formats(bench, stack):
    """N7: split rings beside packed ones."""
    ours = stack.enter_context(Millrace(bench.work, bench.core, two_ports))
    words = ("@a", "@b", "--size", 64)
    yield Line("N7", "split rings beside packed ones, 64 B", frames(ours, *words, name="split"),
               frames(ours, *words, "--packed", name="packed"), [Judge(CYCLES, "most", 1.1)])


GROUPS = [
    (("N1", "N2", "N5"), small_and_large),
    (("N3",), segments),
    (("N4",), uplink_out),
    (("N4",), lambda bench, stack: uplink_in(bench, stack, 64, 64, 2 / 3)),
    (("N4",), lambda bench, stack: uplink_in(bench, stack, 1500, 1514, 1 / 3)),
    (("N6",), flatness),
    (("N7",), formats),
]
