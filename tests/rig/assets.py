"""What guests are made of: Debian's own kernels, a small initramfs, a newer QEMU. Made once,
kept in a cache, each part complete or absent.

    python3 -m tests.rig.assets [kernel FLAVOUR | qemu10 | all]
"""

import contextlib
import fcntl
import glob
import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import time

from .process import RigError, run

HERE = os.path.dirname(os.path.abspath(__file__))
MODULES = ["virtio_pci", "virtio_net", "virtio_blk", "ext4", "8021q", "failover", "net_failover",
           "virtio-rng", "virtio_console", "virtio_balloon", "virtio_mem",
           "button", "evdev", "pvpanic-mmio",
           "igbvf",  # of the generic flavour alone
           "crc32c_generic"]  # ext4 asks the kernel for it by another name: no dependency
PROGRAMS = ["/usr/bin/iperf3", "/usr/sbin/ethtool", "/usr/sbin/mkfs.ext4", "/usr/sbin/e2fsck",
            "/usr/sbin/ip"]
FLAVOURS = {"cloud": "linux-image-cloud-amd64", "generic": "linux-image-amd64"}
BACKPORTED = {"cloud-6.12": "linux-image-6.12-cloud-amd64",
              "generic-6.12": "linux-image-6.12-amd64"}
SUITE = "trixie"
XZ = b"\xfd7zXZ\x00"


def folder():
    """The cache's folder: MILLRACE_CACHE, or the user's own cache folder."""
    chosen = os.environ.get("MILLRACE_CACHE")
    if not chosen:
        chosen = os.path.join(os.environ.get("XDG_CACHE_HOME") or "/var/cache", "millrace")
    os.makedirs(chosen, exist_ok=True)
    return chosen


def made_from(name, stamp, make):
    """The cache's folder of what `make(path)` makes from `stamp`: two source trees may share a
    cache without undoing each other's work. What nobody asked for in a week goes."""
    key = hashlib.sha256(stamp.encode()).hexdigest()[:12]
    path = os.path.join(folder(), f"{name}-{key}")
    with locked(name):
        if not is_complete(path, stamp):
            shutil.rmtree(path, ignore_errors=True)
            os.makedirs(path)
            make(path)
            complete(path, stamp)
        os.utime(path)
        for other in glob.glob(os.path.join(folder(), f"{name}-{'[0-9a-f]' * 12}")):
            if os.stat(other).st_mtime < time.time() - 7 * 86400:
                shutil.rmtree(other, ignore_errors=True)
    return path


@contextlib.contextmanager
def locked(name):
    with open(os.path.join(folder(), f".{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_complete(path, stamp):
    with contextlib.suppress(OSError):
        with open(os.path.join(path, ".complete")) as file:
            return file.read() == stamp
    return False


def complete(path, stamp):
    with open(os.path.join(path, ".complete"), "w") as file:
        file.write(stamp)


def kernel_package(flavour):
    """The package of the newest kernel of that flavour that apt knows."""
    listing = run(["apt-cache", "depends", {**FLAVOURS, **BACKPORTED}[flavour]], check=False).stdout
    found = re.search(r"Depends: (linux-image-\d\S*)", listing)
    if not found:
        raise RigError(f"apt knows no kernel of the flavour {flavour}; try: apt-get update")
    return found.group(1)


def kernel(flavour="cloud"):
    """Debian's own kernel, unpacked. Answers (vmlinuz, folder of its modules, version)."""
    root = os.path.join(folder(), f"kernel-{flavour}")
    with locked(f"kernel-{flavour}"):
        kept = os.path.join(root, ".complete")
        if not os.path.exists(kept):
            _unpack_kernel(kernel_package(flavour), root)
    with open(kept) as file:
        version = file.read().strip()
    modules = glob.glob(f"{root}/lib/modules/*") + glob.glob(f"{root}/usr/lib/modules/*")
    return f"{root}/boot/vmlinuz-{version}", modules[0], version


def unpacked_kernel(flavour="cloud"):
    """The ELF file inside the kernel's image, which is entered through PVH: Debian's XZ takes an
    emulated processor 3 s to unpack, and ten in an emulated machine's guest. Where it is packed
    otherwise the image serves. Answers its path."""
    vmlinuz, _, version = kernel(flavour)
    path = made_from(f"unpacked-{flavour}", f"{version} ELF",
                     lambda path: _write_kernel(vmlinuz, os.path.join(path, "kernel")))
    return os.path.join(path, "kernel")


def _write_kernel(vmlinuz, path):
    with open(vmlinuz, "rb") as file:
        data = file.read()
    # Linux, Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length
    start = ((data[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", data, 0x248)
    payload = data[start + offset:start + offset + length]
    if payload.startswith(XZ):
        data = lzma.LZMADecompressor().decompress(payload)
        if not data.startswith(b"\x7fELF"):
            raise RigError(f"{vmlinuz}: what is packed in it is no ELF file")
    with open(path, "wb") as file:
        file.write(data)


def _unpack_kernel(package, root):
    shutil.rmtree(root, ignore_errors=True)
    fresh = root + ".new"
    shutil.rmtree(fresh, ignore_errors=True)
    os.makedirs(fresh)
    run(["apt-get", "download", "-q", package], timeout=600, cwd=fresh)
    deb = glob.glob(f"{fresh}/*.deb")[0]
    run(["dpkg", "-x", deb, fresh], timeout=300)
    os.unlink(deb)
    version = os.path.basename(glob.glob(f"{fresh}/boot/vmlinuz-*")[0])[len("vmlinuz-"):]
    run(["depmod", "-b", fresh, version])
    complete(fresh, version)
    os.rename(fresh, root)


def _module_files(modules, version):
    base = modules[:modules.rindex("/lib/modules/")]
    if base.endswith("/usr"):
        base = base[:-4]
    seen = []
    for name in MODULES:
        shown = run(["modprobe", "-d", base, "-S", version, "--show-depends", name], check=False)
        for line in shown.stdout.splitlines():
            if line.startswith("insmod ") and line.split()[1] not in seen:
                seen.append(line.split()[1])
    return seen


def _libraries(program):
    listing = run(["ldd", program]).stdout
    return re.findall(r"(/\S+) \(0x", listing)


def initramfs(flavour="cloud"):
    """The guest's whole file system, not packed: unpacking costs more than copying does. Answers
    its path."""
    _, modules, version = kernel(flavour)
    with open(os.path.join(HERE, "init.sh")) as init, open(__file__) as own:
        stamp = "\n".join([version, init.read(), own.read()])
    path = made_from(f"initramfs-{flavour}", stamp,
                     lambda path: _make_initramfs(path, modules, version))
    return os.path.join(path, "initrd")


def _copy(source, root):
    target = root + source
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copy(os.path.realpath(source), target)


def _make_initramfs(path, modules, version):
    root = os.path.join(path, "root")
    for name in ("bin", "sbin", "usr/bin", "usr/sbin", "proc", "sys", "dev", "tmp", "mnt", "run",
                 "etc", "root", "lib64"):
        os.makedirs(os.path.join(root, name))
    shutil.copy("/usr/bin/busybox" if os.path.exists("/usr/bin/busybox") else "/bin/busybox",
                f"{root}/bin/busybox")
    for program in PROGRAMS:
        _copy(program, root)
        for library in _libraries(program):
            _copy(library, root)
    for applet in run([f"{root}/bin/busybox", "--list"]).stdout.split():
        if not any(os.path.basename(program) == applet for program in PROGRAMS):
            os.symlink("busybox", f"{root}/bin/{applet}") if applet != "busybox" else None
    os.symlink("/bin/busybox", f"{root}/sbin/modprobe")  # where the kernel itself looks for it
    for file in _module_files(modules, version):
        _copy_module(file, root)
    for index in glob.glob(f"{modules}/modules.builtin*") + glob.glob(f"{modules}/modules.order"):
        shutil.copy(index, f"{root}/lib/modules/{version}/")
    run(["depmod", "-b", root, version])
    shutil.copy(os.path.join(HERE, "init.sh"), f"{root}/init")
    os.chmod(f"{root}/init", 0o755)
    with open(f"{root}/etc/passwd", "w") as file:
        file.write("root:x:0:0:root:/:/bin/sh\n")
    subprocess.run(f"find . | cpio -o -H newc --quiet >{path}/initrd", shell=True, cwd=root,
                   check=True)
    shutil.rmtree(root)


def _copy_module(file, root):
    target = root + file[file.rindex("/lib/modules/"):]
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copy(file, target)


def _mirror():
    """Where this machine's own apt gets Debian from."""
    for line in run(["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)"],
                    check=False).stdout.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in ("bookworm", "stable") and words[2] == "main":
            return words[0]
    raise RigError("apt is told of no place that has Debian's main archive")


def qemu10():
    """QEMU of Debian 13, as a program that can be run like the machine's own. Answers its path."""
    root = os.path.join(folder(), SUITE)
    wrapper = os.path.join(folder(), "qemu10")
    with locked(SUITE):
        if not is_complete(root, SUITE):
            shutil.rmtree(root, ignore_errors=True)
            fresh = root + ".new"
            shutil.rmtree(fresh, ignore_errors=True)
            run(["debootstrap", "--variant=minbase", "--include=qemu-system-x86", SUITE, fresh,
                 _mirror()], timeout=900)
            complete(fresh, SUITE)
            os.rename(fresh, root)
        _write_wrapper(root, wrapper)
    return wrapper


def _write_wrapper(root, wrapper):
    """Its own loader and libraries, the machine's own files: sockets and images are where they
    are, nothing is mounted."""
    libraries = f"{root}/usr/lib/x86_64-linux-gnu"
    text = f"""#!/bin/sh
export QEMU_MODULE_DIR={libraries}/qemu
exec {libraries}/ld-linux-x86-64.so.2 --argv0 qemu-system-x86_64 \\
  --library-path {libraries}:{libraries}/pulseaudio {root}/usr/bin/qemu-system-x86_64 \\
  -L {root}/usr/share/qemu -L {root}/usr/share/seabios -L {root}/usr/lib/ipxe/qemu "$@"
"""
    fresh = f"{wrapper}.{os.getpid()}"
    with open(fresh, "w") as file:
        file.write(text)
    os.chmod(fresh, stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
    os.rename(fresh, wrapper)


def main(arguments):
    what = arguments[0] if arguments else "all"
    if what == "all":
        for flavour in FLAVOURS:
            print(initramfs(flavour))
        print(qemu10())
    elif what == "kernel":
        print(initramfs(arguments[1] if len(arguments) > 1 else "cloud"))
    elif what == "qemu10":
        print(qemu10())
    else:
        print(__doc__)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
