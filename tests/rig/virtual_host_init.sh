#!/bin/sh
# The virtual host's first program: mounts the machine's own files, then runs what the second serial
# port asks for. A request is one line, "N FOLDER": run /virtual-host/N.sh there. The answer is
# "=END N STATUS"; what the script says goes where it says itself. A line "=ALIVE" comes now and
# then, whatever runs: who hears none knows that the machine stands still.
export PATH=/sbin:/bin:/usr/sbin:/usr/bin HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
load() { while read -r module; do insmod "/modules/$module"; done <"/modules/$1"; }
load first
load later &

# The machine's files below, what is written above, in memory: everything can be written, and
# nothing stays.
ninep=trans=virtio,version=9p2000.L,msize=524288
mount -t 9p -o $ninep,cache=loose,ro machine /machine
mount -t tmpfs -o mode=755 scratch /scratch
mkdir /scratch/upper /scratch/work
mount -t overlay -o lowerdir=/machine,upperdir=/scratch/upper,workdir=/scratch/work host /host
mkdir -p /dev/pts /dev/shm /dev/hugepages /host/virtual-host
for link in fd: stdin:/0 stdout:/1 stderr:/2; do
  ln -s "/proc/self/fd${link#*:}" "/dev/${link%:*}"
done
mount -t devpts devpts /dev/pts
mount -t hugetlbfs hugetlbfs /dev/hugepages
mount -t tmpfs -o mode=1777 shm /dev/shm
for folder in proc sys dev; do mount --rbind /$folder /host/$folder; done
mount -t tmpfs -o mode=755 run /host/run
mount -t 9p -o $ninep job /host/virtual-host
while read -r tag path; do
  case $tag in
    "") ;;
    keep) # a folder that the tmpfs above would hide
      mkdir -p "/host$path" && mount --bind "/machine$path" "/host$path" ;;
    *)
      mkdir -p "/host$path" && mount -t 9p -o $ninep "$tag" "/host$path" ;;
  esac
done </host/virtual-host/mounts
ip link set lo up
ulimit -n 1048576
ulimit -l unlimited
wait

agent=/dev/ttyS1
stty -F $agent raw -echo -echoe -echok 115200
serve() {
  exec <$agent >$agent
  echo
  echo "=READY"
  while sleep 2; do echo "=ALIVE"; done &
  while read -r number folder; do
    chroot /host /bin/sh -c 'cd "$2" && exec /bin/bash "/virtual-host/$1.sh"' sh "$number" \
      "$folder" </dev/null >/dev/ttyS0 2>&1
    echo "=END $number $?"
  done
}
# Not the first program itself: see init.sh
serve &
while :; do
  wait
  sleep 1
done
