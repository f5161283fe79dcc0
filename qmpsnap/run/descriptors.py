"""Which file QEMU has open behind each of its file names, by the descriptors of its process.

Everything here blocks, reads only /proc, and trusts no name: a name leads to QEMU's file if device and
inode equal those of one of its descriptors.
"""

# Descriptors need os, and paths stay as QEMU spells them:
# ruff: noqa: PTH115, PTH116, PTH208

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from msgspec import Struct

from qmpsnap.model.files import OpenFile, OpenName, OpenState, Reopens
from qmpsnap.model.header import QCOW_MAGIC
from qmpsnap.model.parse import FDSET, OWN_FDS
from qmpsnap.run.safe_open import kernel_text, open_block, open_file

_DELETED = " (deleted)"  # fs/d_path.c
_NO_IMAGE = (
    "/memfd:",
    "/dev/zero",
    "/dev/null",
    "/dev/pts/",
    "/dev/net/",
    "/dev/kvm",
    "/dev/urandom",
    "/anon_",
)
_SECTOR = 512  # bytes; QEMU rounds a raw image's size up to whole ones
_Key = tuple[int, int]


class Opened(Struct, frozen=True):
    """Which of the given names a process has open.

    Attributes:
        files: By name.
        same_view: Whether the process sees the file system that we see: mount namespace and root are ours.
    """

    files: Mapping[str, OpenFile]
    same_view: bool = False

    @property
    def proven(self) -> bool:
        """Whether the process is the QEMU in question: it has at least one of the files open."""
        return any(file.known for file in self.files.values())


class _Descriptor(Struct, frozen=True):
    link: str  # how /proc tells it: "/proc/PID/fd/N"
    key: _Key
    unlinked: bool

    @property
    def target(self) -> str:
        try:
            return os.readlink(self.link)
        except OSError:  # closed meanwhile
            return ""

    @property
    def path(self) -> str:
        """A path that leads here to this very file, or ""."""
        target = self.target
        return target if target.startswith("/") and _key(target) == self.key else ""

    @property
    def may_be_image(self) -> bool:
        """Whether it can be read, and is no standard stream: a log or a pid file can be written alone."""
        target = self.target
        standard = self.link.rpartition("/")[2] in {"0", "1", "2"}
        if standard or not target.startswith("/") or target.startswith(_NO_IMAGE):
            return False
        try:
            lines = kernel_text(self.link.replace("/fd/", "/fdinfo/")).splitlines()
        except OSError:
            return False
        flags = next((line for line in lines if line.startswith("flags:")), "flags: 0")
        return int(flags.split()[1], 8) & os.O_ACCMODE != os.O_WRONLY

    def holds(self, image: OpenName) -> bool:
        """Whether it can be that image, by its first bytes or its size."""
        if not image.format:
            return True
        try:
            status = os.stat(self.link)
            start = _start(self.link, block=stat.S_ISBLK(status.st_mode))
        except OSError:
            return False
        if image.format == "qcow2":
            return start[:4] == QCOW_MAGIC and int.from_bytes(start[24:32], "big") == image.virtual_size
        if image.format == "raw" and stat.S_ISREG(status.st_mode):
            return status.st_size >= image.virtual_size - _SECTOR
        return True


def open_files(pid: int, names: Iterable[OpenName]) -> Opened:
    """Find which file the process has open under each name.

    One pass over its descriptors; more only for a name that does not lead to one of them.

    Args:
        pid: The process.
        names: Absolute paths, each with the process's own spelling of it and what image it is.
    """
    names = tuple(names)
    held = _descriptors(pid)
    if held is None:
        return Opened(MappingProxyType({name.name: OpenFile(name.name, "unknown") for name in names}))
    shared = same_view(pid)
    found: dict[str, OpenFile] = {}
    for name in names:
        key = _key(name.name)
        if key is not None and key in held:
            reopens: Reopens = "same" if name.spelled == name.name else _reopens(pid, name.spelled, key)
            found[name.name] = OpenFile(name.name, "same", name.name, *key, reopens=reopens)
    claimed = {(opened_file.device, opened_file.inode) for opened_file in found.values()}
    lost = [name for name in names if name.name not in found]
    left = [item for key, item in held.items() if lost and key not in claimed and item.may_be_image]
    for name in lost:
        found[name.name] = _lost(pid, name, left) if shared else _elsewhere(pid, name, held, left)
    return Opened(MappingProxyType(found), shared)


def image_files(pid: int) -> dict[_Key, str] | None:
    """Files and block devices that a process has open and that can be images, each with its path.

    None when we may not look.
    """
    held = _descriptors(pid)
    if held is None:
        return None
    return {key: item.target for key, item in held.items() if item.may_be_image and not _is_character(item)}


def real_names(
    pid: int | None, names: Iterable[str], cwd: str, fdsets: Mapping[str, Iterable[int]]
) -> dict[str, str]:
    """Find the paths behind names that mean nothing outside the process: relative ones and descriptors.

    Args:
        pid: The process.
        names: Every file name in use, as the process spells it.
        cwd: Its working directory, or "".
        fdsets: Of each descriptor set (by its name, "/dev/fdset/N") the descriptors in it.

    Returns:
        The path of each odd name that could be found; from a relative one without a proof none.
    """
    held = _descriptors(pid) if pid is not None else None
    if held is None:
        return {}
    real: dict[str, str] = {}
    open_names = list(dict.fromkeys(names))
    for name in open_names:
        if name.startswith(FDSET):
            keys = {_key(f"/proc/{pid}/fd/{number}") for number in fdsets.get(name, ())}
            paths = {held[key].path for key in keys if key is not None and key in held}
            if len(paths) == 1 and (path := paths.pop()):
                real[name] = path
        elif name.startswith(OWN_FDS):
            key = _key(f"/proc/{pid}/fd/{posixpath.basename(name)}")
            if key is not None and key in held and (path := held[key].path):
                real[name] = path
        elif not name.startswith("/") and cwd:
            joined = posixpath.normpath(posixpath.join(cwd, name))
            if (key := _key(joined)) is not None and key in held:
                real[name] = joined
    lost = [name for name in open_names if name not in real and not name.startswith("/")]
    if not lost:
        return real
    claimed = {_key(real.get(name, name)) for name in open_names if name not in lost}
    left = [one for key, one in held.items() if key not in claimed and one.may_be_image]
    paths = {path for item in left if (path := item.path)}
    for name in lost:
        ending = "/" + re.sub(r"^(\.\./)+", "", posixpath.normpath(name))
        fitting = [path for path in paths if path.endswith(ending)]
        if not fitting and len(lost) == len(paths) == 1:  # it was opened through a symlink
            fitting = [*paths]
        if len(fitting) == 1:
            real[name] = fitting[0]
    return real


def _lost(pid: int, name: OpenName, left: list[_Descriptor], *, root: str = "") -> OpenFile:
    """Find the file that the process has open under a name that does not lead to it any more.

    Args:
        pid: The process.
        name: The name.
        left: Open files to which no other name leads.
        root: Path of its root directory; "" if it is ours.
    """
    real = os.path.realpath(name.name)
    base = posixpath.basename(real)
    replaced = _key(root + name.name) is not None
    deleted = {f"{name.name}{_DELETED}", f"{real}{_DELETED}"}
    fitting = [item for item in left if item.holds(name)]
    if not fitting:
        return OpenFile(name.name, "unknown", replaced=replaced)
    candidates = (
        [item for item in fitting if item.target in deleted]
        or [item for item in fitting if posixpath.basename(item.target) == base]
        or fitting
    )
    if len(candidates) != 1:
        return OpenFile(name.name, "moved", replaced=replaced)  # to one of several
    (item,) = candidates
    state: OpenState = "unlinked" if item.unlinked else "moved"
    path = "" if item.unlinked else item.path or _beside(name.name, item.key)
    reopens = _reopens(pid, name.spelled, item.key)
    return OpenFile(name.name, state, path, *item.key, replaced=replaced, reopens=reopens)


def _elsewhere(
    pid: int, name: OpenName, held: Mapping[_Key, _Descriptor], left: list[_Descriptor]
) -> OpenFile:
    """A name that leads to no file of the process here, where it sees another file system."""
    key = _key(f"/proc/{pid}/root{name.name}")
    if key is not None and key in held:
        return OpenFile(name.name, "unknown", "", *key)
    return _lost(pid, name, left, root=f"/proc/{pid}/root")


def _beside(name: str, key: _Key) -> str:
    """Another name of the file in the directory of its old one, as a hard link is, or ""."""
    where = posixpath.dirname(name)
    try:
        entries = sorted(os.listdir(where))
    except OSError:
        return ""
    return next((path for entry in entries if _key(path := posixpath.join(where, entry)) == key), "")


def _reopens(pid: int, spelled: str, key: _Key) -> Reopens:
    """What the process would get if it opened its own spelling of the name again."""
    if spelled.startswith((FDSET, *OWN_FDS)):
        return "same"
    start = f"/proc/{pid}/root" if spelled.startswith("/") else f"/proc/{pid}/cwd/"
    opened = _key(start + spelled)
    return "nothing" if opened is None else "same" if opened == key else "other"


def _descriptors(pid: int) -> dict[_Key, _Descriptor] | None:
    """Regular files and devices that the process has open; None when we may not look."""
    directory = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(directory)
    except OSError:
        return None
    held: dict[_Key, _Descriptor] = {}
    for number in numbers:
        link = f"{directory}/{number}"
        try:
            status = os.stat(link)
        except OSError:  # closed meanwhile
            continue
        key = _identity(status)
        if key is not None:
            held.setdefault(key, _Descriptor(link, key, unlinked=status.st_nlink == 0))
    return held


def _is_character(item: _Descriptor) -> bool:
    try:
        return stat.S_ISCHR(os.stat(item.link).st_mode)
    except OSError:  # closed meanwhile
        return False


def _start(link: str, *, block: bool) -> bytes:
    descriptor = open_block(link) if block else open_file(link, follow=True)
    try:
        return os.pread(descriptor, 32, 0)
    finally:
        os.close(descriptor)


def _key(path: str) -> _Key | None:
    try:
        return _identity(os.stat(path))
    except (OSError, ValueError):
        return None


def _identity(status: os.stat_result) -> _Key | None:
    """Device and inode of the file; None if it cannot be an image."""
    if stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode):
        return status.st_dev, status.st_ino
    return None


def same_view(pid: int) -> bool:
    """Whether the process sees the file system that we see; False if we may not know."""
    try:
        return all(
            os.path.samestat(os.stat(f"/proc/{pid}/{what}"), os.stat(f"/proc/self/{what}"))
            for what in ("ns/mnt", "root")
        )
    except OSError:
        return False


def identity(pid: int | None) -> str:
    """A string that identifies the process, even if its pid is reused later; "" when it is not known."""
    if pid is None:
        return ""
    try:
        started = kernel_text(f"/proc/{pid}/stat").rpartition(")")[2].split()[19]  # ticks since the start
    except (OSError, IndexError):
        return ""
    return f"{pid}.{started}"


def working_directory(pid: int | None) -> str:
    """The process's working directory, or "" when we may not know."""
    if pid is None:
        return ""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""
