"""QEMU without a guest: registers and guest memory poked through its qtest socket.

QtestQemu is the machine, VirtioPci one modern virtio-pci device, SplitRing and PackedRing a
driver's half of a virtqueue in guest memory, BlkDriver a virtio-blk driver on top of them."""

import struct
import time

from .lines import connect
from .process import Child, RigError, wait_for
from .qemu import Qemu
from .qmp import Qmp

# virtio 1.2 feature bits
VERSION_1, RING_PACKED = 1 << 32, 1 << 34
INDIRECT, EVENT_IDX = 1 << 28, 1 << 29
# virtio 1.2 2.1
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8
NEXT, WRITE, INDIRECT_TABLE = 1, 2, 4
AVAIL, USED = 1 << 7, 1 << 15


class QtestQemu(Qemu):
    """A machine whose processor halts at its first instruction; memory is handed out by alloc().

    (It has to be a running machine: QEMU starts no vhost device in a stopped one.)"""

    def __init__(self, work, name="qtest", memory_mb=64, **more):
        super().__init__(work, name, memory_mb, machine="pc", **more)
        self.next_free, self.next_bar = 1 << 20, 0xE0000000
        self.end = memory_mb << 20
        firmware = self.path("halt")
        with open(firmware, "wb") as file:  # cli; hlt; jump to the hlt: at the reset vector
            file.write(bytes(0xFFF0) + b"\xfa\xf4\xeb\xfd" + bytes(12))
        self.add("-bios", firmware, "-qtest-log", "none",
                 "-qtest", f"unix:{self.path('qts')},server=on,wait=off")

    def command(self):
        return [self.binary, "-accel", "tcg", *self.arguments]

    def start(self, timeout=60):
        self.process = Child(self.command(), self.path("log"), name=f"QEMU {self.name}")
        self.qts = connect(self.path("qts"), self.process, timeout)
        self.qts.settimeout(timeout)
        self.file = self.qts.makefile("rb")
        self.qmp = Qmp(self.path("qmp"), timeout, self.process)
        return self

    def kill(self):
        if self.process and getattr(self, "file", None):
            self.file.close()
            self.qts.close()
        super().kill()

    def ask(self, words):
        self.qts.sendall(words.encode() + b"\n")
        while True:
            line = self.file.readline().decode()
            if not line:
                raise RigError(f"QEMU hung up:\n{self.log()}")
            if line.startswith("OK"):
                return line[2:].strip()
            if not line.startswith("IRQ"):
                raise RigError(f"qtest: {words[:60]}: {line}")

    def alloc(self, size, align=16):
        at = (self.next_free + align - 1) & ~(align - 1)
        self.next_free = at + size
        if self.next_free > self.end:
            raise RigError("no guest memory left")
        return at

    def write(self, at, data):
        if data:
            self.ask(f"write {at:#x} {len(data):#x} 0x{bytes(data).hex()}")

    def read(self, at, size):
        return bytes.fromhex(self.ask(f"read {at:#x} {size:#x}")[2:]) if size else b""

    def pci(self, where, offset):
        self.ask(f"outl 0xcf8 {0x80000000 | where << 8 | (offset & 0xFC):#x}")

    def config_read(self, where, offset, size=4):
        """`where` is slot << 3 | function, on bus 0."""
        self.pci(where, offset)
        word = {1: "inb", 2: "inw", 4: "inl"}[size]
        return int(self.ask(f"{word} {0xCFC + (offset & 3):#x}"), 16)

    def config_write(self, where, offset, value, size=4):
        self.pci(where, offset)
        word = {1: "outb", 2: "outw", 4: "outl"}[size]
        self.ask(f"{word} {0xCFC + (offset & 3):#x} {value:#x}")

    def virtio_devices(self):
        """Where virtio devices are, in order."""
        return [slot << 3 for slot in range(32)
                if self.config_read(slot << 3, 0) & 0xFFFF == 0x1AF4]


class VirtioPci:
    """A modern virtio device on bus 0 (virtio 1.2 4.1)."""

    def __init__(self, machine, where):
        self.m, self.where = machine, where
        self.areas = {}
        at = machine.config_read(where, 0x34, 1)
        bars = {}
        while at:
            identity, following, _, kind, bar = (machine.config_read(where, at + i, 1)
                                                 for i in range(5))
            if identity == 9 and kind in (1, 2, 3, 4):
                if bar not in bars:
                    bars[bar] = self._map(bar)
                self.areas[kind] = bars[bar] + machine.config_read(where, at + 8)
                if kind == 2:
                    self.notify_multiplier = machine.config_read(where, at + 16)
            at = following
        machine.config_write(where, 4, 0x6, 2)  # memory space, bus master
        self.common, self.config = self.areas[1], self.areas[4]
        self.rings = {}

    def _map(self, bar):
        at = 0x10 + 4 * bar
        self.m.config_write(self.where, at, 0xFFFFFFFF)
        size = (~(self.m.config_read(self.where, at) & ~0xF) & 0xFFFFFFFF) + 1
        self.m.next_bar = (self.m.next_bar + size - 1) & ~(size - 1)
        base = self.m.next_bar
        self.m.next_bar += size
        self.m.config_write(self.where, at, base)
        self.m.config_write(self.where, at + 4, 0)
        return base

    def get(self, offset, size, area=None):
        word = {1: "readb", 2: "readw", 4: "readl", 8: "readq"}[size]
        return int(self.m.ask(f"{word} {(area or self.common) + offset:#x}"), 16)

    def put(self, offset, size, value, area=None):
        word = {1: "writeb", 2: "writew", 4: "writel", 8: "writeq"}[size]
        self.m.ask(f"{word} {(area or self.common) + offset:#x} {value:#x}")

    def reset(self):
        self.put(0x14, 1, 0)
        wait_for("the device's reset", lambda: self.get(0x14, 1) == 0)
        self.rings = {}

    def features(self):
        found = 0
        for half in (0, 1):
            self.put(0, 4, half)
            found |= self.get(4, 4) << 32 * half
        return found

    def negotiate(self, wanted):
        """Resets, then acknowledges those bits of `wanted` that are offered. Answers them."""
        self.reset()
        self.put(0x14, 1, ACKNOWLEDGE)
        self.put(0x14, 1, ACKNOWLEDGE | DRIVER)
        self.accepted = self.features() & (wanted | VERSION_1)
        for half in (0, 1):
            self.put(8, 4, half)
            self.put(0xC, 4, self.accepted >> 32 * half & 0xFFFFFFFF)
        self.put(0x14, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK)
        if not self.get(0x14, 1) & FEATURES_OK:
            raise RigError("the device refused the features")
        return self.accepted

    def queues_max(self):
        return self.get(0x12, 2)

    def queue(self, index, size=0):
        """Sets one virtqueue up (before start())."""
        self.put(0x16, 2, index)
        most = self.get(0x18, 2)
        size = min(size or most, most)
        self.put(0x18, 2, size)
        kind = PackedRing if self.accepted & RING_PACKED else SplitRing
        notify = self.areas[2] + self.get(0x1E, 2) * self.notify_multiplier
        ring = kind(self.m, index, size, notify, self.accepted)
        for offset, address in zip((0x20, 0x28, 0x30), ring.addresses):
            self.put(offset, 4, address & 0xFFFFFFFF)
            self.put(offset + 4, 4, address >> 32)
        self.put(0x1C, 2, 1)
        self.rings[index] = ring
        return ring

    def start(self):
        self.put(0x14, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)


class Ring:
    def __init__(self, machine, index, size, notify, features):
        self.m, self.index, self.size, self.notify = machine, index, size, notify
        self.features, self.free = features, size
        # Ids are used again as soon as the device gave them back, tokens never are: a chain may be
        # asked for after another one has taken its id.
        self.chains, self.tokens, self.done, self.offered = {}, {}, {}, 0

    def offer(self, identity, chain):
        """Notes a chain. Answers its token."""
        self.offered += 1
        self.chains[identity], self.tokens[identity] = chain, self.offered
        return self.offered

    def take_back(self, identity, length):
        """Notes that the device used a chain. Answers what offer() was given."""
        if identity not in self.chains:
            raise RigError(f"ring {self.index}: chain {identity} came back twice")
        self.done[self.tokens.pop(identity)] = length
        return self.chains.pop(identity)

    def kick(self):
        self.m.ask(f"writew {self.notify:#x} {self.index:#x}")

    def indirect_table(self, buffers, encode):
        table = b"".join(encode(number, *buffer) for number, buffer in enumerate(buffers))
        at = self.m.alloc(len(table))
        self.m.write(at, table)
        return at, len(table)

    def wait(self, token, timeout=30):
        """Waits for one chain. Answers the used length."""
        deadline = time.monotonic() + timeout
        while token not in self.done:
            self.reap()
            if token not in self.done:
                if time.monotonic() > deadline:
                    raise RigError(f"ring {self.index}: chain {token} never came back")
                time.sleep(0.0005)
        return self.done.pop(token)


class SplitRing(Ring):
    """virtio 1.2 2.7"""

    def __init__(self, machine, index, size, notify, features):
        super().__init__(machine, index, size, notify, features)
        self.desc = machine.alloc(16 * size, 16)
        self.avail = machine.alloc(6 + 2 * size, 2)
        self.used = machine.alloc(6 + 8 * size, 4)
        self.addresses = (self.desc, self.avail, self.used)
        for at, length in zip(self.addresses, (16 * size, 6 + 2 * size, 6 + 8 * size)):
            machine.write(at, bytes(length))
        self.spare = list(range(size))
        self.avail_idx = self.used_idx = 0
        self.calls_wanted = True

    def add(self, buffers, indirect=False):
        """Offers a chain of (address, length, device writes). Answers a token."""
        if indirect:
            at, length = self.indirect_table(buffers, lambda n, a, l, w: struct.pack(
                "<QIHH", a, l, (WRITE if w else 0) | (NEXT if n + 1 < len(buffers) else 0),
                n + 1 if n + 1 < len(buffers) else 0))
            slots = [self.spare.pop()]
            self.m.write(self.desc + 16 * slots[0],
                         struct.pack("<QIHH", at, length, INDIRECT_TABLE, 0))
        else:
            slots = [self.spare.pop() for _ in buffers]
            for number, (address, length, writes) in enumerate(buffers):
                last = number + 1 == len(buffers)
                flags = (WRITE if writes else 0) | (0 if last else NEXT)
                self.m.write(self.desc + 16 * slots[number], struct.pack(
                    "<QIHH", address, length, flags, 0 if last else slots[number + 1]))
        head = slots[0]
        token = self.offer(head, slots)
        self.m.write(self.avail + 4 + 2 * (self.avail_idx % self.size), struct.pack("<H", head))
        self.avail_idx = self.avail_idx + 1 & 0xFFFF
        return token

    def want_calls(self, wanted):
        """With event indices: asks for a call at the next used chain, or half a lap away."""
        self.calls_wanted = wanted
        event = self.used_idx if wanted else self.used_idx - 0x8000 & 0xFFFF
        self.m.write(self.avail + 4 + 2 * self.size, struct.pack("<H", event))

    def publish(self):
        """Shows the device what was added."""
        if self.features & EVENT_IDX:
            self.want_calls(self.calls_wanted)
        self.m.write(self.avail + 2, struct.pack("<H", self.avail_idx))
        self.kick()

    def avail_event(self):
        return struct.unpack("<H", self.m.read(self.used + 4 + 8 * self.size, 2))[0]

    def reap(self):
        idx = struct.unpack("<H", self.m.read(self.used + 2, 2))[0]
        while self.used_idx != idx:
            head, length = struct.unpack(
                "<II", self.m.read(self.used + 4 + 8 * (self.used_idx % self.size), 8))
            self.spare += self.take_back(head, length)
            self.used_idx = self.used_idx + 1 & 0xFFFF


class PackedRing(Ring):
    """virtio 1.2 2.8"""

    def __init__(self, machine, index, size, notify, features):
        super().__init__(machine, index, size, notify, features)
        self.desc = machine.alloc(16 * size, 16)
        self.driver_event, self.device_event = machine.alloc(4, 4), machine.alloc(4, 4)
        self.addresses = (self.desc, self.driver_event, self.device_event)
        machine.write(self.desc, bytes(16 * size))
        machine.write(self.driver_event, bytes(4))
        machine.write(self.device_event, bytes(4))
        self.next, self.wrap = 0, 1
        self.next_used, self.used_wrap = 0, 1
        self.spare_ids = list(range(size))

    def add(self, buffers, indirect=False):
        if indirect:
            at, length = self.indirect_table(buffers, lambda n, a, l, w: struct.pack(
                "<QIHH", a, l, 0, WRITE if w else 0))
            entries = [(at, length, INDIRECT_TABLE)]
        else:
            entries = [(a, l, (WRITE if w else 0) | (NEXT if n + 1 < len(buffers) else 0))
                       for n, (a, l, w) in enumerate(buffers)]
        if len(entries) > self.free:
            raise RigError("the ring is full")
        identity = self.spare_ids.pop()
        first = None
        for address, length, flags in entries:
            flags |= AVAIL if self.wrap else USED
            at = self.desc + 16 * self.next
            text = struct.pack("<QIHH", address, length, identity, flags)
            if first is None:
                first = (at, text)
            else:
                self.m.write(at, text)
            self.next += 1
            if self.next == self.size:
                self.next, self.wrap = 0, self.wrap ^ 1
        self.m.write(first[0], first[1][:14])
        self.m.write(first[0] + 14, first[1][14:])  # the chain becomes visible here
        self.free -= len(entries)
        return self.offer(identity, len(entries))

    def want_calls(self, wanted):
        """With event indices: asks for a call at the next used chain, or one lap later."""
        lap = self.used_wrap if wanted else self.used_wrap ^ 1
        self.m.write(self.driver_event, struct.pack("<HH", self.next_used | lap << 15, 2))

    def publish(self):
        self.kick()

    def reap(self):
        while True:
            _, length, identity, flags = struct.unpack(
                "<QIHH", self.m.read(self.desc + 16 * self.next_used, 16))
            expected = AVAIL | USED if self.used_wrap else 0
            if flags & (AVAIL | USED) != expected or not self.chains:
                return
            count = self.take_back(identity, length)
            self.spare_ids.append(identity)
            self.free += count
            self.next_used += count
            if self.next_used >= self.size:
                self.next_used, self.used_wrap = self.next_used - self.size, self.used_wrap ^ 1


class BlkDriver:
    """Requests of virtio 1.2 5.2.6 on one ring."""

    IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
    OK, IOERR, UNSUPP = 0, 1, 2

    def __init__(self, device, ring, indirect=False):
        self.device, self.ring, self.m, self.indirect = device, ring, device.m, indirect
        self.pools = {}

    def _area(self, size):
        """Memory for a request; given back by finish()."""
        pool = self.pools.setdefault(size, [])
        return pool.pop() if pool else self.m.alloc(size, 512)

    def begin(self, kind, sector=0, data=b"", read=0, publish=True):
        """Adds a request and shows it to the device. Answers what finish() takes.

        publish=False: only adds it; ring.publish() shows (a packed ring shows it at once, and
        kicks with the others)."""
        size = 512 * -(-(16 + max(len(data), read) + 1) // 512)
        at = self._area(size)
        self.m.write(at, struct.pack("<IIQ", kind, 0, sector) + data)
        status = at + 16 + max(len(data), read)
        self.m.write(status, b"\xff")
        buffers = [(at, 16, False)]
        if data:
            buffers.append((at + 16, len(data), False))
        if read:
            buffers.append((at + 16, read, True))
        token = self.ring.add(buffers + [(status, 1, True)], self.indirect)
        if publish:
            self.ring.publish()
        return token, at, size, read, status

    def finish(self, request, timeout=30):
        """Answers (status, data read, used length)."""
        token, at, size, read, status = request
        used = self.ring.wait(token, timeout)
        answer = self.m.read(status, 1)[0], self.m.read(at + 16, read), used
        self.pools[size].append(at)
        return answer

    def request(self, kind, sector=0, data=b"", read=0, timeout=30):
        return self.finish(self.begin(kind, sector, data, read), timeout)

    def write(self, sector, data):
        return self.request(self.OUT, sector, data)[0]

    def read(self, sector, size):
        status, data, used = self.request(self.IN, sector, read=size)
        if status or used != size + 1:
            raise RigError(f"read of {size} at {sector}: status {status}, used length {used}")
        return data

    def flush(self):
        return self.request(self.FLUSH)[0]

    def range(self, kind, *segments):
        """DISCARD or WRITE_ZEROES over (sector, sectors, flags)... Answers the status."""
        return self.request(kind, 0, b"".join(struct.pack("<QII", *s) for s in segments))[0]

    def capacity(self):
        return self.device.get(0, 8, self.device.config)
