"""The host's end of an interface: raw frames."""

import socket

ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h: past net.core.rmem_max, for who may


def raw_socket(interface):
    """All frames of an interface, both ways; it never blocks, and has room for a burst of them
    whatever this machine's limit for others is. Root's."""
    out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    try:
        out.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
        out.bind((interface, 0))
    except OSError:
        out.close()
        raise
    out.setblocking(False)
    return out
