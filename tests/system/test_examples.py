"""Every file in examples/ is run as it stands: the daemon with the file, QEMU with the command
line that the file carries (lines `#$ qemu-system-x86_64 ...`, `\\` at the end goes on)."""

import glob
import os
import re
import shlex
import sys
import tomllib

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.rig import assets, settings
from tests.rig.case import SystemTest, main
from tests.rig.daemon import Daemon
from tests.rig.process import Child, wait_for

FOLDER = os.path.join(settings.SOURCE, "examples")


def commands(text):
    """The command lines in an example's comments."""
    lines = [line[2:].strip() for line in text.split("\n") if line.startswith("#$")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [shlex.split(line) for line in whole.split("\n") if line.strip()]


class Examples(SystemTest):
    def test_each_has_a_test(self):
        for path in glob.glob(os.path.join(FOLDER, "*.toml")):
            name = os.path.basename(path)[:-5].replace("-", "_")
            self.assertTrue(hasattr(self, f"test_{name}"), path)

    def test_minimal(self):
        self.example("minimal.toml")

    def test_first_light(self):
        self.example("first-light.toml")

    def test_many_queues(self):
        self.example("many-queues.toml")

    def test_trunk(self):
        self.example("trunk.toml")

    def moved(self, text):
        """The text with its files in our own folder."""
        for folder in ("/run/millrace/", "/var/lib/millrace/"):
            text = text.replace(folder, self.work.path + "/")
        return text

    def example(self, name):
        with open(os.path.join(FOLDER, name)) as file:
            text = self.moved(file.read())
        config = tomllib.loads(text)
        for disk in config.get("disk", []):
            if "path" in disk and not os.path.exists(disk["path"]):
                if not disk["path"].startswith(self.work.path):
                    self.skipTest(f"skipped: {disk['path']} is not on this machine")
                with open(disk["path"], "wb") as file:
                    file.truncate(64 << 20)
        for uplink in config.get("uplink", []):
            interface = re.search(r"iface=(\w+)", uplink["device"])
            if "af_packet" in uplink["device"] and not os.path.exists(
                    f"/sys/class/net/{interface.group(1)}"):
                text = text.replace(f"iface={interface.group(1)}", "iface=lo")
        daemon = Daemon(self.work)
        daemon.control = config.get("control", {}).get("socket", daemon.control)
        if "control" not in config:
            text = f'[control]\nsocket = "{daemon.control}"\n' + text
        with open(daemon.path("toml"), "w") as file:
            file.write(text)
        daemon.start(config=daemon.path("toml"))
        self.use(daemon)
        found = commands(text)
        self.assertGreaterEqual(len(found), 1, f"{name} carries no command line")
        machines = [self.use(Child(self.runnable(words), self.work / f"qemu{number}.log"))
                    for number, words in enumerate(found)]
        count = len(config.get("port", [])) + len(config.get("disk", []))
        units = wait_for("all units to be started", lambda: len(
            daemon.ask("query-sessions")) == count and daemon.ask("query-sessions"))
        wait_for("all devices to be started by their guests' drivers", lambda: all(
            machine.expect_running() for machine in machines) and all(
            each["phase"] == "running" for each in daemon.ask("query-sessions")), 240, 0.5)
        self.report(f"{name}: {len(units)} devices, {len(found)} QEMUs")

    def runnable(self, words):
        """The example's own command line, for a machine without a screen."""
        self.assertEqual(words[0], "qemu-system-x86_64")
        vmlinuz = assets.kernel()[0]
        words = [re.sub(r"\bvmlinuz\b$", vmlinuz, word) for word in words]
        words = [re.sub(r"^\S*initrd(\.img|\.gz)?$", assets.initramfs(), word)
                 if index and words[index - 1] == "-initrd" else word
                 for index, word in enumerate(words)]
        words = [vmlinuz if index and words[index - 1] == "-kernel" else word
                 for index, word in enumerate(words)]
        if "-accel" in words:
            at = words.index("-accel")
            del words[at:at + 2]
        words = [word.replace(",accel=kvm", "").replace("accel=kvm,", "") for word in words
                 if word != "-enable-kvm"]
        if "-cpu" in words and settings.accelerator() == "tcg":
            words[words.index("-cpu") + 1] = "max"
        return [settings.qemu(), *words[1:], "-accel", settings.accelerator(),
                "-display", "none"]


if __name__ == "__main__":
    main()
