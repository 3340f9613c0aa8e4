#!/bin/sh
# The guest's first program: loads drivers, then runs what the second serial port asks for.
# A request is one line, base64 of a shell script. The answer is "=BEGIN", the script's output in
# base64, "=END STATUS".
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /tmp /mnt /run
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
for module in virtio_pci virtio_net virtio_blk ext4 8021q; do modprobe $module; done
ip link set lo up
agent=/dev/ttyS1
stty -F $agent raw -echo -echoe -echok 115200
serve() {
  exec <$agent >$agent
  echo
  echo "=READY $(cat /proc/sys/kernel/random/boot_id) $(uname -r)"
  while read -r line; do
    [ -n "$line" ] || continue
    echo "$line" | base64 -d >/tmp/request
    sh /tmp/request </dev/null >/tmp/answer 2>&1
    status=$?
    echo "=BEGIN"
    base64 /tmp/answer
    echo "=END $status"
  done
  echo "the agent's read has ended" >/dev/ttyS0
}
# Not the first program itself: what a script left in the background becomes a child of that one,
# and when a child ends while a line is being read, this shell loses what it has read of it.
serve &
while :; do
  wait
  sleep 1
done
