"""millrace-bench report: a page and a table of what compare has written.

    millrace-bench report RESULT.json [--html FILE] [--markdown FILE] [--svg FILE]

The page has no resource outside of itself; the picture is its plot of ratios. Without a file the
table goes to standard output."""

import argparse
import json

from tests.rig.process import RigError

from .page import page, picture
from .tables import markdown


def load(path):
    try:
        with open(path) as file:
            seen = json.load(file)
    except OSError as error:
        raise RigError(f"report: {path}: {error.strerror}") from None
    except ValueError as error:
        raise RigError(f"report: {path} is not JSON: {error}") from None
    if not isinstance(seen, dict) or seen.get("millrace_bench") != 1 or \
            not isinstance(seen.get("rows"), list):
        raise RigError(f"report: {path} is not what millrace-bench compare --json writes")
    return seen


def write(path, text):
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise RigError(f"report: {path}: {error.strerror}") from None


def main(arguments):
    parser = argparse.ArgumentParser(prog="millrace-bench report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", help="a file that millrace-bench compare --json has written")
    parser.add_argument("--html", help="where the page goes")
    parser.add_argument("--markdown", help="where the table goes")
    parser.add_argument("--svg", help="where the picture of the ratios goes")
    options = parser.parse_args(arguments)
    seen = load(options.result)
    try:
        table, whole = markdown(seen["rows"]), page(seen)
        drawn = picture(seen) if options.svg else None
    except (KeyError, TypeError, AttributeError) as error:
        raise RigError(f"report: {options.result}: a row lacks {error}") from None
    if options.html:
        write(options.html, whole)
    if options.markdown:
        write(options.markdown, table)
    if options.svg:
        write(options.svg, drawn)
    if not options.html and not options.markdown and not options.svg:
        print(table, end="")
    return 0
