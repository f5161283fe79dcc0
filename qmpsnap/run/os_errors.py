"""What an error of a file operation means and what helps: one table for all of them."""

# Paths stay as QEMU spells them:
# ruff: noqa: PTH112, PTH120

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from qmpsnap.errors import InvalidTarget
from qmpsnap.model.files import NOT_ALLOWED
from qmpsnap.run.lock_holders import user_of

# These need no permission to write to the directory.
_READING: Final = frozenset({"open", "read", "look at", "resolve", "lock"})
_CHECK: Final = "check the path"
# Other errors have the C library's text and no hint.
_TABLE: Mapping[int, tuple[str, str]] = MappingProxyType(
    {
        errno.ENOENT: ("no such file or directory", _CHECK),
        errno.ENOTDIR: ("not a directory", _CHECK),
        errno.EACCES: (NOT_ALLOWED, "run as a user who is allowed to do that"),
        errno.EPERM: ("operation not permitted", "run as the owner of the file and its directory"),
        errno.EROFS: ("read-only file system", ""),
        errno.EEXIST: ("a file of that name exists already", "choose another name"),
        errno.EISDIR: ("it is a directory", "choose another name"),
        errno.ENAMETOOLONG: ("the name is too long for the file system", "choose a shorter name"),
        errno.ELOOP: ("the path contains a symbolic link", "give the link's target instead"),
        errno.ENOSPC: ("no space left on the file system", "free some space there"),
        errno.EDQUOT: ("the user's quota is used up", "free some space there, or have the quota raised"),
        errno.EFBIG: ("the file is too large for the file system, or for the limit of this process", ""),
        errno.EIO: ("the disk reports an error", "check the host's kernel log"),
        errno.ESTALE: ("the server no longer has the file (stale handle)", "mount the file system again"),
        errno.EMFILE: ("this process has too many files open", "raise the limit: ulimit -n"),
        errno.ENFILE: ("the host has too many files open", ""),
        errno.ENXIO: ("it is a socket, or a FIFO that nobody reads", "choose another name"),
        errno.ENODEV: ("the device does not exist", ""),
        errno.EBUSY: ("it is in use", ""),
        errno.ETXTBSY: ("it is a program that is running", ""),
        errno.EAGAIN: ("another process holds a lease or a lock on it", "wait for that process to end"),
        errno.EXDEV: ("the new name is on another file system", ""),
        errno.EMLINK: ("the file has too many links", ""),
        errno.EOPNOTSUPP: ("the file system cannot do that", ""),
    }
)


def reason(error: OSError | ValueError) -> str:
    """Say why a file operation failed, in lower case, without the path."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error).lower()
    number = error.errno or 0
    if number in _TABLE:
        return _TABLE[number][0]
    return error.strerror.lower() if error.strerror == os.strerror(number) else error.strerror


def hint(error: OSError | ValueError) -> str:
    """Say what the caller can do about it; "" when we do not know."""
    known = _TABLE.get(error.errno or 0) if isinstance(error, OSError) else None
    return known[1] if known is not None else ""


def unusable(file: str, error: OSError | ValueError, verb: str) -> InvalidTarget:
    """Make the refusal that says which file operation failed, and why.

    Args:
        file: Its path.
        error: What the operating system said.
        verb: The operation that failed: "create", "rename", "open for writing".
    """
    directory = os.path.dirname(file)
    number = error.errno if isinstance(error, OSError) else None
    why, what = reason(error), hint(error)
    if number in {errno.ENOENT, errno.ENOTDIR} and not os.path.isdir(directory):
        while not os.path.isdir(above := os.path.dirname(directory)) and above != directory:
            directory = above
        why = f"there is no directory {directory!r}"
        what = _CHECK if verb in _READING else "create it first"
    elif number in {errno.EACCES, errno.EPERM, errno.EROFS} and verb not in _READING:
        why = f"{directory!r} is not writable for qmpsnap ({why})"
    elif number == errno.EAGAIN:
        why = f"{user_of(file)} holds a lease or a lock on it"
    return InvalidTarget(f"cannot {verb} {file!r}: {why}", file=file, hint=what)
