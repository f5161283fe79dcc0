"""Removes the files of records that a client was killed in the middle of writing.

A record is written under a name of its own, `.NAME.json.` and eight hex digits, by a client that holds a lock
on the file until it has its final name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import time
from typing import Final

from qmpsnap.run.log import get_logger
from qmpsnap.run.safe_open import open_file

_log = get_logger("qmpsnap.run")
_UNFINISHED: Final = re.compile(r"\.(intent|moment)-.+\.json\.[0-9a-f]{8}", re.ASCII)
_MINUTE_S: Final = 60.0  # far more than passes between the creation of a file and its lock


def unfinished_name(file_name: str) -> str:
    """Return a new name for a record that is about to be written."""
    return f".{file_name}.{os.urandom(4).hex()}"


def lock_unfinished(descriptor: int) -> None:
    """Lock a file that is about to be written; does nothing on a file system without locks."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_unfinished(directory: int) -> None:
    """Remove our user's unfinished records that are older than a minute and that no client is writing.

    Where the file system has no locks, none is removed.

    Args:
        directory: Descriptor of the directory.
    """
    for name in filter(_UNFINISHED.fullmatch, os.listdir(directory)):
        with contextlib.suppress(OSError, ValueError):
            _remove(name, directory)


def _remove(name: str, directory: int) -> None:
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
    if not is_ours or time.time() - status.st_mtime < _MINUTE_S:
        return
    descriptor = open_file(name, write=True, directory=directory)  # as NFS needs for a lock
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while a client has it
        os.unlink(name, dir_fd=directory)
        _log.info("record.removed", name=name)
    finally:
        os.close(descriptor)
