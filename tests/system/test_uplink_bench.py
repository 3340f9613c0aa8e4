"""bench/uplinks, shortened: every contestant has the function and is measured both ways, and the
payloads that millraced copies are those that its mode says. Runs in the virtual host."""

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from bench.table.wire import DEVICES
from tests.rig import inside, settings
from tests.rig.case import SystemTest, long
from tests.rig.process import run

BENCH = os.path.join(settings.SOURCE, "bench", "uplinks")


class Uplinks(SystemTest):
    def bench(self, *words):
        """Answers its rows by direction, who, and what it printed."""
        path = str(self.work / "result.json")
        done = run([BENCH, "--rounds", 1, "--seconds", 0.2, "--json", path, *words], 240)
        with open(path) as file:
            found = json.load(file)
        self.assertEqual(found["errors"], [], done.stdout)
        self.assertTrue(found["versions"]["millraced"])
        return {(row["row"], row["who"]): row for row in found["rows"]}, done.stdout

    def check(self, rows, text, copies):
        """`copies` of (out, in) by mode."""
        self.assertEqual(len(rows), 2 * (len(copies) + 2), text)
        for row in rows.values():
            self.assertGreater(row["cycles"], 0, row)
            self.assertGreater(row["per_second"], 0, row)
        for mode, wanted in copies.items():
            for row, most in zip(("U1", "U2"), wanted):
                seen = rows[row, mode]
                self.assertAlmostEqual(seen["copies"], most, delta=0.2, msg=seen)
                self.assertGreater(seen["beside testpmd"]["median"], 0, seen)
        self.report("; ".join(f"{row} {who}: {seen['cycles']:.0f} cycles" for (row, who), seen in
                              rows.items()))

    @long("figures, which want a machine that is not busy")
    def test_virtual_function(self):
        rows, text = self.bench("--sizes", 1500)
        self.check(rows, text, {"direct": (0, 0), "zero_copy": (0, 1), "copy": (1, 1)})
        self.assertIn("| U2 | wire to guest, 1500 B | millraced, direct |", text)

    @long("figures, which want a machine that is not busy")
    def test_jumbo(self):
        """The physical function; frames above 1500 bytes are copied when they come."""
        rows, text = self.bench("--sizes", 9000)
        self.check(rows, text, {"direct": (0, 1), "zero_copy": (0, 1), "copy": (1, 1)})

    def test_refusals(self):
        for words in (("--sizes", "65"), ("--rounds", "0"), ("--json", "/nowhere/file")):
            done = run([BENCH, *words], check=False)
            self.assertEqual(done.returncode, 2, done.stdout)


if __name__ == "__main__":
    inside.main((), devices=DEVICES)
