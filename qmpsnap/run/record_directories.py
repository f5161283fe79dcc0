"""Creates missing directories of records, links them, and removes empty ones. Blocking.

The changed directories have to be synced at the end, each once: the first sync writes all that is pending in
the file system's journal, so that the others cost little.
"""

# Paths stay as QEMU spells them:
# ruff: noqa: PTH102, PTH106, PTH120

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable

from qmpsnap.model.record import MomentRecord, elsewhere
from qmpsnap.run.disk import sync_directory
from qmpsnap.run.log import get_logger
from qmpsnap.run.os_errors import reason
from qmpsnap.run.record_reading import open_trusted
from qmpsnap.run.record_search import link_name

_log = get_logger("qmpsnap.run")
_ENTRIES = 8  # how often a directory is created again if others remove it meanwhile


def within(directory: str, write: Callable[[int], None], changed: set[str]) -> None:
    """Call `write` with the descriptor of a directory of records, which is created if it is missing.

    Another client that finishes the last record removes the directory, even while it is open here; it is then
    created again.

    Args:
        directory: The directory.
        write: Writes into it; it may be called again after a FileNotFoundError.
        changed: Receives the parent of a directory that was created; it has to be synced.

    Raises:
        OSError, ValueError: As `write` raises them, or when the directory cannot be created or is not
            trusted.
    """
    is_new = False
    for _ in range(_ENTRIES):
        try:
            descriptor = open_trusted(directory)
        except FileNotFoundError:
            if _make_directory(directory):
                is_new = True
                changed.add(os.path.dirname(directory))
            continue
        try:
            write(descriptor)
        except FileNotFoundError:
            continue
        except OSError:
            if is_new:
                remove_empty(directory)
            raise
        else:
            return
        finally:
            os.close(descriptor)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), directory)


def link_all(record: MomentRecord) -> set[str]:
    """Create the links to the record in the first of its places that is writable, if any is.

    Returns:
        The directories that have to be synced.
    """
    changed: set[str] = set()
    for places in elsewhere(record):
        for place in places:
            try:
                changed |= link(place, record.directory)
            except (OSError, ValueError) as error:
                _log.warning("record.not_linked", place=place, to=record.directory, reason=reason(error))
            else:
                break
    return changed


def link(place: str, to: str) -> set[str]:
    """Link a directory of records to another one; nothing changes if the link exists.

    Returns:
        The directories that have to be synced.

    Raises:
        OSError, ValueError: When it cannot be written.
    """
    changed: set[str] = set()

    def write(descriptor: int) -> None:
        if _symlink(to, descriptor):
            changed.add(place)

    within(place, write, changed)
    return changed


def unlink_all(record: MomentRecord) -> None:
    """Remove the links to the record's directory, which has been removed."""
    for places in elsewhere(record):
        for place in places:
            _unlink_from(place, record.directory)


def _unlink_from(place: str, to: str) -> None:
    try:
        descriptor = open_trusted(place)
    except (OSError, ValueError):
        return
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link_name(to), dir_fd=descriptor)
        if os.path.lexists(to):  # another client has created it again, and uses our link
            _symlink(to, descriptor)
            sync_directory(descriptor)
    finally:
        os.close(descriptor)
    remove_empty(place)


def sync_all(directories: Iterable[str]) -> None:
    """Sync these directories; one that has been removed meanwhile need not be synced.

    Raises:
        OSError: When one cannot be synced.
    """
    for directory in directories:
        with contextlib.suppress(FileNotFoundError):
            sync_directory(directory)


def remove_empty(directory: str) -> bool:
    """Remove a directory if it is empty; return whether it was removed."""
    try:
        os.rmdir(directory)
    except OSError:
        return False
    return True


def _symlink(to: str, descriptor: int) -> bool:
    """Create the link in an open directory; return False if it exists."""
    try:
        os.symlink(to, link_name(to), dir_fd=descriptor)
    except FileExistsError:
        return False
    return True


def _make_directory(directory: str) -> bool:
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        return False
    return True
