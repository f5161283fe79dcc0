"""Removes and renames files: only those that we created, or that no longer hold a moment. Blocking."""

# Descriptors need os, and paths stay as QEMU spells them:
# ruff: noqa: PTH108, PTH110, PTH114, PTH120, PTH121

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import struct
from typing import assert_never

from msgspec import Struct

from qmpsnap.model.header import Header, backing_path
from qmpsnap.plan.commands.files import Proof
from qmpsnap.plan.intent import Folded
from qmpsnap.run.disk import rename_exclusively, sync_directory
from qmpsnap.run.image_headers import descriptor_header
from qmpsnap.run.safe_open import WrongKind, open_file

_FLOCK = struct.Struct("@hhqqi4x")  # struct flock of fcntl.h, where off_t has 64 bits
_LOCK_FROM, _LOCK_BYTES = 100, 200


class NotTheLayer(OSError):
    """By its inode or its header the file is not the layer that was meant; to try again changes nothing."""

    def __init__(self, why: str) -> None:
        super().__init__(0, why)


class Created(Struct, frozen=True):
    """A file that we created; it is removed only while the name still leads to it."""

    file: str
    device: int
    inode: int


def remove(created: Created) -> bool:
    """Remove a file that we created, if the name still leads to it; else return False."""
    try:
        status = os.lstat(created.file)
    except FileNotFoundError:
        return False
    if (status.st_dev, status.st_ino) != (created.device, created.inode):
        return False
    os.unlink(created.file)
    return True


def retire(file: str, policy: Folded, to: str, proof: Proof | None = None) -> None:
    """Rename or remove a file that no longer holds a moment; idempotent.

    Raises:
        FileExistsError: When there is another file of the new name.
        NotTheLayer: When it is another file; it stays.
        OSError: When the operation fails; the file stays.
    """
    if policy == "keep" or not os.path.lexists(file):
        return
    if proof is not None:
        if os.path.islink(file):  # its own name is not what others find the layer by
            return
        _refuse_other(file, proof)
    match policy:
        case "remove":
            os.unlink(file)
        case "rename":
            if os.path.lexists(to) and os.path.samestat(os.lstat(file), os.lstat(to)):
                os.unlink(file)  # we were killed between the two halves of a renaming
            else:
                rename_exclusively(file, to)
        case _:
            assert_never(policy)
    sync_directory(os.path.dirname(file))


def _refuse_other(file: str, proof: Proof) -> None:
    """Refuse to touch a file that is not the expected layer."""
    try:
        descriptor = open_file(file)
    except WrongKind as error:
        raise NotTheLayer(str(error.strerror)) from error
    try:
        status = os.fstat(descriptor)
        if proof.inode and (status.st_dev, status.st_ino) != (proof.device, proof.inode):
            raise NotTheLayer("another file has its name by now")
        header = descriptor_header(descriptor)
    except ValueError as error:
        raise NotTheLayer(f"its header is broken: {error}") from error
    finally:
        os.close(descriptor)
    if header is None or header.backing is None or (proof.format and header.format != proof.format):
        raise NotTheLayer("by its header it is not an overlay")
    if header.backing != proof.backing and not _leads_to(header.backing, file, proof.backing):
        raise NotTheLayer(f"its header names {header.backing!r} as its backing file, not {proof.backing!r}")


def _leads_to(recorded: str, file: str, backing: str) -> bool:
    """Whether a name in the file's header leads to that layer, or did so before the layer was renamed."""
    resolved = backing_path(recorded, of=file)
    if resolved is None:
        return False
    if os.path.normpath(resolved) == backing:
        return True
    return os.path.exists(resolved) and os.path.exists(backing) and os.path.samefile(resolved, backing)


def identity(file: str) -> Created | None:
    """Identify a regular file; None when there is none."""
    try:
        status = os.lstat(file)
    except (OSError, ValueError):
        return None
    return Created(file, status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def in_use(created: Created) -> bool:
    """Whether another process is known to have the file open.

    QEMU locks what it uses: shared locks from byte 100 (what it does) and from byte 200 on (what it forbids
    others; block/file-posix.c, raw_apply_lock_bytes). The locks are queried here and not taken. A QEMU that
    waits for VM state has none (tried with 7.2, 10.0 and 11.1): so a write lease is requested, which is
    refused while anybody has the file open, and given back at once. A lease on another user's file needs
    CAP_LEASE, and not every file system supports leases: then only the locks are known.

    Raises:
        OSError: When the file cannot be opened.
    """
    try:
        descriptor = open_file(created.file)
    except FileNotFoundError:
        return False
    try:
        query = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _LOCK_FROM, _LOCK_BYTES, 0)
        (kind, *_) = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, query))
        return bool(kind != fcntl.F_UNLCK) or _leased_out(descriptor)
    finally:
        os.close(descriptor)


def _leased_out(descriptor: int) -> bool:
    """Whether the descriptor is not the only one of its file."""
    try:
        # A process that opens it meanwhile waits, and we get a signal: one that does no harm.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def fresh(file: str, backing: str | None) -> Created | None:
    """The file, if it has no data, and is backed by `backing` or, as while QEMU creates it, by nothing."""
    try:
        descriptor = open_file(file)
    except (OSError, ValueError):
        return None
    try:
        status = os.fstat(descriptor)
        if _is_hole(descriptor) or _is_empty(descriptor, file, backing):
            return Created(file, status.st_dev, status.st_ino)
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)
    return None


def _is_hole(descriptor: int) -> bool:
    """Whether nothing was ever written, as when the creating process was killed before the header."""
    try:
        os.lseek(descriptor, 0, os.SEEK_DATA)
    except OSError as error:
        return error.errno == errno.ENXIO
    return False


def _is_empty(descriptor: int, file: str, backing: str | None) -> bool:
    if backing is None:
        return False
    header = descriptor_header(descriptor)
    return header is not None and _is_backed_by(header, file, backing) and not _has_data(header, descriptor)


def _is_backed_by(header: Header, file: str, backing: str) -> bool:
    """Whether it is backed by `backing`, or by nothing, as is briefly so when QEMU creates it."""
    if header.backing is None:
        return True
    resolved = backing_path(header.backing, of=file)
    return resolved is not None and (resolved == backing or os.path.samefile(resolved, backing))


def _has_data(header: Header, descriptor: int) -> bool:
    """Whether anything was ever written: an entry of qcow2's first table is set then."""
    if header.format != "qcow2" or header.snapshot_count or header.bitmaps or header.data_file is not None:
        return True
    length = header.l1_entries * struct.calcsize(">Q")
    table = os.pread(descriptor, min(length, 1 << 25), header.l1_offset)  # QEMU's own bound: 32 MiB
    return len(table) < length or any(table)
