"""What `millrace-bench compare` and `millrace-bench report` run."""

import sys

from tests.rig import process
from tests.rig.process import RigError

from . import compare, report

WORDS = {"compare": compare.main, "report": report.main}


def run(arguments):
    if not arguments or arguments[0] not in WORDS:
        sys.exit(f"python3 -m bench.table: say one of {', '.join(WORDS)}")
    process.install_signal_handlers()
    try:
        return WORDS[arguments[0]](arguments[1:])
    except RigError as error:
        lines = str(error).splitlines()
        print("\n".join([f"millrace-bench: {lines[0]}", *lines[1:]]), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
