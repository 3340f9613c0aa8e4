"""Capture files: frames in, frames out."""

import struct

_HEADER = struct.Struct("<IHHiIII")
_RECORD = struct.Struct("<IIII")


def write(path, frames):
    with open(path, "wb") as file:
        file.write(_HEADER.pack(0xA1B2C3D4, 2, 4, 0, 0, 262144, 1))
        for frame in frames:
            file.write(_RECORD.pack(0, 0, len(frame), len(frame)) + frame)


def read(path):
    with open(path, "rb") as file:
        data = file.read()
    frames, at = [], _HEADER.size
    while at + _RECORD.size <= len(data):
        _, _, kept, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        if at + kept > len(data):
            break
        if kept != length:
            raise ValueError("a frame was cut in the capture")
        frames.append(data[at:at + kept])
        at += kept
    return frames


def mac(text):
    return bytes(int(part, 16) for part in text.split(":"))


def frame(destination, source, sequence, length):
    """A UDP frame whose every byte follows from `sequence`; checksums as they should be."""
    body = length - 42
    pattern = bytes((sequence * 7 + index) & 0xFF for index in range(256))
    payload = struct.pack(">I", sequence) + (pattern * (body // 256 + 1))[:body - 4]
    udp = struct.pack(">HHHH", 1024 + sequence % 512, 9, 8 + len(payload), 0)
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28 + len(payload), sequence & 0xFFFF, 0, 64, 17, 0,
                     bytes([10, 9, 0, 1]), bytes([10, 9, 0, 2]))
    ip = ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:]
    return mac(destination) + mac(source) + b"\x08\x00" + ip + udp + payload


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
