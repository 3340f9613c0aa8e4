"""The programs as a person and a script meet them: options, exit codes, one clear line each."""

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import settings
from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.process import Child, run, tail, wait_for
from tests.rig.qtest import BlkDriver, QtestQemu, VirtioPci


class Options(SystemTest):
    def check(self, text, *more):
        path = self.work / "config.toml"
        with open(path, "w") as file:
            file.write(text)
        return run([settings.program("millraced"), "--config", path, "--check", *more], 30, False)

    def refused(self, text, *words):
        """Each of `words` is in one of the lines; status 2; nothing but lines about the file."""
        done = self.check(text)
        self.assertEqual(done.returncode, 2, done.stdout)
        for word in words:
            self.assertIn(word, done.stdout)
        for line in done.stdout.strip().split("\n"):
            self.assertIn("config.toml", line)

    def test_good(self):
        image = self.work / "x.img"
        with open(image, "wb") as file:
            file.truncate(1 << 20)
        done = self.check(f'[[disk]]\nname = "x"\nsocket = "{self.work / "x.sock"}"\n'
                          f'path = "{image}"\n')
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertFalse(os.path.exists(self.work / "x.sock"))

    def test_unknown_key(self):
        self.refused('[[port]]\nname = "a"\nsocket = "/tmp/a.sock"\ncolour = 1\n', "colour")

    def test_unknown_section(self):
        self.refused('[engine]\nx = 1\n', "engine")

    def test_duplicate_name(self):
        self.refused('[[port]]\nname = "a"\nsocket = "/tmp/a.sock"\n'
                     '[[port]]\nname = "a"\nsocket = "/tmp/b.sock"\n', "name a")

    def test_duplicate_socket(self):
        self.refused('[[port]]\nname = "a"\nsocket = "/tmp/a.sock"\n'
                     '[[port]]\nname = "b"\nsocket = "/tmp/a.sock"\n', "/tmp/a.sock")

    def test_missing_image(self):
        self.refused('[[disk]]\nname = "a"\nsocket = "/tmp/a.sock"\npath = "/none/such"\n',
                     "/none/such")

    def test_unusable_core(self):
        self.refused("[reactors]\ncores = [900]\n", "900")

    def test_not_toml(self):
        self.refused("[[port\n", "config.toml")

    def test_nothing_is_left_out(self):
        """What follows a zero byte is part of the file."""
        self.refused("[switch]\nageing_s = 60\n\0[engine]\n", "config.toml:3:1: not TOML")

    def test_no_such_file(self):
        done = run([settings.program("millraced"), "--config", "/none/such.toml"], 30, False)
        self.assertEqual(done.returncode, 2)
        self.assertIn("/none/such.toml", done.stdout)

    def test_no_file_that_can_be_read(self):
        for path, why in (("/none/such.toml", "No such file or directory"),
                          ("/tmp", "Is a directory"), ("/dev/zero", "more than 16 MiB")):
            done = run([settings.program("millraced"), "--config", path, "--check"], 30, False)
            self.assertEqual(done.returncode, 2)
            self.assertRegex(done.stdout, rf"\A{path}: [^\n]*{why}; give a TOML file\n\Z")

    def test_wrong_options(self):
        for words in ((), ("--config",), ("--colour",), ("--config", "x", "--log-level", "loud")):
            with self.subTest(words):
                done = run([settings.program("millraced"), *words], 30, False)
                self.assertEqual(done.returncode, 2, done.stdout)
                self.assertTrue(done.stdout.strip())

    def test_version_and_help(self):
        for program in ("millraced", "millctl"):
            for option in ("--version", "--help"):
                done = run([settings.program(program), option], 30, False)
                self.assertEqual(done.returncode, 0, done.stdout)
                self.assertIn(program, done.stdout)


class Life(SystemTest):
    def test_sigterm_ends_with_0_and_removes_the_sockets(self):
        daemon = Daemon(self.work)
        paths = [daemon.port("a"), daemon.control]
        with daemon:
            for path in paths:
                self.assertTrue(os.path.exists(path), path)
        for path in paths:
            self.assertFalse(os.path.exists(path), path)

    def test_sigint_does_the_same(self):
        daemon = Daemon(self.work)
        paths = [daemon.port("a"), daemon.disk("b", backend="null", size="1MiB"), daemon.control]
        self.use(daemon)
        daemon.stopped = True
        daemon.process.signal(signal.SIGINT)
        self.assertEqual(daemon.process.wait(20), 0)
        self.assertEqual([path for path in paths if os.path.exists(path)], [])

    def test_sighup_changes_nothing(self):
        daemon = self.use(Daemon(self.work))
        daemon.process.signal(signal.SIGHUP)
        wait_for("a line about it", lambda: "SIGHUP" in daemon.log())
        self.assertEqual(daemon.ask("query-status")["state"], "running")

    def test_tells_systemd(self):
        """READY=1 once everything listens, and STOPPING=1."""
        daemon = Daemon(self.work)
        paths = [daemon.port("a"), daemon.disk("b", backend="null", size="1MiB"), daemon.control]
        with open(daemon.path("toml"), "w") as file:
            file.write(daemon.text())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.settimeout(20)
            manager.bind(self.work / "notify")
            child = self.use(Child([settings.program("millraced"), "--config",
                                    daemon.path("toml")], daemon.path("log"),
                                   env={"NOTIFY_SOCKET": self.work / "notify"}))
            self.assertIn("READY=1", manager.recv(4096).decode().split("\n"))
            for path in paths:
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(path)
            child.signal(signal.SIGTERM)
            self.assertIn("STOPPING=1", manager.recv(4096).decode().split("\n"))
            self.assertEqual(child.wait(20), 0)

    def test_systemd_takes_the_unit(self):
        if not shutil.which("systemd-analyze"):
            self.skipTest("skipped: no systemd-analyze on this machine")
        with open(os.path.join(settings.SOURCE, "systemd/millraced.service.in")) as file:
            text = file.read().replace("@bindir@", settings.build_folder())
        with open(self.work / "millraced.service", "w") as file:
            file.write(text)
        done = run(["systemd-analyze", "verify", "--man=no", self.work / "millraced.service"], 60,
                   False)
        about_it = [line for line in done.stdout.splitlines() if "millraced" in line]
        self.assertEqual((done.returncode, about_it), (0, []))

    def test_quit_command(self):
        daemon = Daemon(self.work).start()
        try:
            daemon.ask("quit")
            self.assertEqual(daemon.process.wait(20), 0)
        finally:
            daemon.process.kill()

    def test_stale_sockets_are_replaced(self):
        daemon = Daemon(self.work)
        paths = [daemon.port("a"), daemon.control]
        for path in paths:
            stale = socket.socket(socket.AF_UNIX)
            stale.bind(path)
            stale.close()  # the file stays, nobody listens
        with daemon:
            self.assertEqual(len(daemon.ask("query-ports")), 1)

    def test_second_daemon_is_refused(self):
        first = Daemon(self.work)
        first.port("a")
        self.use(first)
        second = Child([settings.program("millraced"), "--config", first.path("toml")],
                       self.work / "second.log")
        self.use(second)
        self.assertEqual(second.wait(20), 1)
        self.one_error(self.work / "second.log", first.control)
        self.assertEqual(len(first.ask("query-ports")), 1)  # unharmed

    def test_second_user_of_an_image_is_refused(self):
        first = Daemon(self.work, "one")
        image = first.image("x", 1)
        first.disk("x", path=image)
        self.use(first)
        second = Daemon(self.work, "two")
        second.disk("x", path=image)
        with open(second.path("toml"), "w") as file:
            file.write(second.text())
        child = self.use(Child([settings.program("millraced"), "--config", second.path("toml")],
                               self.work / "second.log"))
        self.assertEqual(child.wait(20), 1)
        self.one_error(self.work / "second.log", image)
        self.assertEqual(len(first.ask("query-disks")), 1)  # unharmed
        for path in (second.control, second.socket("x")):
            self.assertFalse(os.path.exists(path), path)  # nothing half started is left

    def test_second_user_of_a_socket_is_refused(self):
        first = Daemon(self.work, "one")
        path = first.port("a")
        self.use(first)
        second = Daemon(self.work, "two")
        second.port("a", socket=path)
        with open(second.path("toml"), "w") as file:
            file.write(second.text())
        child = self.use(Child([settings.program("millraced"), "--config", second.path("toml")],
                               self.work / "second.log"))
        self.assertEqual(child.wait(20), 1)
        self.one_error(self.work / "second.log", path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)  # still the first one's

    def one_error(self, log, *words):
        """One line of the log is an error, and says these words."""
        with open(log) as file:
            errors = [line for line in file if " error: " in line]
        self.assertEqual(len(errors), 1, tail(log))
        for word in words:
            self.assertIn(word, errors[0])

    def test_exits_with_clients_connected(self):
        daemon = Daemon(self.work)
        path = daemon.disk("x", backend="ram", size="16MiB")
        daemon.start()
        machine = self.use(QtestQemu(self.work).blk(path).start())
        device = VirtioPci(machine, machine.virtio_devices()[0])
        device.negotiate(0)
        ring = device.queue(0)
        device.start()
        self.assertEqual(BlkDriver(device, ring).write(0, bytes(512)), BlkDriver.OK)
        daemon.stop()


class Millctl(SystemTest):
    def setUp(self):
        super().setUp()
        self.daemon = Daemon(self.work)
        self.daemon.port("web0", vlan=10)
        self.daemon.disk("web0-root", backend="ram", size="16MiB")
        self.use(self.daemon)

    def test_status(self):
        done = self.daemon.millctl("status")
        self.assertEqual(done.returncode, 0)
        for word in ("web0", "web0-root"):
            self.assertIn(word, done.stdout)
        for line in done.stdout.split("\n"):
            self.assertLessEqual(len(line), 80, line)

    def test_json(self):
        status = self.daemon.millctl_json("status")
        self.assertIn("web0", json.dumps(status))

    def test_add_and_remove(self):
        self.daemon.millctl("add", "port", "name=db0", f"socket={self.work / 'db0.sock'}")
        self.assertTrue(os.path.exists(self.work / "db0.sock"))
        self.daemon.millctl("remove", "port", "db0")
        self.assertFalse(os.path.exists(self.work / "db0.sock"))

    def test_exit_codes(self):
        """What a script can tell apart: done, refused (1), wrong usage (2), no daemon (3)."""
        self.assertEqual(self.daemon.millctl("status", check=False).returncode, 0)
        for words in (("remove", "port", "nobody"), ("remove", "disk", "web0"),
                      ("remove", "uplink", "nobody"), ("flush", "nobody"),
                      ("resize", "nobody", "1MiB"), ("resize", "web0-root", "1"),
                      ("add", "port", "name=x"), ("add", "uplink", "name=u", "device=net_none0"),
                      ("add", "disk", "name=web0", "backend=null", "size=1MiB", "socket=/tmp/x")):
            self.fails(1, *words)
        for words in ((), ("frobnicate",), ("add", "port"), ("add", "port", "name"),
                      ("add", "cable", "name=x"), ("remove", "port"), ("--colour", "status"),
                      ("status", "--interval", "0"), ("status", "--sort", "size"), ("raw",)):
            with self.subTest(words):
                done = self.daemon.millctl(*words, check=False)
                self.assertEqual(done.returncode, 2, done.stdout)
                self.assertTrue(done.stdout.strip())
        for words in (("flush", ""), ("pf", "apply", ""), ("remove", "port", ""),
                      ("resize", "web0-root", ""), ("remove", "port", "\udcff\x1b[2J"),
                      ("move", "web0", "0", "first")):
            self.fails(1, *words)
        self.daemon.control = "/none/such"
        for words in (("status",), ("status", "--watch"), ("events",), ("quit",), ("ports",)):
            self.fails(3, *words)

    def fails(self, status, *words):
        """With that status and one line."""
        with self.subTest(words):
            done = self.daemon.millctl(*words, check=False)
            self.assertEqual(done.returncode, status, done.stdout)
            self.assertRegex(done.stdout, r"\Amillctl: [^\n\x1b]+\n\Z")

    def test_what_is_no_daemon(self):
        """One that hangs up, one that greets or answers with something else: status 3."""
        self.daemon.control = self.work / "other.sock"
        good = b'{"QMP": {}}\n{"return": {}}\n'
        odd = (b'{"QMP": {}}\n{"error": 5}\n', good + b'{"return": 7}\n{"return": []}\n',
               good + b'{"return": {"ports": 1}}\n' * 2)
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(self.daemon.control)
            other.listen()

            def answer():
                for text in (b"", b"HELLO\n", b"{}\n", b'{"QMP": {}}\n', *odd):
                    client, _ = other.accept()
                    client.sendall(text)
                    while text in odd and client.recv(4096):
                        pass  # until it has enough
                    client.close()
            thread = threading.Thread(target=answer)
            thread.start()
            for _ in range(4 + len(odd)):
                self.fails(3, "status")
            thread.join()

    def test_watch_ends_with_sigint(self):
        command = [settings.program("millctl"), "--socket", self.daemon.control, "status",
                   "--watch"]
        child = self.use(Child(command, self.work / "watch.log", env={"TERM": "xterm"}))
        wait_for("a table", lambda: "web0" in tail(self.work / "watch.log"))
        child.signal(signal.SIGINT)
        self.assertEqual(child.wait(10), 0)


class Descriptors(SystemTest):
    def test_none_is_lost(self):
        """Front-ends come and go, disks come and go: the daemon's descriptors do not pile up."""
        daemon = Daemon(self.work)
        path = daemon.disk("x", backend="ram", size="16MiB")
        self.use(daemon)

        def visit(number):
            with QtestQemu(self.work, f"q{number}", reconnect=False).blk(path) as machine:
                machine.start()
                device = VirtioPci(machine, machine.virtio_devices()[0])
                device.negotiate(0)
                ring = device.queue(0)
                device.start()
                self.assertEqual(BlkDriver(device, ring).write(0, bytes(512)), BlkDriver.OK)
            daemon.ask("disk-add", name="extra", socket=daemon.socket("extra"), backend="ram",
                       size="1MiB")
            daemon.ask("disk-remove", name="extra")
            wait_for("the front-end to be gone",
                     lambda: not daemon.ask("query-disks")[0]["connected"])
            time.sleep(0.2)
            return daemon.process.descriptors()
        first = visit(0)
        self.assertEqual([visit(number) for number in range(1, 5)], [first] * 4)


if __name__ == "__main__":
    main()
