#!/usr/bin/env python3
"""Holds SPECIFICATION.md against the code and the tests.

    tests/spec_check.py [--ran] [SOURCE [BUILD]]

A row of a table with a column "held by" names the tests that hold its promise, separated by
commas:
    folder:Suite.Name                   a GoogleTest of that folder (`*` at the end: any)
    system:test_file.Class.test_name    a system test (class or test may be left out)
    bench:name                          a file bench/name.cpp, or a program bench/name
    check:word                          a step of ./check
It fails where a named test does not exist, with --ran also where it did not run and pass (unless
it is left to the full check), and where a bit that the code offers has no row."""

import ast
import fnmatch
import glob
import os
import re
import subprocess
import sys
import xml.etree.ElementTree

HERE = os.path.dirname(os.path.abspath(__file__))
KINDS = r"[a-z_]+"
REFERENCE = re.compile(rf"`?\b({KINDS}):([\w.*/-]+)`?")


def tables(text):
    """Every row of every table with a `held by` column: (line, promise, held by)."""
    header = None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.startswith("|"):
            header = None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if header is None:
            header = [cell.lower() for cell in cells]
        elif "held by" in header and not re.fullmatch(r"[-: ]*", cells[0]):
            at = header.index("held by")
            held = cells[at] if at < len(cells) else ""
            yield number, " ".join(cells[:at]), held


def system_tests(source):
    """test_file.Class.test_name of every system test, inherited ones too."""
    found = set()
    for path in glob.glob(os.path.join(source, "tests/system/test_*.py")):
        with open(path) as file:
            tree = ast.parse(file.read())
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}

        def methods(name):
            if name not in classes:
                return set()
            node = classes[name]
            own = {item.name for item in node.body if isinstance(item, ast.FunctionDef)
                   and item.name.startswith("test")}
            for base in node.bases:
                own |= methods(getattr(base, "id", ""))
            return own
        stem = os.path.basename(path)[:-3]
        for name in classes:
            found |= {f"{stem}.{name}.{method}" for method in methods(name)}
    return found


def unit_tests(build):
    """folder:Suite.Name of every GoogleTest that was built."""
    found = set()
    for binary in glob.glob(os.path.join(build, "*", "*_test")):
        if not os.access(binary, os.X_OK) or os.path.isdir(binary):
            continue
        folder = os.path.basename(os.path.dirname(binary))
        listing = subprocess.run([binary, "--gtest_list_tests"], text=True, timeout=120,
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
        suite = ""
        for line in listing.split("\n"):
            line = line.split("#")[0].rstrip()
            if line.endswith(".") and not line.startswith(" "):
                suite = line
            elif line.startswith("  "):
                found.add(f"{folder}:{suite}{line.strip()}")
    return found


def noted(build, what):
    """What the system tests wrote down in that build folder: "ran", or "left" to --full."""
    names = set()
    for path in glob.glob(os.path.join(build, "meson-logs", f"{what}-*.txt")):
        with open(path) as file:
            names |= {f"system:{line.strip()}" for line in file}
    return names


def ran(build):
    """What the last runs in that build folder ran and passed, by the same names."""
    passed = noted(build, "ran")
    for report in glob.glob(os.path.join(build, "meson-logs", "*.junit.xml")):
        for suite in xml.etree.ElementTree.parse(report).getroot().iter("testsuite"):
            folder = suite.get("name", "").split("/")[-1].split(":")[-1].strip()
            for case in suite.iter("testcase"):
                if case.find("failure") is None and case.find("skipped") is None:
                    passed.add(f"{folder}:{case.get('classname', '')}.{case.get('name')}")
                    passed.add(f"*:{case.get('name')}")
    return passed


def matches(reference, names):
    """Whether a reference names something in `names` (prefixes of whole words count)."""
    return any(name == reference or name.startswith(reference + ".")
               or fnmatch.fnmatchcase(name, reference) for name in names)


def constants(source, path, namespace):
    """The names of the feature constants in a header's namespace."""
    try:
        with open(os.path.join(source, path)) as file:
            text = file.read()
    except OSError:
        return set()
    inside = re.search(rf"namespace [\w:]*\b{namespace}\s*\{{(.*?)\n\}}", text, re.S)
    found = inside.group(1) if inside else ""
    return set(re.findall(r"constexpr std::uint64_t (\w+)\s*=", found))


def offered(source):
    """Every bit that a device or a session offers: (name, where)."""
    groups = [("net/device.cpp", "virtio/wire/net.hpp", "feature"),
              ("blk/device.cpp", "virtio/wire/blk.hpp", "feature"),
              ("net/device.cpp", "virtio/features.hpp", "feature"),
              ("blk/device.cpp", "virtio/features.hpp", "feature"),
              ("vhost/session_features.cpp", "vhost/wire.hpp", "protocol")]
    for user, header, namespace in groups:
        bits = set()
        for part in ("feature", "net_feature", "blk_feature", "protocol", namespace):
            bits |= constants(source, header, part)
        files = sorted(glob.glob(os.path.join(source, os.path.dirname(user), "*.cpp")))
        text = ""
        for path in files:
            if not path.endswith(("_test.cpp", "_fuzz.cpp")):
                with open(path) as file:
                    text += file.read()
        for bit in sorted(bits):
            if re.search(rf"(\bnf|\bbf|\bvf|feature|protocol|\w+)::{bit}\b", text):
                yield bit, os.path.dirname(user)


def main(arguments):
    want_ran = "--ran" in arguments
    words = [word for word in arguments if not word.startswith("--")]
    source = words[0] if words else os.path.dirname(HERE)
    build = words[1] if len(words) > 1 else os.path.join(source, "build")
    with open(os.path.join(source, "SPECIFICATION.md")) as file:
        text = file.read()
    rows, faults = list(tables(text)), []
    known = unit_tests(build) | {f"system:{name}" for name in system_tests(source)}
    for path in glob.glob(os.path.join(source, "bench/*")):
        known.add("bench:" + os.path.splitext(os.path.basename(path))[0])
    with open(os.path.join(source, "check")) as file:
        known |= {f"check:{word}" for word in re.findall(r'\bstep "?(\w+)', file.read())}
    passed = ran(build) if want_ran else set()
    left = noted(build, "left") if want_ran else set()
    references = waiting = 0
    for number, promise, held in rows:
        named = REFERENCE.findall(held)
        if not named:
            faults.append(f"SPECIFICATION.md:{number}: no test holds: {promise}")
        for kind, name in named:
            references += 1
            reference = f"{kind}:{name}"
            if not matches(reference, known):
                faults.append(f"SPECIFICATION.md:{number}: there is no test {reference}")
            elif want_ran and kind not in ("bench", "check"):
                if (matches(reference, passed) or matches(f"*:{name}", passed)
                        or matches(f"*:{name.split('.')[-1]}", passed)):
                    continue
                if matches(reference, left):
                    waiting += 1
                else:
                    faults.append(f"SPECIFICATION.md:{number}: {reference} did not run and pass")
    promises = " ".join(promise for _, promise, _ in rows).lower()
    bits = set(offered(source))
    for bit, where in sorted(bits):
        if not re.search(rf"(?<![a-z0-9]){bit.lower()}(?![a-z0-9_])",
                         re.sub(r"(virtio|vhost_user|vhost)_[a-z0-9]*_?f_|protocol_f_", " ",
                                promises)):
            faults.append(f"{where}/ offers {bit}, which has no row in SPECIFICATION.md")
    for fault in faults:
        print(fault)
    print(f"spec_check: {len(rows)} promises, {references} references, {len(bits)} offered bits, "
          f"{len(faults)} faults" + (f", {waiting} left to ./check --full" if waiting else ""))
    return 1 if faults or not rows else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
