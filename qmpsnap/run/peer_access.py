"""Which user QEMU runs as, and which of the files in its graph that user could not write.

On QEMU's word we move only files that QEMU itself could have moved: a compromised QEMU of another user
must not make us touch files that are not its user's. Everything here blocks, and asks only the kernel.
"""

# Paths stay as QEMU spells them:
# ruff: noqa: PTH116

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterable, Mapping

from msgspec import Struct

from qmpsnap.model.files import OpenFile
from qmpsnap.model.record_rules import is_plain
from qmpsnap.run.holders import written
from qmpsnap.run.os_errors import reason
from qmpsnap.run.proc import user_name
from qmpsnap.run.safe_open import kernel_text


class _Peer(Struct, frozen=True):
    user: int
    groups: frozenset[int]

    def __str__(self) -> str:
        return _named(self.user)


def barred(pid: int | None, files: Iterable[str], opened: Mapping[str, OpenFile]) -> dict[str, str]:
    """For each file that the process's user could not write, say why.

    Empty if the process runs as root or as our own user, or if it is not
    a process of this host.

    Args:
        pid: The process.
        files: The files, as the process names them.
        opened: Which file it has open behind each of these names.
    """
    peer = _peer(pid)
    if pid is None or peer is None or peer.user in {0, os.geteuid()}:
        return {}
    reasons = {}
    for file in files:
        why = _why(pid, peer, file, opened.get(file))
        if why:
            reasons[file] = f"QEMU runs as {peer}, we as {_named(os.geteuid())}: {why}"
    return reasons


def _why(pid: int, peer: _Peer, file: str, opened: OpenFile | None) -> str:
    if not is_plain(file) or posixpath.normpath(file) != file:
        return "its name is not a plain path"
    if opened is None or not opened.known:
        return "QEMU does not have it open"
    try:
        status = os.stat(file)
    except OSError as error:
        return reason(error)
    if (status.st_dev, status.st_ino) != (opened.device, opened.inode):
        return "QEMU has another file open"
    if _may_write(peer, status) or written(pid, among=[(status.st_dev, status.st_ino)]):
        return ""
    return f"it belongs to {_named(status.st_uid)}, mode {stat.S_IMODE(status.st_mode):o}"


def _may_write(peer: _Peer, status: os.stat_result) -> bool:
    if status.st_uid == peer.user:
        return bool(status.st_mode & stat.S_IWUSR)
    if status.st_gid in peer.groups:
        return bool(status.st_mode & stat.S_IWGRP)
    return bool(status.st_mode & stat.S_IWOTH)


def _peer(pid: int | None) -> _Peer | None:
    if pid is None:
        return None
    try:
        lines = kernel_text(f"/proc/{pid}/status").splitlines()
    except OSError:
        return None
    values = {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}
    try:
        # The kernel checks files by the last of the four ids: real, effective, saved, file system.
        user, group = int(values["Uid"][3]), int(values["Gid"][3])
        return _Peer(user, frozenset((group, *map(int, values.get("Groups", ())))))
    except (KeyError, IndexError, ValueError):
        return None


def _named(user: int) -> str:
    name = user_name(user)
    return f"user {user}" if name == str(user) else f"{name} ({user})"
