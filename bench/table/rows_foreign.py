"""Rows whose clients are not ours: F1 and F2. They show that what the other rows say is not an
artefact of our own client."""

import contextlib

from tests.rig.peers import HugePages, OpenVSwitch

from .contestants import Millrace
from .guests import GuestPair, PingSide, need_guests
from .lines import Judge, Line
from .rows_net import HUGE_PAGES, against_switch, two_ports
from .virtio_user import TestpmdSide, need_testpmd


def driven_by_testpmd(bench, stack):
    """F1: N1 and N2 with DPDK's own driver at both ends."""
    need_testpmd()
    ours, switch = against_switch(bench, stack, False)
    for text, size, packed in (("64 B", 64, False), ("1500 B", 1514, False),
                               ("64 B, packed rings", 64, True)):
        with contextlib.ExitStack() as clients:  # the next ones have the same ports
            sides = [clients.enter_context(TestpmdSide(each, size, packed))
                     for each in (ours, switch)]
            yield Line("F1", f"dpdk-testpmd virtio-user, switch, virtio-user, {text}", *sides,
                       [Judge("cycles", "most", 1), Judge("rate", "least", 1)],
                       "both ends on one core")


def driven_by_linux(bench, stack):
    """F2: round trips of Linux's own driver, which leave a switch idle most of the time: beside
    reactors that may sleep, the default, those that never do, as OVS's. One pair of guests has NICs
    at all of them."""
    need_guests()
    stack.enter_context(HugePages(HUGE_PAGES))
    modes = {mode: stack.enter_context(Millrace(bench.work, bench.core, two_ports, mode, mode))
             for mode in ("adaptive", "poll")}
    switch = stack.enter_context(OpenVSwitch(bench.work, bench.core))
    all_of_them = (*modes.values(), switch)
    pair = stack.enter_context(GuestPair(bench.work, all_of_them))
    pair.keep_to(bench.client_core)
    for each in all_of_them:
        each.pause()
    for mode, words, note in (("adaptive", "", pair.note()),
                              ("poll", ", reactors in poll mode", "")):
        yield Line("F2", f"ping from guest to guest of QEMU's{words}", PingSide(pair, modes[mode]),
                   PingSide(pair, switch), [Judge("p50", "most", 1), Judge("p99", "most", 1)],
                   note)


GROUPS = [
    (("F1",), driven_by_testpmd),
    (("F2",), driven_by_linux),
]
