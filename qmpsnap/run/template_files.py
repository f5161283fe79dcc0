"""The directory of a template: made under another name, and renamed when it is complete. Blocking.

A process that makes a template holds a lock on its directory. So the next template of that name recognises a
directory that a killed process has left, and removes it.
"""

# Descriptors need os, and paths stay as QEMU spells them:
# ruff: noqa: PTH102, PTH106, PTH108, PTH116, PTH118, PTH120

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable

from qmpsnap.errors import Changed, InvalidTarget, NotFound, TargetExists
from qmpsnap.model.template import (
    MAX_RECORD_BYTES,
    MEMORY,
    RECORD,
    STATE,
    FileState,
    TemplateRecord,
    differences,
    from_text,
    partial_directory,
    to_text,
)
from qmpsnap.run.disk import sync_directory
from qmpsnap.run.lock_holders import user_of
from qmpsnap.run.os_errors import reason, unusable
from qmpsnap.run.patient_lock import lock
from qmpsnap.run.safe_open import create_file, open_directory, open_file, remove_tree

_SLACK = 1 << 24  # bytes: the devices' state, and the record
_UNFINISHED = re.compile(rf"{STATE}(\.[0-9a-f]{{8}})?\.partial")  # what the helper has not written to its end
_LOOK_SECONDS = 0.1
_READ_ONLY, _PRIVATE = 0o400, 0o600


class Partial:
    """A template that is not complete.

    Attributes:
        path: Its directory, which `finish` renames if it has another name until then.
        memory: The memory file, sparse and of the memory's size.
        state: The file for the devices' state, which does not exist.
        swept: Whether a killed process had left one, which was removed.
    """

    swept = False

    def __init__(self, directory: str, memory_bytes: int, *, renamed: bool = True) -> None:
        """Create its directory, and the file of the memory.

        Args:
            directory: The template's final directory; absolute.
            memory_bytes: Size of the guest's memory.
            renamed: Whether the directory has another name until it is complete; else the files can be
                opened before that, by their final names.

        Raises:
            TargetExists: When there is anything of that name, or another process makes it now.
            InvalidTarget: When it cannot be created, or there may be too little space.
        """
        self._directory = directory
        self.path = partial_directory(directory) if renamed else directory
        self.memory, self.state = (os.path.join(self.path, name) for name in (MEMORY, STATE))
        refuse_place(directory)
        try:
            self._lock = self._create()
            try:
                self._make_memory(memory_bytes)
            except BaseException:
                self.close()
                raise
        except (OSError, ValueError) as error:
            raise unusable(directory, error, "create") from error

    def _create(self) -> int:
        """Create the directory, after removing one that a killed process left; return its lock."""
        for _ in range(2):
            try:
                os.mkdir(self.path, 0o700)
            except FileExistsError:
                self._sweep()
                continue
            try:
                lock = _locked(self.path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.rmdir(self.path)
                raise
            if os.fstat(lock).st_nlink:
                return lock
            os.close(lock)  # another process removed it before it was locked
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))

    def _sweep(self) -> None:
        descriptor = _locked_ours(self.path, self._directory)
        try:
            remove_tree(self.path)
            self.swept = True
        finally:
            os.close(descriptor)

    def _make_memory(self, size_bytes: int) -> None:
        space = os.statvfs(self.path)
        free = space.f_bavail * space.f_frsize
        if free < size_bytes + _SLACK:
            raise InvalidTarget(
                f"{os.path.dirname(self.path)} has {free} bytes free; the guest's memory needs {size_bytes}",
                file=self._directory,
                hint="free some space there, or choose another directory",
            )
        descriptor = create_file(self.memory, mode=_PRIVATE)
        try:
            os.ftruncate(descriptor, size_bytes)
        finally:
            os.close(descriptor)

    def seal(self, *, sealed: bool, synced: bool = True) -> tuple[FileState, FileState]:
        """Make both files read-only, and return their states: the memory's and the devices'.

        Args:
            sealed: Whether the memory's file is made read-only too: QEMU 7.2 opens it for writing.
            synced: Whether they are synced to the disk.

        Raises:
            InvalidTarget: When that fails.
        """
        try:
            for file, mode in ((self.memory, _READ_ONLY if sealed else _PRIVATE), (self.state, _READ_ONLY)):
                descriptor = open_file(file)
                try:
                    os.fchmod(descriptor, mode)
                    if synced:
                        os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            memory, state = look((self.memory, self.state)).values()
        except (OSError, ValueError) as error:
            raise unusable(self._directory, error, "complete") from error
        if memory is None or state is None:
            raise InvalidTarget(f"{self.path!r} was removed while it was being made", file=self._directory)
        return memory, state

    def finish(self, record: TemplateRecord) -> None:
        """Write the record, sync, and give the template its name.

        Raises:
            TargetExists: When there is anything of that name by now.
            InvalidTarget: When that fails.
        """
        try:
            with os.fdopen(create_file(os.path.join(self.path, RECORD), mode=_READ_ONLY), "wb") as file:
                file.write(to_text(record).encode("ascii"))
                file.flush()
                os.fsync(file.fileno())
            sync_directory(self.path)
            if self.path == self._directory:
                return
            if os.path.lexists(self._directory):
                raise TargetExists(f"{self._directory!r} exists now", file=self._directory)
            os.rename(self.path, self._directory)  # noqa: PTH104 - replaces no directory that holds anything
            self.path = self._directory
            sync_directory(os.path.dirname(self._directory))
        except (OSError, ValueError) as error:
            raise unusable(self._directory, error, "complete") from error

    def close(self, *, keep: bool = False) -> None:
        """Unlock it; unless it is to be kept, remove it, also if it is complete."""
        if not keep:
            remove_tree(self.path)
        os.close(self._lock)


def refuse_place(directory: str) -> None:
    """Refuse a directory that cannot be created.

    Raises:
        TargetExists: When there is anything of that name.
        InvalidTarget: When there is no directory for it, or it is not writable.
    """
    if os.path.lexists(directory):
        raise TargetExists(f"{directory!r} exists already", file=directory, hint="choose another name")
    place = os.path.dirname(directory)
    try:
        os.stat(os.path.join(place, ""))
        if not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))  # noqa: TRY301 - handled like every other
    except (OSError, ValueError) as error:
        raise unusable(directory, error, "create") from error


def remove_partial(directory: str) -> bool:
    """Remove a template that is not complete, which a killed process has left; return whether there was one.

    Args:
        directory: The template's directory, by the word of an image: only files of templates are removed.

    Raises:
        TargetExists: When another process makes it now.
        InvalidTarget: When it cannot be removed.
    """
    partial = partial_directory(directory)
    try:
        descriptor = _locked_ours(partial, directory)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise unusable(partial, error, "remove") from error
    try:
        for name in os.listdir(descriptor):  # noqa: PTH208 - of an open directory
            if _UNFINISHED.fullmatch(name):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=descriptor)
        remove_files(partial)
    finally:
        os.close(descriptor)
    return True


def _locked(path: str) -> int:
    """Lock a directory until the descriptor is closed; who only looks at it locks it for an instant."""
    descriptor = open_directory(path, follow=False)
    try:
        lock(descriptor, _LOOK_SECONDS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _locked_ours(path: str, directory: str) -> int:
    """The same for a directory that must be ours, and that nobody has locked who makes that template."""
    try:
        descriptor = _locked(path)
    except BlockingIOError as error:
        raise TargetExists(
            f"{user_of(path)} is making {directory!r} now", file=directory, hint="wait until it ends"
        ) from error
    if os.fstat(descriptor).st_uid == os.geteuid():
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))


def read_template(directory: str) -> TemplateRecord:
    """Read the record of a template.

    Raises:
        NotFound: When there is no template.
        InvalidTarget: When other users may have written it, or it is damaged.
    """
    file = os.path.join(directory, RECORD)
    try:
        place = open_directory(directory, follow=False)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"there is no template {directory!r}") from error
    except (OSError, ValueError) as error:
        raise unusable(directory, error, "read") from error
    try:
        _refuse_foreign(directory, os.fstat(place))
        descriptor = open_file(RECORD, directory=place)
        with os.fdopen(descriptor, "rb") as stream:
            _refuse_foreign(file, os.fstat(stream.fileno()))
            text = stream.read(MAX_RECORD_BYTES + 1)
        if len(text) > MAX_RECORD_BYTES:
            raise ValueError("it is too long")  # noqa: TRY301 - handled like every other damage
        return from_text(text)
    except FileNotFoundError as error:
        raise NotFound(f"{directory!r} is not a template: it has no {RECORD}") from error
    except (OSError, ValueError) as error:
        raise InvalidTarget(
            f"{file!r} is not the record of a template: {reason(error)}", file=file
        ) from error
    finally:
        os.close(place)


def _refuse_foreign(path: str, status: os.stat_result) -> None:
    """Refuse a file that other users may write to: it decides what clones run, and which files they read."""
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        who = f"it belongs to the user {status.st_uid}" if status.st_uid else "others may write to it"
        raise InvalidTarget(f"{path!r} is not used: {who}", file=path, hint="make a template of your own")


def create_directory(directory: str) -> None:
    """Create a directory, mode 0700, which must not exist.

    Raises:
        TargetExists: When there is anything of that name.
        InvalidTarget: When it cannot be created.
    """
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError as error:
        raise TargetExists(
            f"{directory!r} exists already", file=directory, hint="choose another name"
        ) from error
    except (OSError, ValueError) as error:
        raise unusable(directory, error, "create") from error


def look(files: Iterable[str]) -> dict[str, FileState | None]:
    """Return the present states of the files, by path; None: there is no such file."""
    states: dict[str, FileState | None] = {}
    for file in files:
        try:
            status = os.stat(file)
        except (OSError, ValueError):
            states[file] = None
            continue
        if stat.S_ISBLK(status.st_mode):  # its size and times say nothing
            states[file] = FileState(status.st_ino, 0, 0)
        else:
            states[file] = FileState(status.st_ino, status.st_size, status.st_mtime_ns)
    return states


def refuse_changed(directory: str, record: TemplateRecord) -> None:
    """Refuse a template if any of its files was replaced or written to.

    Raises:
        InvalidTarget: The message names each such file.
    """
    then = record.files(directory)
    problems = differences(then, look(then))
    if problems:
        raise InvalidTarget(
            f"no clone of {record.name!r} can be started: {'; '.join(problems)}",
            file=directory,
            hint="remove the template, and make a new one",
        )


def remove_files(directory: str) -> None:
    """Remove the files of a template, the record last, and its directory if nothing else is in it.

    What does not exist is not missed.

    Raises:
        InvalidTarget: When a file cannot be removed; `changed` says whether others were. Try again then.
    """
    removed = False
    try:
        for name in (MEMORY, STATE, RECORD):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, name))
                removed = True
        with contextlib.suppress(FileNotFoundError):
            _remove_empty(directory)
            sync_directory(os.path.dirname(directory))
    except OSError as error:
        failure = unusable(directory, error, "remove")
        failure.changed = Changed.YES if removed else Changed.NO
        raise failure from error


def _remove_empty(directory: str) -> None:
    """Remove a directory, unless something is in it."""
    try:
        os.rmdir(directory)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
