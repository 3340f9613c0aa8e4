#!/usr/bin/env python3
"""Style that matters, as a test: the include table, one door per dependency, sizes, words.

    tests/tidy.py [SOURCE FOLDER]                what can be read off the text
    tests/tidy.py --headers COMPILER [SOURCE]    each header compiles alone
"""

import concurrent.futures
import os
import re
import subprocess
import sys

# folder -> what its files may include, besides itself
ALL = ["base", "virtio", "vhost", "switch", "net", "blk", "guest", "vfio", "sriov"]
MAY_INCLUDE = {
    "base": [], "virtio": ["base"], "vhost": ["base", "virtio"], "switch": ["base"],
    "net": ["base", "virtio", "switch"], "blk": ["base", "virtio"],
    "guest": ["base", "virtio"], "vfio": ["base"], "sriov": ["base"], "qmp": ["base"],
    "vmm": ["base", "virtio", "vhost", "vfio", "qmp"], "daemon": ALL + ["qmp"],
    "bench": ALL + ["vmm", "daemon"], "tests": ALL + ["vmm", "daemon", "bench"],
}
TEST = r"(_test\.cpp|_fuzz\.cpp|(^|/)testing/[^/]*|_bench\.cpp)$"
DOORS = [  # a dependency's headers, and the files that may include them
    (r"rte_\w+\.h", r"^(switch|net|bench)/|^daemon/eal|^tests/"),
    (r"liburing\.h", r"^blk/uring|^bench/limit_uring"),
    (r"linux/kvm\.h", r"^vmm/kvm"),
    (r"linux/vfio\.h", r"^vfio/"),
    (r"libmnl/libmnl\.h", r"^sriov/netlink"),
    (r"g(test|mock)/.*", TEST),
    (r"benchmark/.*", r"^bench/"),
]
WIRE = re.compile(r"(^|/)wire/[^/]*\.hpp$|(^|/)wire\.hpp$")
WIRE_MAY = re.compile(r"<(cstdint|cstddef|type_traits)>|\"base/endian\.hpp\"|"
                      r"\"[\w/]*wire[\w/]*\.hpp\"")
# the data path: what is here runs on a reactor (set-up by control lives in other files)
REACTOR = re.compile(
    r"^(base/reactor|virtio/(chain|chain_builder|split_ring|packed_ring|shared)|"
    r"switch/(bridge|link|gso|packet|mac_table|direct_receive|direct_sink)|"
    r"net/(tx_worker|rx_port|rx_port_direct)|"
    r"blk/(worker|request|in_flight)|guest/(allowance|byte_ring|\w+_worker))\.(cpp|hpp)$")
REACTOR_BANNED = [
    (re.compile(r"\bstd::(recursive_|shared_|timed_)?mutex\b"), "a mutex"),
    (re.compile(r"\bstd::(basic_)?string\b(?!_view)"), "std::string"),
    (re.compile(r"\bstd::function\b"), "std::function"),
    (re.compile(r"(?<![\w\"])new\s+[A-Za-z_:]"), "new"),
]
LINE_MAX, COMMENT_MAX, FUNCTION_MAX, FILE_MAX, MESON_MAX = 100, 110, 70, 700, 45
SKIP_FOLDERS = {".git", ".cache", "__pycache__", "subprojects", ".ci"}


def sources(root):
    """Every file of the project that the rules are about, relative to `root`."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in SKIP_FOLDERS
                            and not f.startswith("build"))
        for name in sorted(files):
            if name.endswith((".cpp", ".hpp", ".h", ".py", ".sh", ".build", ".md")):
                yield os.path.relpath(os.path.join(folder, name), root)


def strip_text(line):
    """A line of C++ without strings and comments, for the word rules."""
    line = re.sub(r'"(\\.|[^"\\])*"', '""', line)
    line = re.sub(r"'(\\.|[^'\\])'", "''", line)
    return line.split("//")[0]


class Tidy:
    def __init__(self, root):
        self.root, self.faults = root, []

    def fault(self, path, line, text):
        self.faults.append(f"{path}:{line}: {text}")

    def run(self):
        count = 0
        for path in sources(self.root):
            with open(os.path.join(self.root, path), encoding="utf-8") as file:
                lines = file.read().split("\n")
            count += 1
            if path.endswith((".cpp", ".hpp", ".h")):
                self.cpp(path, lines)
            self.any(path, lines)
        return count

    def any(self, path, lines):
        if path.endswith(".md"):
            return
        for number, line in enumerate(lines, 1):
            # prose may run a little longer than code; a web address cannot be broken
            prose = "//" in line[:LINE_MAX] or line.lstrip().startswith("#")
            most = COMMENT_MAX if prose or path.endswith("meson.build") else LINE_MAX
            if len(line) > most and "://" not in line:
                self.fault(path, number, f"{len(line)} characters, at most {most}")
            if line != line.rstrip():
                self.fault(path, number, "blanks at the end of the line")
            if re.search(r"\b(TODO|FIXME|XXX)\b(?!\()", line) and path != "tests/tidy.py":
                self.fault(path, number, "TODO without an owner: write TODO(name)")
        if len(lines) > FILE_MAX + 1:
            self.fault(path, len(lines), f"{len(lines)} lines, at most {FILE_MAX}")
        if path.endswith("meson.build") and path.split("/")[0] in MAY_INCLUDE:
            if path.count("/") == 1 and path.split("/")[0] not in ("tests", "bench"):
                if len(lines) > MESON_MAX + 1:
                    self.fault(path, len(lines), f"a folder's meson.build has {MESON_MAX} lines")

    def cpp(self, path, lines):
        self.includes(path, lines)
        self.functions(path, lines)
        if path.endswith(".hpp") and "#pragma once" not in lines:
            self.fault(path, 1, "no #pragma once")
        if REACTOR.search(path):
            for number, line in enumerate(lines, 1):
                text = strip_text(line)
                if re.search(r"\bstatic\b.*\bmake\b|reactor-tidy: control", line):
                    continue  # set-up by the control thread, said so on the line
                for pattern, what in REACTOR_BANNED:
                    if pattern.search(text):
                        self.fault(path, number, f"{what} in a file that runs on a reactor")

    def includes(self, path, lines):
        folder = path.split("/")[0]
        for number, line in enumerate(lines, 1):
            found = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
            if not found:
                continue
            quoted, name = found.group(1) == '"', found.group(2)
            for pattern, where in DOORS:
                if re.fullmatch(pattern, name) and not re.search(where, path):
                    self.fault(path, number, f"{name} may not be included here")
            if WIRE.search(path) and not WIRE_MAY.search(line):
                self.fault(path, number, f"a wire header may not include {name}")
            if not quoted or folder not in MAY_INCLUDE:
                continue
            other = name.split("/")[0]
            if other not in MAY_INCLUDE:
                self.fault(path, number, f'"{name}": write the path from the project\'s root')
            elif other != folder and other not in MAY_INCLUDE[folder]:
                if not (re.search(TEST, path) and "testing/" in name):
                    self.fault(path, number, f"{folder}/ may not include {other}/")

    def functions(self, path, lines):
        """Heuristic: a body opens on a line that ends in `) {` or the like and closes at the same
        indentation."""
        begin = re.compile(r"^(\s*)(?!namespace|class|struct|enum|union|extern|if|for|while|"
                           r"switch|else|do|try|catch|return|\}).*[)\w>&]\s*(const|noexcept|"
                           r"override|final|mutable|&&|&|->\s*[\w:<>*&\s]+|\s)*\{$")
        for number, line in enumerate(lines):
            found = begin.match(line)
            if not found or "(" not in "".join(lines[max(0, number - 4):number + 1]):
                continue
            if re.match(r"\s*(class|struct|enum|namespace|union)\b", line) or "[" in line[:2]:
                continue
            indent = found.group(1)
            for end in range(number + 1, len(lines)):
                if lines[end].startswith(indent + "}"):
                    length = end - number + 1
                    if length > FUNCTION_MAX:
                        self.fault(path, number + 1,
                                   f"a function of {length} lines, at most {FUNCTION_MAX}")
                    break


def included_first(root):
    """Headers that some source includes before all else: the build compiles those alone."""
    first = set()
    for path in sources(root):
        if path.endswith(".cpp"):
            with open(os.path.join(root, path), encoding="utf-8") as file:
                match = re.search(r'^#include (.*)$', file.read(), re.M)
            if match:
                first.add(match.group(1).strip('"'))
    return first


def headers(compiler, root):
    """Compiles each header alone that the build does not. Answers the faults."""
    first = included_first(root)
    found = [path for path in sources(root) if path.endswith(".hpp") and path not in first]
    flags = subprocess.run(["pkg-config", "--cflags", "libdpdk"], text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.split()

    def one(path):
        done = subprocess.run(
            [*compiler.split(), "-std=c++20", "-fsyntax-only", "-D_GNU_SOURCE", "-Wall",
             "-x", "c++", "-I", root, *flags, "-include", os.path.join(root, path), "/dev/null"],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return f"{path}: does not compile alone\n{done.stdout[:1500]}" if done.returncode else None
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return len(found), [fault for fault in pool.map(one, found) if fault]


def main(arguments):
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if arguments and arguments[0] == "--headers":
        count, faults = headers(arguments[1], arguments[2] if len(arguments) > 2 else own)
    else:
        tidy = Tidy(arguments[0] if arguments else own)
        count, faults = tidy.run(), tidy.faults
    for fault in faults:
        print(fault)
    print(f"tidy: {count} files, {len(faults)} faults")
    return 1 if faults or not count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
