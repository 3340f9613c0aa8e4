"""PCI functions as the kernel's sysfs has them, and which driver has them."""

import os

FUNCTIONS = "/sys/bus/pci/devices"


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def read(path):
    with open(path) as file:
        return file.read().strip()


def driver_of(address):
    link = f"{FUNCTIONS}/{address}/driver"
    return os.path.basename(os.readlink(link)) if os.path.islink(link) else None


def bind(address, driver):
    """Takes the function from whoever has it; a driver of None: nobody gets it."""
    if driver_of(address):
        write(f"{FUNCTIONS}/{address}/driver/unbind", address)
    write(f"{FUNCTIONS}/{address}/driver_override", f"{driver or ''}\n")
    if driver:
        write("/sys/bus/pci/drivers_probe", address)


def give(address, driver):
    """Binds a function to a driver that has not got it yet."""
    if driver_of(address) != driver:
        bind(address, driver)
