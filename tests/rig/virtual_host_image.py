"""What the virtual host boots: a stock kernel, unpacked, and an initramfs that mounts this
machine's own files. Made once, kept in the cache, complete or absent.

    python3 -m tests.rig.virtual_host_image
"""

import os
import shutil
import subprocess

from . import assets
from .process import RigError, run

HERE = os.path.dirname(os.path.abspath(__file__))
FLAVOUR = "generic"  # the cloud flavour has no 9p and no igb
# what the files come over is loaded by the init, one after the other; the rest beside the mounts
FIRST = ["virtio_pci", "9pnet_virtio", "9p", "overlay"]
LATER = ["kvm-amd", "vfio-pci", "vfio_iommu_type1", "igb", "e1000e", "nvme", "tun",
         "bonding", "8021q"]
APPLETS = ["sh", "mount", "insmod", "mkdir", "cat", "chroot", "poweroff", "stty", "ln", "ip",
           "sleep"]
PACKAGES = "qemu-system-x86 debootstrap busybox-static cpio kmod"


def image():
    """Answers (kernel, initramfs): paths in the cache."""
    _install()
    _, modules, version = assets.kernel(FLAVOUR)
    stamp = version
    for name in ("virtual_host_init.sh", os.path.basename(__file__)):
        with open(os.path.join(HERE, name)) as file:
            stamp += "\n" + file.read()

    path = assets.made_from("virtual-host", stamp, lambda path: _write_initramfs(
        os.path.join(path, "initramfs"), modules, version))
    return assets.unpacked_kernel(FLAVOUR), os.path.join(path, "initramfs")


def _install():
    """The packages, on a machine that lacks them."""
    if all(shutil.which(name) for name in ("debootstrap", "busybox", "cpio", "depmod")):
        return
    script = f". {HERE}/setup.sh; install_packages {PACKAGES} && need_package_lists"
    if subprocess.run(["bash", "-c", script]).returncode:
        raise RigError(f"the virtual host needs these packages: {PACKAGES}")


def _modules(modules, version, names):
    """The files to insert for `names`, each after what it depends on."""
    base = modules[:modules.rindex("/lib/modules/")]
    base = base[:-4] if base.endswith("/usr") else base
    files = []
    for name in names:
        shown = run(["modprobe", "-d", base, "-S", version, "--show-depends", name]).stdout
        for line in shown.splitlines():
            if line.startswith("insmod ") and line.split()[1] not in files:
                files.append(line.split()[1])
    return files


def _write_initramfs(path, modules, version):
    """Not compressed: unpacking would cost more than QEMU's copying does."""
    root = f"{path}.root"
    for name in ("bin", "modules", "proc", "sys", "dev", "machine", "scratch", "host"):
        os.makedirs(f"{root}/{name}")
    shutil.copy(shutil.which("busybox"), f"{root}/bin/busybox")
    for applet in APPLETS:
        os.symlink("busybox", f"{root}/bin/{applet}")
    listed = []
    for name, wanted in (("first", FIRST), ("later", LATER)):
        files = [file for file in _modules(modules, version, wanted) if file not in listed]
        listed += files
        for file in files:
            shutil.copy(file, f"{root}/modules/")
        with open(f"{root}/modules/{name}", "w") as file:
            file.writelines(f"{os.path.basename(module)}\n" for module in files)
    shutil.copy(f"{HERE}/virtual_host_init.sh", f"{root}/init")
    os.chmod(f"{root}/init", 0o755)
    subprocess.run(f"find . | cpio -o -H newc --quiet >{path}", shell=True, cwd=root, check=True)
    shutil.rmtree(root)


if __name__ == "__main__":
    print(*image())
