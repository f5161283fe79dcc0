"""Finds mounts whose storage may be gone, such as a server's: a question about a file there may never return.

Blocking, but for the kernel's answer alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from qmpsnap.run.safe_open import kernel_text

# Kinds of file systems that a server or a process answers for. st_dev of their files is the mount's device.
_REMOTE = re.compile(
    r"(nfs\d?|cifs|smb\d?|smbfs|ceph|9p|afs|virtiofs|lustre|glusterfs|orangefs|beegfs|gpfs|fuse)(\..*)?"
)


def remote_mounts(pid: int) -> Mapping[str, int]:
    """The device (st_dev) of each remote mount of a process, by the mount's id; empty if we may not look."""
    try:
        lines = kernel_text(f"/proc/{pid}/mountinfo").splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        # man 5 proc: id, parent, MAJOR:MINOR, root, place, options, optional fields, -, kind, source, options
        fields = line.split(" ")
        kind = fields[fields.index("-", 6) + 1] if "-" in fields[6:] else ""
        if _REMOTE.fullmatch(kind):
            major, minor = fields[2].split(":")
            found[fields[0]] = os.makedev(int(major), int(minor))
    return found
