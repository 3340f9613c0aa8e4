"""Clients of the QMP wire protocol: QEMU's own socket, and the daemon's control socket."""

import json
import time

from .lines import connect
from .process import RigError


class QmpError(Exception):
    def __init__(self, error):
        super().__init__(f"{error.get('class')}: {error.get('desc')}")
        self.kind, self.text = error.get("class"), error.get("desc")


class Qmp:
    """One connection. Events that arrive while an answer is awaited are kept in `events`."""

    def __init__(self, path, timeout=90, process=None):
        self.socket = connect(path, process, timeout)
        self.timeout = timeout
        self.socket.settimeout(timeout)
        self.file = self.socket.makefile("rb")
        self.events = []
        self.greeting = self._read()
        self("qmp_capabilities")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.file.close()
        self.socket.close()

    def _read(self):
        line = self.file.readline()
        if not line:
            raise RigError("the QMP peer hung up")
        return json.loads(line)

    def __call__(self, command, **arguments):
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        request = {"execute": command}
        if named:
            request["arguments"] = named
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            message = self._read()
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise QmpError(message["error"])
            else:
                return message["return"]

    def wait_event(self, name, timeout=120):
        deadline = time.monotonic() + timeout
        while True:
            for index, event in enumerate(self.events):
                if event["event"] == name:
                    return self.events.pop(index)
            self.socket.settimeout(max(0.05, deadline - time.monotonic()))
            try:
                message = self._read()
            except TimeoutError:
                raise RigError(f"no event {name} in {timeout} s") from None
            finally:
                self.socket.settimeout(self.timeout)
            if "event" in message:
                self.events.append(message)
