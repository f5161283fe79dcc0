"""Opens, completes, inspects, finds and removes VM state files. Blocking.

They hold the guest's whole memory, so they are created exclusively, with mode 0600, synced before
they get their name, and never replace another file.
"""

# Descriptors need os, and paths stay as QEMU spells them:
# ruff: noqa: PTH116, PTH118, PTH120, PTH208

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterable
from typing import NamedTuple

from msgspec.structs import replace

from qmpsnap.model.graph import InternalSnapshot
from qmpsnap.model.header import (
    HEADER_BYTES,
    MAX_TABLE_BYTES,
    QCOW_MAGIC,
    snapshot_table,
    snapshots_inside,
)
from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.memory import TAIL_BYTES, LayerState, MemoryFact, MemoryNote, note_size
from qmpsnap.run.cleanup import Created, remove
from qmpsnap.run.disk import rename_exclusively, sync_directory
from qmpsnap.run.os_errors import reason
from qmpsnap.run.safe_open import WrongKind, open_fifo, open_file

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE of linux/falloc.h; Python's os.posix_fallocate makes files longer
_PRIVATE = 0o600
_TOKEN = 8  # hex digits at the end of an operation's id
_PARTIAL = re.compile(r"\.(memory|vmstate\.qcow2)\.([0-9a-f]{8})\.partial")
_TAG = re.compile(r"qmpsnap-[0-9a-f]{8}")


class Sealed(NamedTuple):
    """A complete VM state file: the bytes of VM state in it, its inode, and its owner's id."""

    size_bytes: int
    inode: int
    user: int


def look(paths: Iterable[str]) -> dict[str, MemoryFact]:
    """Inspect each of the files; never fails."""
    return {path: _fact(path) for path in paths}


def open_memory(
    file: str, *, write: bool, made: Created | None = None, inode: int = 0, fifo: bool = False
) -> int:
    """Open a VM state file to be passed to QEMU; the caller closes the descriptor.

    A file to be written is locked, and the lock stays with QEMU's descriptor until that is closed.

    Args:
        file: Its path.
        write: Whether QEMU writes it; else it reads.
        made: The file to be written, if this process created it.
        inode: For a file to be read: the inode that was inspected; 0 for any.
        fifo: Whether it is a FIFO, to be read.

    Raises:
        OSError: When it cannot be opened or locked, is not of that kind, is to be written but not ours, or is
            to be read but was replaced.
    """
    # QEMU compares the flags, and takes no O_RDWR.
    descriptor = open_fifo(file) if fifo else open_file(file, write=write)
    try:
        if inode and os.fstat(descriptor).st_ino != inode:
            raise OSError(0, "another file has its name by now")  # noqa: TRY301 - closed below
        if write:
            _refuse_other(descriptor, made, owner=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.set_blocking(descriptor, True)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def is_closed(file: str) -> bool:
    """Whether QEMU has closed the file that it was writing.

    Raises:
        OSError: When it cannot be looked at.
    """
    descriptor = open_file(file)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def reserve(file: str, size_bytes: int, made: Created | None = None, *, reserved_bytes: int = 0) -> None:
    """Reserve disk space for a file, which keeps its length.

    The free space is checked first: a kernel that runs out of space has already allocated the rest.

    Args:
        file: The file.
        size_bytes: For how many bytes from its beginning.
        made: The file, if this process created it.
        reserved_bytes: For how many of these space is reserved already.

    Raises:
        OSError: When there is not enough space; a file system that cannot reserve space is no error.
    """
    import ctypes  # noqa: PLC0415 - it would cost every start, for the checkpoints of one old QEMU

    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = open_file(file, write=True)
    try:
        _refuse_other(descriptor, made, owner=True)
        space = os.fstatvfs(descriptor)
        missing = size_bytes - reserved_bytes
        if missing > space.f_bavail * space.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if libc.fallocate(descriptor, _KEEP_SIZE, ctypes.c_int64(reserved_bytes), ctypes.c_int64(missing)):
            number = ctypes.get_errno()
            if number not in {errno.EOPNOTSUPP, errno.ENOSYS}:
                raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)


def seal_memory(
    partial: str,
    file: str,
    *,
    id: str,  # noqa: A002 - a record's word
    name: str,
    running: bool,
    fingerprint: Fingerprint,
    layers: Iterable[tuple[str, str]],
    trims: bool = True,
    made: Created | None = None,
) -> Sealed:
    """Append the note, sync, and give the file its name; the bytes are those of the stream.

    The parameters are those of the step (plan/commands/files.py), and the file as we made it.

    Raises:
        FileExistsError: When there is a file of that name.
        OSError: When it cannot be done; the file keeps its partial name.
    """
    states = []
    for disk, layer in layers:
        try:
            status = os.stat(layer)
        except OSError:
            if not name:
                raise
            continue  # a checkpoint does without: what is not known is not compared
        states.append(LayerState(disk, layer, status.st_ino, status.st_size, status.st_mtime_ns))
    descriptor = open_file(partial, write=True)
    try:
        _refuse_other(descriptor, made, owner=True)
        size = os.lseek(descriptor, 0, os.SEEK_END)
        note = MemoryNote(id, name, size, running, fingerprint, tuple(states))
        text = note.to_bytes()
        while text:
            text = text[os.write(descriptor, text) :]
        if trims:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size)
        os.fsync(descriptor)
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    rename_exclusively(partial, file)
    sync_directory(os.path.dirname(file))
    return Sealed(size, status.st_ino, status.st_uid)


def seal_store(partial: str, file: str, *, made: Created | None = None) -> Sealed:
    """Sync the store and give it its name; its size is the space that it takes.

    Raises:
        FileExistsError: When there is a file of that name.
        OSError: When it cannot be done; the store keeps its partial name.
    """
    descriptor = open_file(partial)
    try:
        _refuse_other(descriptor, made, owner=False)  # it has that of the layers
        os.fsync(descriptor)
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    rename_exclusively(partial, file)
    sync_directory(os.path.dirname(file))
    return Sealed(status.st_size, status.st_ino, status.st_uid)


def _refuse_other(descriptor: int, made: Created | None, *, owner: bool) -> None:
    """Refuse to write to a file that is not the one that was created.

    Of a file from an earlier run only this is known: it is private, and has one name.
    """
    status = os.fstat(descriptor)
    if made is not None and (status.st_dev, status.st_ino) != (made.device, made.inode):
        raise OSError(0, "another file has taken the name of the one that was made")
    if (
        not stat.S_ISREG(status.st_mode)
        or status.st_nlink != 1
        or stat.S_IMODE(status.st_mode) != _PRIVATE
        or (owner and status.st_uid != os.geteuid())
    ):
        raise OSError(
            0,
            "it is not a file of ours: those have one hard link and are readable by their owner only",
        )


def _fact(path: str) -> MemoryFact:
    try:
        descriptor = open_file(path)
    except FileNotFoundError:
        return MemoryFact(path, problem="there is no such file")
    except (OSError, ValueError) as error:
        return MemoryFact(path, size=0, problem=reason(error))
    fact = MemoryFact(path, size=0)
    try:
        status = os.fstat(descriptor)
        size = status.st_size
        fact = MemoryFact(
            path,
            size=size,
            inode=status.st_ino,
            user=status.st_uid,
            ours=_is_ours(status),
            mode=stat.S_IMODE(status.st_mode),
            links=status.st_nlink,
            exposed=_is_exposed(path),
        )
        if os.pread(descriptor, len(QCOW_MAGIC), 0) == QCOW_MAGIC:
            snapshots = _snapshots(descriptor)
            return replace(
                fact,
                problem="it is an image",
                tags=tuple(dict.fromkeys(snapshot.name for snapshot, _ in snapshots)),
                inside=tuple(snapshot for snapshot, _ in snapshots),
                sizes={snapshot.name: size for snapshot, size in snapshots if size is not None},
            )
        length = note_size(os.pread(descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES)))
        note = MemoryNote.from_bytes(os.pread(descriptor, length, max(0, size - TAIL_BYTES - length)))
        if note.stream_bytes + length + TAIL_BYTES != size:
            return replace(fact, problem="its length is not what its note says")
        return replace(fact, note=note)
    except (OSError, ValueError) as error:
        return replace(fact, problem=reason(error))
    finally:
        os.close(descriptor)


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid in {0, os.geteuid()}


def _is_exposed(file: str) -> bool:
    """Whether users other than root and ours may create files in the file's directory."""
    status = os.stat(os.path.dirname(file))
    return not _is_ours(status) or bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _snapshots(descriptor: int) -> tuple[tuple[InternalSnapshot, int | None], ...]:
    """A qcow2 image's snapshots, each with its disk size; none where the table is truncated or corrupt."""
    with contextlib.suppress(ValueError):
        offset, count = snapshot_table(os.pread(descriptor, HEADER_BYTES, 0))
        return snapshots_inside(os.pread(descriptor, MAX_TABLE_BYTES, offset), count)
    return ()


def find_state_files(places: Iterable[tuple[str, str]]) -> dict[str, str]:
    """VM state files that operations of ours have created, complete or not; never fails.

    Args:
        places: Directories, each with the stem that their names begin with.

    Returns:
        Of each file, in the order of their names, the token of the operation that made it.
    """
    files: dict[str, str] = {}
    for directory, stem in places:
        with contextlib.suppress(OSError, ValueError):
            for name in os.listdir(directory):
                file = os.path.join(directory, name)
                if name.startswith(f"{stem}.") and (token := _token(file, name.removeprefix(stem))):
                    files[file] = token
    return dict(sorted(files.items()))


def _token(file: str, ending: str) -> str:
    """The token of the operation that made the file; "" when it was none of ours."""
    if partial := _PARTIAL.search(ending):
        return partial[2]
    if ending.endswith(".memory"):
        note = look([file])[file].note
        return note.id[-_TOKEN:] if note is not None else ""
    tags = look([file])[file].tags if ending.endswith(".vmstate.qcow2") else ()
    return next((tag[-_TOKEN:] for tag in tags if _TAG.fullmatch(tag)), "")


def remove_state_file(file: str, id: str, tag: str) -> bool:  # noqa: A002 - as the step says
    """Remove a VM state file if it belongs to that operation; else return False.

    A stream is known by its note, a store by its snapshot's name, an unfinished one by its own name.

    Raises:
        OSError: When it cannot be removed.
    """
    try:
        descriptor = open_file(file)
    except (FileNotFoundError, WrongKind):
        return False
    try:
        status = os.fstat(descriptor)
        if not _belongs(file, status.st_ino, id, tag) or not remove(
            Created(file, status.st_dev, status.st_ino)
        ):
            return False
    finally:
        os.close(descriptor)
    sync_directory(os.path.dirname(file))
    return True


def _belongs(file: str, inode: int, id: str, tag: str) -> bool:  # noqa: A002
    if file.endswith(f".{id[-_TOKEN:]}.partial"):
        return True
    fact = look([file])[file]
    is_named = tag in fact.tags if tag else fact.note is not None and fact.note.id == id
    return fact.inode == inode and is_named
