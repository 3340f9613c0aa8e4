"""Unix sockets of programs that were just started, and lines that come over them."""

import socket
import time

from .process import RigError


def connect(path, process, timeout=60):
    """Connects to a socket that `process` (a Child) makes. It is there a moment before anybody
    listens on it, so being refused means as little as finding nothing."""
    deadline = time.monotonic() + timeout
    while True:
        if process:
            process.expect_running()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            if time.monotonic() > deadline:
                raise RigError(f"nobody listens on {path} after {timeout} s") from None
            time.sleep(0.02)
        except BaseException:
            connection.close()
            raise


class Lines:
    """One connection, read line by line. `state()` is what a failure adds to its text."""

    def __init__(self, path, process, state, timeout=60):
        self.process, self.state = process, state
        self._buffer = b""
        self._socket = connect(path, process, timeout)

    def close(self):
        self._socket.close()

    def send(self, data):
        self._socket.settimeout(90)
        try:
            self._socket.sendall(data)
        except ConnectionError:
            raise RigError(f"hung up: {self.process.obituary()}\n{self.state()}") from None

    def next(self, deadline, what):
        """The next line. At the deadline (of time.monotonic()): None, or a failure where `what`
        is said."""
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 and what is None:
                return None
            if left <= 0:
                raise RigError(f"{self.process.name}: waited in vain for {what}\n{self.state()}")
            if not self.process.running():
                raise RigError(f"{self.process.obituary()}\n{self.state()}")
            self._socket.settimeout(min(left, 1))
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                continue
            except ConnectionError:
                data = b""
            if not data:
                raise RigError(f"hung up: {self.process.obituary()}\n{self.state()}")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode(errors="replace").strip()
