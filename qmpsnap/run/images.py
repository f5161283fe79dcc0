"""Creates, renames and removes image files; never replaces one.

A file is created exclusively, and written through the descriptor that created it, so that it cannot be
swapped for another one. The one program that is started is qemu-img, to revert an image to a snapshot in it.
"""

# Descriptors need os, and paths stay as QEMU spells them:
# ruff: noqa: PTH116, PTH120

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import stat
from functools import partial

from msgspec import Struct

from qmpsnap.errors import CommandFailed, InvalidTarget, QmpsnapError, TargetExists, Unsupported
from qmpsnap.model.empty_image import empty_qcow2
from qmpsnap.model.header import MARK_BYTES
from qmpsnap.plan.commands.files import LuksHeader, Proof
from qmpsnap.plan.intent import Folded
from qmpsnap.run import cleanup
from qmpsnap.run.cleanup import Created
from qmpsnap.run.disk import in_thread, sync_directory
from qmpsnap.run.holders import Holder, users
from qmpsnap.run.image_headers import descriptor_header, luks_header
from qmpsnap.run.os_errors import reason, unusable
from qmpsnap.run.process import start_program
from qmpsnap.run.safe_open import create_file

_LONGEST_BACKING = 1023  # bytes; block/qcow2.c: qcow2_do_open refuses longer ones
_LABEL = "security.selinux"
_NO_LABEL = {errno.ENODATA, errno.ENOTSUP}


class _Request(Struct, frozen=True):
    file: str
    format: str
    size_bytes: int
    like: str | None
    backing: str | None
    backing_format: str | None
    private: bool
    luks: LuksHeader | None
    synced: bool
    owner: bytes


class Images:
    """Image files on the file system that we share with QEMU.

    Every call works in a thread and returns only when that has ended, also when it is cancelled.

    Args:
        qemu_img: The program that reverts an image to a snapshot inside it.
    """

    def __init__(self, qemu_img: str = "qemu-img") -> None:
        self._qemu_img = qemu_img

    async def create_image(
        self,
        file: str,
        *,
        size_bytes: int,
        format: str,  # noqa: A002  # QEMU's word
        like: str | None,
        backing: str | None = None,
        backing_format: str | None = None,
        private: bool = False,
        luks: LuksHeader | None = None,
        synced: bool = True,
        owner: bytes = b"",
    ) -> Created:
        """Create an empty image exclusively, ready for QEMU.

        On success its header is as requested, and it has owner, group, mode and label of `like`. After
        a failure or cancellation it does not exist.

        Args:
            file: Absolute path, whose directory exists.
            size_bytes: What the guest sees.
            format: "raw" or "qcow2".
            like: File whose owner, group, mode and label it takes; None leaves it ours, mode 0600.
            private: Whether the mode is 0600 all the same.
            backing: Absolute path of the backing file, written as it is and not opened.
            backing_format: Its format; always given with `backing`.
            luks: The LUKS header that it gets, so that the same key encrypts its data, and every secret that
                opens the other image opens it as well; None: it is not encrypted.
            synced: Whether it is on the disk then; one that is thrown away need not be.
            owner: What its header names as needing the backing file; b"": nothing.

        Raises:
            TargetExists: When the name exists, even as a dangling symlink.
            InvalidTarget: When it cannot be created there, or not with that owner; the message says why.
            Unsupported: When the format is neither raw nor qcow2.
        """
        request = _Request(
            file, format, size_bytes, like, backing, backing_format, private, luks, synced, owner
        )
        made: list[Created] = []
        try:
            return await in_thread(lambda: _create(request, made))
        except asyncio.CancelledError:
            for created in made:
                with contextlib.suppress(OSError):
                    cleanup.remove(created)
            raise

    async def remove_created(self, created: Created) -> bool:
        """Remove a file that we created; False when its name leads to another file, or to none.

        Raises:
            InvalidTarget: When it cannot be removed.
        """
        try:
            return await in_thread(partial(cleanup.remove, created))
        except OSError as error:
            raise unusable(created.file, error, "remove") from error

    async def apply_snapshot(self, file: str, name: str) -> None:
        """Revert an image that no process has open to a snapshot inside it; its backing file is not opened.

        On return it is on the disk. A failure may come at any time: the snapshot can be applied again.

        Args:
            file: A qcow2 image.
            name: The snapshot.

        Raises:
            CommandFailed: When qemu-img refuses it.
            ConnectFailed: When qemu-img cannot be started.
        """
        options = {"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": file}}
        argv = [self._qemu_img, "snapshot", "-a", name, f"json:{json.dumps(options)}"]
        async with start_program(argv, name="qemu-img") as process:
            if not await process.wait():
                return
            said = process.output_tail
        raise CommandFailed(
            f"qemu-img did not revert {file!r} to {name!r}: {said}",
            command="apply-snapshot",
            arguments={"file": file, "name": name},
            qmp_class="GenericError",
            desc=said,
        )

    async def retire(self, file: str, policy: Folded, to: str = "", proof: Proof | None = None) -> None:
        """Rename, remove or keep a file that no longer holds a moment; idempotent.

        Args:
            file: Absolute path; a symlink is put away itself, so give the real one.
            policy: "rename" to `to`, "remove", or "keep", which does nothing.
            to: The new name, in the same directory.
            proof: What identifies the file; None to skip the check.

        Raises:
            TargetExists: When `to` exists and is another file; nothing was done.
            InvalidTarget: When it cannot be done; nothing was done.
        """
        try:
            await in_thread(partial(cleanup.retire, file, policy, to, proof))
        except FileExistsError as error:
            raise TargetExists(f"{to!r} exists already, {file!r} keeps its name", file=to) from error
        except OSError as error:
            raise unusable(file, error, policy) from error

    async def remove_orphan(self, file: str, backing: str | None) -> bool:
        """Remove a file that an interrupted run created, if it is still empty; False when it does not exist.

        Args:
            file: Absolute path.
            backing: The file that it is an overlay of; None if QEMU was to format it, and
                it has no data yet.

        Raises:
            InvalidTarget: When there is data in it, a QEMU has it open, or it cannot be removed; it stays.
        """
        created = await in_thread(partial(cleanup.fresh, file, backing))
        if created is not None:
            try:
                used = await in_thread(partial(cleanup.in_use, created))
            except OSError as error:
                raise unusable(file, error, "remove") from error
            if used:
                key = (created.device, created.inode)
                holder = (await in_thread(partial(users, [key]))).get(key, Holder())
                raise InvalidTarget(f"{file!r} stays: {holder} has it open", file=file)
            return await self.remove_created(created)
        if not await in_thread(partial(os.path.lexists, file)):
            return False
        raise InvalidTarget(
            f"{file!r} was created by an interrupted run, but is no longer empty; it stays", file=file
        )

    async def as_created(self, file: str) -> Created | None:
        """Treat a file that an earlier run created as ours; None when it is gone, or not a file."""
        return await in_thread(partial(cleanup.identity, file))


def _create(request: _Request, made: list[Created]) -> Created:
    try:
        _check(request)
        descriptor = create_file(request.file, read=True)
    except FileExistsError as error:
        raise TargetExists(f"{request.file!r} exists already", file=request.file) from error
    except (OSError, ValueError) as error:
        raise unusable(request.file, error, "create") from error
    try:
        status = os.fstat(descriptor)
        created = Created(request.file, status.st_dev, status.st_ino)
        made.append(created)
        _fill(request, descriptor)
        _verify(request, descriptor)
        if request.like is not None:
            _take_after(descriptor, request.like, private=request.private)
        if request.synced:
            os.fsync(descriptor)
            sync_directory(os.path.dirname(request.file))
    except (OSError, ValueError) as error:
        raise _left(unusable(request.file, error, "create"), made.pop()) from error
    except QmpsnapError as error:
        _left(error, made.pop())
        raise
    finally:
        os.close(descriptor)
    return created


def _fill(request: _Request, descriptor: int) -> None:
    if request.format == "raw":
        os.ftruncate(descriptor, request.size_bytes)
        return
    empty = empty_qcow2(
        virtual_size=request.size_bytes,
        backing=request.backing,
        backing_format=request.backing_format,
        luks=luks_header(request.luks) if request.luks is not None else b"",
        mark=os.urandom(MARK_BYTES) if request.backing is not None else b"",
        owner=request.owner,
    )
    os.ftruncate(descriptor, empty.size_bytes)
    for offset, data in empty.parts:
        if os.pwrite(descriptor, data, offset) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _check(request: _Request) -> None:
    why = ""
    if request.format not in {"raw", "qcow2"}:
        raise Unsupported(
            f"cannot create images of format {request.format!r}", feature=f"format {request.format}"
        )
    if not request.file.startswith("/") or (
        request.backing is not None and not request.backing.startswith("/")
    ):
        why = "its name and its backing file's must be absolute paths"
    elif (request.backing is None) != (request.backing_format is None):
        why = "a backing file and its format belong together"
    elif request.backing is not None and "\0" in request.backing:
        why = "its backing file's name holds a null character"
    elif request.backing is not None and len(os.fsencode(request.backing)) > _LONGEST_BACKING:
        why = f"its backing file's name is longer than {_LONGEST_BACKING} bytes"
    if why:
        raise InvalidTarget(f"cannot create {request.file!r}: {why}", file=request.file)


def _verify(request: _Request, descriptor: int) -> None:
    if request.format == "raw":
        return
    header = descriptor_header(descriptor)
    recorded = (header.format, header.backing, header.virtual_size // 512) if header is not None else None
    if recorded != (request.format, request.backing, (request.size_bytes + 511) // 512):
        raise ValueError(f"its header is not as requested, but {header}")
    if header is not None and header.backing_format != request.backing_format:
        raise ValueError(f"its header says backing format {header.backing_format!r}")


def _take_after(descriptor: int, like: str, *, private: bool) -> None:
    """Give the file owner, group, mode and label of `like`; a private one keeps its mode."""
    try:
        model = os.stat(like)
        label = _label(like)
    except OSError as error:
        raise ValueError(f"the owner of {like!r} cannot be read: {reason(error)}") from error
    ours = os.fstat(descriptor)
    try:
        if (model.st_uid, model.st_gid) != (ours.st_uid, ours.st_gid):
            os.fchown(descriptor, model.st_uid, model.st_gid)
        if not private:
            os.fchmod(descriptor, stat.S_IMODE(model.st_mode) & 0o777)
        if label is not None and label != _label(descriptor):
            os.setxattr(descriptor, _LABEL, label)
    except OSError as error:
        owner = f"owner {model.st_uid}:{model.st_gid} and mode {stat.S_IMODE(model.st_mode) & 0o777:o}"
        raise ValueError(
            f"cannot give it {owner} of {like!r}, so QEMU might not be able to open it again: {reason(error)}"
        ) from error


def _label(file: str | int) -> bytes | None:
    try:
        return os.getxattr(file, _LABEL)
    except OSError as error:
        if error.errno in _NO_LABEL:
            return None
        raise


def _left(error: QmpsnapError, created: Created) -> QmpsnapError:
    """Remove what a failed creation leaves; name in the error what cannot be removed."""
    try:
        cleanup.remove(created)
    except OSError:
        error.left = (*error.left, f"{created.file} (an empty file of ours; remove it)")
    return error
