"""Linux binaries of the machines that cross/build knows, read by binutils."""

import subprocess
import sys

# By the number in an ELF file: a name, and the prefix of Debian's binutils for it.
MACHINES = {40: ("arm", "arm-linux-gnueabihf-"), 62: ("x86-64", "x86_64-linux-gnu-"), 183: ("aarch64", "aarch64-linux-gnu-")}


def machine(path):
    """Name and prefix of the machine that a binary is for."""
    with open(path, "rb") as file:
        header = file.read(20)
    number = int.from_bytes(header[18:20], "little")
    if header[:4] != b"\x7fELF" or number not in MACHINES:
        sys.exit(f"{path}: expected an ELF file for one of {', '.join(name for name, _ in MACHINES.values())}")
    return MACHINES[number]


def objdump(path, *options):
    """The lines that objdump says of a binary."""
    command = [machine(path)[1] + "objdump", *options, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield from process.stdout
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}")
