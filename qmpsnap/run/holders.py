"""Finds out who has a file open, from /proc, QEMU's image locks and the kernel's loop devices.

Blocking. If the process belongs to another user, or runs in a container whose processes we do not see, only
its lock is visible, but not which process holds it.
"""

# Descriptors need os:
# ruff: noqa: PTH116, PTH208

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Collection, Iterator

from msgspec import Struct

from qmpsnap.model.host_process import HostProcess
from qmpsnap.run.mounts import remote_device, remote_mounts
from qmpsnap.run.proc import host_process, pids
from qmpsnap.run.safe_open import kernel_text

FileId = tuple[int, int]
"""st_dev and st_ino."""

_FLOCK = struct.Struct("hhqqi0q")  # struct flock: type, whence, start, length, pid
_PERMISSIONS = 100  # block/file-posix.c: RAW_LOCK_PERM_BASE
_WRITE, _RESIZE = 1, 3  # block-common.h: bits of BLK_PERM_WRITE and BLK_PERM_RESIZE


class Holder(Struct, frozen=True):
    """Who has a file open: a process, or the kernel.

    Attributes:
        pid: The process's id; None if only its lock is visible, and for the kernel.
        program: The name of its program, or for the kernel the loop device; "" if it is not known.
        user: The user that the process runs as; "" if it is not known.
    """

    pid: int | None = None
    program: str = ""
    user: str = ""

    @property
    def process(self) -> HostProcess | None:
        """The process, if its id is known."""
        return None if self.pid is None else HostProcess(self.pid, self.program, self.user)

    def __str__(self) -> str:
        """The holder as a phrase for messages."""
        if self.process is not None:
            return str(self.process)
        return f"the loop device {self.program}" if self.program else "another process"


def writers(files: Collection[FileId], *, apart: Collection[int | None] = ()) -> dict[FileId, Holder]:
    """The first holder that we see of each file that is open for writing.

    Args:
        files: The files to look for.
        apart: Ids of processes that do not count.
    """
    holders = loops(files)
    for pid in pids():
        for key in written(pid, among=files) if pid not in apart else ():
            holders.setdefault(key, _holder(pid))
    return holders


def users(files: Collection[FileId], *, apart: Collection[int | None] = ()) -> dict[FileId, Holder]:
    """The first process that we see of each file that is open, for reading or writing.

    Args:
        files: The files to look for.
        apart: Ids of processes that do not count.
    """
    found: dict[FileId, Holder] = {}
    for pid in pids():
        if pid not in apart and len(found) < len(files):
            for _, key in _open(pid, files):
                if key in files and key not in found:
                    found[key] = _holder(pid)
    return found


def locker(file: FileId, byte: int) -> Holder:
    """The process that we see with a lock of its own (OFD) on that byte of a file; without an id if none is.

    The kernel tells nobody who asks about such a lock the process, but shows each process its own.
    """
    for pid in pids():
        for number, _ in filter(lambda opened: opened[1] == file, _open(pid, (file,))):
            try:
                lines = kernel_text(f"/proc/{pid}/fdinfo/{number}").splitlines()
            except OSError:  # closed meanwhile
                continue
            locks = (line.split() for line in lines if line.startswith("lock:") and "OFDLCK" in line)
            if any(words[-2:] == [str(byte), str(byte)] for words in locks):
                return _holder(pid)
    return Holder()


def _holder(pid: int) -> Holder:
    process = host_process(pid)
    return Holder(pid, process.program, process.user)


def _open(pid: int, files: Collection[FileId] | None) -> Iterator[tuple[str, FileId]]:
    """The descriptors of a process, each with the file that it leads to; none if we may not look.

    A descriptor on a remote mount where none of the files is (None: any file may be there) is left out: its
    storage may be gone, and is not asked.
    """
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    elsewhere = set()
    if numbers and files is not None:
        devices = {device for device, _ in files}
        elsewhere = {mount for mount, device in remote_mounts(pid).items() if device not in devices}
    for number in numbers:
        try:
            if elsewhere and _fact(pid, number, "mnt_id") in elsewhere:
                continue
            status = os.stat(f"/proc/{pid}/fd/{number}")
        except OSError:  # closed meanwhile
            continue
        yield number, (status.st_dev, status.st_ino)


def loops(files: Collection[FileId], devices: str = "/sys/block") -> dict[FileId, Holder]:
    """The loop device of each file to which a loop device writes, as no process shows it.

    A file on a remote mount where none of the files is is not asked for, as with `_open`.

    Args:
        files: The files to look for.
        devices: The kernel's directory of block devices.
    """
    holders: dict[FileId, Holder] = {}
    try:
        names = [name for name in os.listdir(devices) if name.startswith("loop")]
    except OSError:
        return holders
    remote = {None, *(device for device, _ in files)}
    for name in sorted(names):
        try:
            file = kernel_text(f"{devices}/{name}/loop/backing_file").removesuffix("\n")
            read_only = kernel_text(f"{devices}/{name}/ro").strip() == "1"
            if remote_device(file) not in remote:
                continue
            status = os.stat(file)
        except (OSError, ValueError):  # the device is unused, or its file has no name
            continue
        key = (status.st_dev, status.st_ino)
        if key in files and not read_only:
            holders.setdefault(key, Holder(program=f"/dev/{name}"))
    return holders


def written(pid: int, *, among: Collection[FileId] | None = None) -> set[FileId]:
    """Files that a process has open for writing, even if another process opened them for it.

    The result is empty if we may not inspect the process.

    Args:
        pid: The process's id.
        among: Look only for these files; None: for all.
    """
    writable = set()
    for number, key in _open(pid, among):
        if among is not None and key not in among:
            continue
        try:
            flags = int(_fact(pid, number, "flags") or "0", 8)
        except OSError:  # closed meanwhile
            continue
        if flags & os.O_ACCMODE != os.O_RDONLY:
            writable.add(key)
    return writable


def _fact(pid: int, number: str, name: str) -> str:
    """What the kernel says of a descriptor, without asking its storage; "" if it does not say it.

    Raises:
        OSError: When the descriptor is closed.
    """
    lines = kernel_text(f"/proc/{pid}/fdinfo/{number}").splitlines()
    return next((line.split()[1] for line in lines if line.startswith(f"{name}:")), "")


def locked(descriptor: int) -> bool:
    """Whether a process holds QEMU's image lock with the permission to write to the image or resize it."""
    return any(_held(descriptor, _PERMISSIONS + bit) for bit in (_WRITE, _RESIZE))


def _held(descriptor: int, byte: int) -> bool:
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, wanted)
    except OSError:  # a file system without such locks
        return False
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK
