"""Finds mounts whose storage may be gone, such as a server's: a question about a file there may never return.

Blocking, but for the kernel's answer alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from qmpsnap.run.safe_open import kernel_text

# Kinds of file systems that a server or a process answers for. st_dev of their files is the mount's device.
_REMOTE = re.compile(
    r"(nfs\d?|cifs|smb\d?|smbfs|ceph|9p|afs|virtiofs|lustre|glusterfs|orangefs|beegfs|gpfs|fuse)(\..*)?"
)
_ESCAPED = re.compile(r"\\([0-7]{3})")  # a space, a tab, a newline or a backslash of a path


def remote_mounts(pid: int) -> Mapping[str, int]:
    """The device (st_dev) of each remote mount of a process, by the mount's id; empty if we may not look."""
    return {mount: device for mount, _, device, is_remote in _mounts(pid) if is_remote}


def remote_device(path: str) -> int | None:
    """The device (st_dev) of the remote mount of ours on which a file is; None: it is on no remote mount.

    Args:
        path: Its path as the kernel spells it: absolute, and through no link.
    """
    over: tuple[str, int | None] = ("", None)
    for _, place, device, is_remote in _mounts(os.getpid()):
        below = place.removesuffix("/")
        # Of two mounts at one place the later covers the earlier.
        if (path == below or path.startswith(f"{below}/")) and len(below) >= len(over[0]):
            over = below, device if is_remote else None
    return over[1]


def _mounts(pid: int) -> Iterator[tuple[str, str, int, bool]]:
    """The id, the place and the device of each mount of a process, and whether it is remote."""
    try:
        lines = kernel_text(f"/proc/{pid}/mountinfo").split("\n")
    except OSError:
        return
    for line in filter(None, lines):
        # man 5 proc: id, parent, MAJOR:MINOR, root, place, options, optional fields, -, kind, source, options
        fields = line.split(" ")
        kind = fields[fields.index("-", 6) + 1] if "-" in fields[6:] else ""
        major, minor = fields[2].split(":")
        place = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), fields[4])
        yield fields[0], place, os.makedev(int(major), int(minor)), _REMOTE.fullmatch(kind) is not None
