"""Steps that tests and ./demo share: addresses, throughput, a file system with checksums."""

import json
import re

from .process import RigError, wait_for
from .vmm import Vmm

MACS = ["52:54:00:00:00:0a", "52:54:00:00:00:0b"]  # of networked()
IPS = ["10.9.0.1", "10.9.0.2"]


def address(guest, mac, ip):
    """Gives the NIC with that MAC an address and brings it up. Answers its name."""
    name = guest.interface(mac)
    guest.must(f"ip link set {name} up && ip addr add {ip}/24 dev {name}")
    return name


def networked(case, daemon, count=2, machine=None, **port):
    """Guests of millrace-vmm with a port of the daemon and an address each (`nic` is its
    interface); starts all of them. `machine`: what Vmm takes; `port`: keys of the ports."""
    guests = []
    for name, mac in list(zip("ab", MACS))[:count]:
        socket = daemon.port(f"net-{name}", mac=mac, **port)
        guests.append(case.use(Vmm(case.work, name, **(machine or {}))).net(socket, mac))
    case.use(daemon)
    for guest in guests:
        guest.start(wait=False)
    for guest, mac, ip in zip(guests, MACS, IPS):
        guest.wait_ready()
        guest.nic = address(guest, mac, ip)
    return guests


def ping(guest, ip, count=3, timeout=90):
    """Answers the number of replies; tries for a while until the first comes."""
    def once():
        status, text = guest.run(f"ping -c {count} -i 0.2 -W 2 {ip}", timeout)
        found = re.search(r"(\d+) packets received", text)
        return int(found.group(1)) if found and status == 0 else 0
    return wait_for(f"replies from {ip}", once, timeout, 0.2)


def iperf(client, server, ip, seconds=3, options=""):
    """Runs iperf3 from one guest to the other. Answers bits a second at the receiver."""
    server.must("iperf3 -s -1 -D --pidfile /tmp/iperf.pid -p 5201 && sleep 0.5")
    text = client.must(f"iperf3 -c {ip} -t {seconds} -J {options}", 60 + 5 * seconds)
    return json.loads(text[text.index("{"):])["end"]["sum_received"]["bits_per_second"]


def checked_transfer(sender, receiver, ip, megabytes=8):
    """Random bytes over TCP from the sender, whose address is `ip`; what arrives has the digest of
    what was sent."""
    sender.must(f"mkdir -p /tmp/web && cd /tmp/web && dd if=/dev/urandom of=file bs=1M "
                f"count={megabytes} 2>/dev/null && httpd -p 8000 -h /tmp/web")
    receiver.must(f"wget -q -O /tmp/got http://{ip}:8000/file", 120)
    sent, got = sender.must("sha256sum </tmp/web/file"), receiver.must("sha256sum </tmp/got")
    if got != sent:
        raise RigError(f"a file of {megabytes} MiB from {ip}: {got} came, {sent} was sent")
    receiver.must("rm /tmp/got")
    sender.must("killall httpd; rm -r /tmp/web")


def make_filesystem(guest, disk, point="/mnt"):
    guest.must(f"mkfs.ext4 -q -F /dev/{disk} && mkdir -p {point} && mount /dev/{disk} {point}", 120)


def write_and_verify(guest, disk, megabytes=16, point="/mnt"):
    """Files of random data through the file system; checksums hold after a fresh mount, from the
    disk and not from the cache. Answers how many files were verified."""
    script = f"""set -e
cd {point}
for i in 1 2 3 4; do
  dd if=/dev/urandom of=f$i bs=1M count={max(1, megabytes // 4)} 2>/dev/null
done
sha256sum f* >/tmp/sums
sync
cd /
umount {point}
echo 3 >/proc/sys/vm/drop_caches
mount /dev/{disk} {point}
cd {point}
sha256sum -c /tmp/sums | grep -c OK"""
    return int(guest.must(script, 180).splitlines()[-1])


def unmount(guest, point="/mnt"):
    """Also where the kernel is not quite done with what had a file of it open."""
    guest.must(f"i=0; until umount {point}; do i=$((i + 1)); [ $i -lt 25 ] || exit 1; sleep 0.2; "
               "done", 60)


class FileLoad:
    """A program in the guest that writes files, and reads each back from the disk, until ended."""

    SCRIPT = """cat >/tmp/load <<'END'
i=0
while [ ! -e /tmp/stop ]; do
  i=$((i + 1))
  f={point}/load$((i % {files}))
  dd if=/dev/urandom of=$f bs=64k count=8 conv=fsync 2>/dev/null || echo write >>/tmp/bad
  sha256sum $f >/tmp/sum.$((i % {files}))
  echo 3 >/proc/sys/vm/drop_caches
  sha256sum -c /tmp/sum.$((i % {files})) >/dev/null || echo verify >>/tmp/bad
  echo $i >/tmp/rounds
done
touch /tmp/ended
END
rm -f /tmp/stop /tmp/ended /tmp/bad /tmp/rounds /tmp/sum.*
sh /tmp/load >/dev/null 2>&1 &"""
    FILES = 16

    def __init__(self, guest, disk, point="/mnt"):
        self.guest, self.disk, self.point = guest, disk, point
        guest.must(self.SCRIPT.format(point=point, files=self.FILES))

    def end(self, case, timeout=180):
        """Ends it. Every write and every read of it was good, and after a fresh mount the files
        are what they were. Answers the number of rounds; the disk is not mounted any more."""
        guest, point = self.guest, self.point
        guest.must("touch /tmp/stop; while [ ! -e /tmp/ended ]; do sleep 0.2; done", timeout)
        case.assertEqual(guest.must("cat /tmp/bad 2>/dev/null || echo none"), "none")
        case.assertEqual(guest.kernel_log("I/O error"), "")
        rounds = int(guest.must("cat /tmp/rounds"))
        unmount(guest, point)
        files = guest.must(f"mount /dev/{self.disk} {point} && cat /tmp/sum.* >/tmp/sums && "
                           "sha256sum -c /tmp/sums | grep -c OK", timeout)
        unmount(guest, point)
        case.assertEqual(int(files), min(rounds, self.FILES))
        return rounds


def packets(guest, interface):
    """(sent, received) as the guest's own driver counts them."""
    text = guest.must(f"cat /sys/class/net/{interface}/statistics/tx_packets "
                      f"/sys/class/net/{interface}/statistics/rx_packets")
    sent, received = text.split()
    return int(sent), int(received)
