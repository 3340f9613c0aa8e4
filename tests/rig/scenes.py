"""Steps that tests and ./demo share: addresses, throughput, a file system with checksums."""

import json
import re

from .process import wait_for


def address(guest, mac, ip):
    """Gives the NIC with that MAC an address and brings it up. Answers its name."""
    name = guest.interface(mac)
    guest.must(f"ip link set {name} up && ip addr add {ip}/24 dev {name}")
    return name


def ping(guest, ip, count=3, timeout=30):
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


def packets(guest, interface):
    """(sent, received) as the guest's own driver counts them."""
    text = guest.must(f"cat /sys/class/net/{interface}/statistics/tx_packets "
                      f"/sys/class/net/{interface}/statistics/rx_packets")
    sent, received = text.split()
    return int(sent), int(received)
