"""A running guest moves from one QEMU to another while it sends, receives, writes and reads."""

import os
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import pcap, scenes
from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.guest import Guest
from tests.rig.process import RigError, run, wait_for

MAC, PEER = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
HERE, THERE = "10.9.0.1", "10.9.0.2"
COLD_FILES, HELD_BYTES = 48, 64 << 10

# In the guest that moves, from before the move until after it. What goes wrong is in /tmp/bad.
# - disk: files written, flushed and read back past the cache
# - net: a stream that the peer sends over and over, compared piece by piece
# - memory: a file that nobody touches
BUSY = f"""
cat >/tmp/load <<'END'
i=0
while [ ! -e /tmp/stop ]; do
  i=$((i + 1)); f=/mnt/f$((i % 8))
  dd if=/dev/urandom of=/tmp/m bs=64k count=8 2>/dev/null
  cp /tmp/m $f && sync $f || echo write >>/tmp/bad
  dd if=$f bs=64k iflag=direct 2>/dev/null | cmp -s - /tmp/m || echo verify >>/tmp/bad
  echo $i >/tmp/rounds
done
touch /tmp/ended
