"""Tells whether what needs a layer is still there. Blocking.

A process that makes a template, or has forked a machine, holds a lock (flock) on the images that show it.
QEMU does not know these locks. They end with the process, and are seen in all namespaces.
"""

# Descriptors need os, and paths stay as QEMU spells them:
# ruff: noqa: PTH112, PTH119

from __future__ import annotations

import errno
import fcntl
import os
import posixpath
import time
from typing import Final

from qmpsnap.errors import InvalidTarget, NotFound
from qmpsnap.model.keeper import KeeperState, KeptFor
from qmpsnap.model.template import partial_directory
from qmpsnap.run.patient_lock import lock
from qmpsnap.run.safe_open import open_directory, open_file
from qmpsnap.run.template_files import read_template

_LOCK_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.3


def claim(file: str) -> int | None:
    """Lock such an image until the returned descriptor is closed.

    Returns:
        The descriptor; None if the image was removed meanwhile.

    Raises:
        OSError: When it cannot be opened, or another process holds a lock on it for seconds.
    """
    try:
        descriptor = open_file(file)
    except FileNotFoundError:
        return None
    try:
        lock(descriptor, _LOCK_SECONDS)  # who looks at it holds a lock for an instant
    except BlockingIOError as error:
        os.close(descriptor)
        raise TimeoutError(errno.ETIMEDOUT, "another process has locked it") from error
    except OSError:  # no locks here, where nobody takes it for abandoned either
        return descriptor
    if os.fstat(descriptor).st_nlink:
        return descriptor
    os.close(descriptor)
    return None


def state_of(file: str, owner: KeptFor) -> KeeperState:
    """Whether what needs the layer of this image is still there."""
    if is_claimed(file):
        return "needed"
    match owner.kind:
        case "fork":
            return "needed" if _at_work(file, posixpath.dirname(owner.directory)) else "left"
        case "clone":
            return "needed" if os.path.isdir(owner.directory) else "gone"
        case "template":
            return _of_template(file, owner.directory)


def _at_work(file: str, directory: str) -> bool:
    """Whether a process has locked the directory that is to lock the image, which it has just created.

    A process that removes an abandoned directory locks that for a moment, too.
    """
    ends = time.monotonic() + _LOOK_SECONDS
    while is_locked(directory):
        if is_claimed(file) or time.monotonic() > ends:
            return True
        time.sleep(0.01)  # no event tells when a lock is released
    return False


def is_locked(directory: str) -> bool:
    """Whether a process has locked the directory, or may have; one that does not exist is not locked."""
    try:
        descriptor = open_directory(directory, follow=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    return _is_locked(descriptor)


def is_claimed(file: str) -> bool:
    """Whether a process has locked it, or may have."""
    try:
        descriptor = open_file(file)
    except (OSError, ValueError):
        return True
    return _is_locked(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Whether another descriptor locks the same file; this one is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _of_template(file: str, directory: str) -> KeeperState:
    try:
        record = read_template(directory)
    except NotFound:
        partial = partial_directory(directory)
        if not os.path.isdir(partial):
            return "gone"
        return "needed" if _at_work(file, partial) else "left"
    except InvalidTarget:
        return "needed"
    names = {os.path.basename(keeper) for keeper in record.keepers}
    return "needed" if os.path.basename(file) in names else "left"
