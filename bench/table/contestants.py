"""Who is measured: our daemon, in several configurations, and the bare machine. The peers that
Debian ships are in tests/rig/peers.py; all are alike: a name, sockets, pause, resume, busy."""

import signal

from tests.rig.daemon import Daemon


class OurDaemon(Daemon):
    """With tables that the rig's own has no word for."""

    def __init__(self, *words, extra="", **more):
        super().__init__(*words, **more)
        self.extra = extra

    def text(self):
        return super().text() + self.extra


class Millrace:
    """Our daemon as a contestant: `set_up` gives it ports and disks."""

    name = "millraced"
    options = ()

    def __init__(self, work, core, set_up, name="mill", mode=None, extra=""):
        self.daemon = OurDaemon(work, name=name, cores=[core], mode=mode, extra=extra)
        set_up(self.daemon)

    def __enter__(self):
        try:
            self.daemon.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.daemon.process:
            self.daemon.process.kill()

    def socket(self, name):
        return self.daemon.socket(name)

    def pause(self):
        self.daemon.process.signal(signal.SIGSTOP)

    def resume(self):
        self.daemon.process.signal(signal.SIGCONT)

    def busy(self):
        """(cycles in rounds that found work, None: the client counts)."""
        reactors = self.daemon.ask("query-reactors")
        return sum(each["busy_cycles"] for each in reactors), None


class Bare:
    """The machine itself: what `millrace-bench limit` does. It runs on the back-end's core."""

    options = ()

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def socket(self, name):
        return name

    def pause(self):
        pass

    def resume(self):
        pass

    def busy(self):
        return None, None

