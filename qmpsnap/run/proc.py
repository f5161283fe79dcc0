"""Reads from /proc which processes this host has, what each one runs, and which sockets it has open.

Blocking. Of a process of another user only the command line and the user may be readable; of a process in
another PID namespace, nothing.
"""

# Paths of /proc are the kernel's:
# ruff: noqa: PTH115, PTH208

from __future__ import annotations

import os
import pwd
from collections.abc import Collection

from qmpsnap.model.host_process import HostProcess, program_of
from qmpsnap.run.safe_open import kernel_text

_EFFECTIVE = 2  # of "Uid:", real, effective, saved and file system id


def pids() -> list[int]:
    """The ids of all processes that we see, in order."""
    return sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def arguments(pid: int) -> tuple[str, ...]:
    """The process's command line; empty if it has ended, is the kernel's, or may not be read."""
    return tuple(_zero_separated(f"/proc/{pid}/cmdline"))


def environment(pid: int, variable: str) -> str:
    """A variable of the environment with which the process was started; "" if it is unset or unreadable."""
    start = f"{variable}="
    words = _zero_separated(f"/proc/{pid}/environ")
    return next((word.removeprefix(start) for word in words if word.startswith(start)), "")


def host_process(pid: int) -> HostProcess:
    """The process with its program and its user, as far as they can be read."""
    return HostProcess(pid, program_of(arguments(pid)), user_of(pid))


def user_of(pid: int) -> str:
    """The user that the process runs as, by name, else by number; "" if it has ended."""
    try:
        lines = kernel_text(f"/proc/{pid}/status").splitlines()
    except OSError:
        return ""
    number = next((int(line.split()[_EFFECTIVE]) for line in lines if line.startswith("Uid:")), None)
    return "" if number is None else user_name(number)


def user_name(number: int) -> str:
    """The name of a user of this host; the number if there is no name for it."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def is_stopped(pid: int) -> bool:
    """Whether a signal or a debugger has stopped the process."""
    try:
        return kernel_text(f"/proc/{pid}/stat").rpartition(")")[2].split()[0] in {"T", "t"}
    except (OSError, IndexError):
        return False


def sockets(pid: int) -> dict[int, int] | None:
    """The inode of each socket that the process has open, by descriptor; None if we may not look."""
    directory = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(directory)
    except OSError:
        return None
    found = {}
    for number in numbers:
        try:
            target = os.readlink(f"{directory}/{number}")
        except OSError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            found[int(number)] = int(target[len("socket:[") : -1])
    return found


def socket_owners(inodes: Collection[int]) -> dict[int, list[int]]:
    """The processes that have these sockets open, by the socket's inode; of what we may not see, none."""
    owners: dict[int, list[int]] = {}
    if inodes:
        for pid in pids():
            for inode in set((sockets(pid) or {}).values()).intersection(inodes):
                owners.setdefault(inode, []).append(pid)
    return owners


def _zero_separated(file: str) -> list[str]:
    try:
        text = kernel_text(file)
    except OSError:
        return []
    return text.removesuffix("\0").split("\0") if text else []
