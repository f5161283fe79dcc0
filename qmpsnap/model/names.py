"""Names that we generate, and the grammar of the names that callers choose.

Only this file knows how the names of jobs, nodes and overlays are formed.
"""

from __future__ import annotations

import base64
import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from qmpsnap.errors import BadName

SCRATCH: Final = "qmpsnap-run-"  # with which names of private directories for temporary files begin
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_OWNED = "qmpsnap-a-"
_NAME_MAX = 255  # bytes
_ATTEMPTS = 9  # names that an invalid file may get
_INVALID = re.compile(r".+\.invalid(\.\d+)?", re.DOTALL)
_STATE = ".qmpsnap"
_KEPT_INSIDE = "qmpsnap-before-"
_LONG = 32  # characters of a disk's name that go into a file's


def check_name(name: str) -> str:
    """Return `name` if it is a valid snapshot name.

    Raises:
        BadName: When it does not match `[A-Za-z0-9_][A-Za-z0-9._-]{0,63}`.
    """
    if is_name(name):
        return name
    raise BadName(
        f"{name!r} is not a valid snapshot name",
        name=name,
        hint="use letters, digits, '_', '.' and '-', at most 64, beginning with a letter, digit or '_'",
    )


def is_name(text: str) -> bool:
    """Whether it is a name that a caller may choose, for a snapshot or for a disk that has no device."""
    return _NAME.fullmatch(text) is not None


def digest(*parts: object, avoid: Collection[str] = ()) -> str:
    """Eight hex digits derived from the parts, such that no member of `avoid` ends in them.

    Deterministic on purpose: a plan printed by a dry run names the jobs and nodes that the run uses.
    """
    salt = 0
    while True:
        text = hashlib.blake2s(
            repr((parts, salt)).encode(errors="surrogateescape"), digest_size=4
        ).hexdigest()
        if not any(name.endswith(text) for name in avoid):
            return text
        salt += 1


def job_id(op: str, ending: str, token: str) -> str:
    """Id of a job, from which a later client knows what the job is and how it has to end.

    Args:
        op: The operation as in its record, such as "commit" or "checkpoint".
        ending: "pivot", "copy" or "keep" (the root stays).
        token: Eight hex digits.
    """
    return f"qmpsnap-{op}-{ending}-{token}"


def node_name(token: str, *, owned: bool = False) -> str:
    """node-name of an overlay or target, at most 31 bytes.

    Args:
        token: Eight hex digits.
        owned: Whether we add it by blockdev-add, so that only a blockdev-del removes it.
    """
    return f"{_OWNED}{token}" if owned else f"qmpsnap-{token}"


def image_nodes(disk: str, file: str) -> tuple[str, str, str]:
    """node-names of an image that we open ourselves for a disk, of its file, and of its data file."""
    token = digest("image", disk, file)
    return node_name(token, owned=True), node_name(token), node_name(digest("data", token))


def closes_unused(name: str) -> bool:
    """Whether a node goes once no disk uses it: QEMU named it, or it is ours; others' stay until deleted."""
    return name.startswith(("#", "qmpsnap-"))


def is_owned_node(name: str) -> bool:
    """Whether we added the node, and have to delete it when it is no longer used."""
    return name.startswith(_OWNED)


def fit_name(name: str, ending: str) -> str:
    """Join a file name and an ending; a name that would be too long is cut, and kept unique by a digest.

    NAME_MAX of Linux is 255 bytes; the rare file systems with a smaller limit fail when the file is created.
    """
    encoded = name.encode(errors="surrogateescape")
    room = _NAME_MAX - len(ending.encode(errors="surrogateescape"))
    if len(encoded) <= room:
        return name + ending
    cut = encoded[: room - 9]
    while cut and (encoded[len(cut)] & 0xC0) == 0x80:  # not within a character
        cut = cut[:-1]
    return f"{cut.decode(errors='surrogateescape')}-{digest(name)}{ending}"


def stem(file: str) -> str:
    """Last part of the path without its last suffix: "/d/base.qcow2" gives "base"."""
    name = posixpath.basename(file)
    return posixpath.splitext(name)[0] or name


def overlay_file(*, active: str, base: str, name: str) -> str:
    """Default path of an overlay: `STEM-of-base.NAME.qcow2` beside the active layer."""
    return posixpath.join(posixpath.dirname(active), fit_name(stem(base), f".{name}.qcow2"))


def overlay_files(
    disks: Mapping[str, tuple[str, str]], name: str, *, given: Collection[str] = ()
) -> dict[str, str]:
    """Default paths of one operation's overlays, by disk: as `overlay_file`, but all different.

    Disks that would get the same path, such as thin clones of one base, get their names into it:
    `STEM-of-base.DISK.NAME.qcow2`.

    Args:
        disks: For each disk the files of the active layer and of the base image.
        name: The moment's name, and what else is to follow it.
        given: Files that the operation's other disks get.
    """
    files = {disk: overlay_file(active=top, base=base, name=name) for disk, (top, base) in disks.items()}
    for _ in disks:  # a longer name may be what another disk's shorter one is
        count = Counter([*files.values(), *given])
        shared = [disk for disk, file in files.items() if count[file] > 1]
        for disk in shared:
            top, base = disks[disk]
            files[disk] = overlay_file(active=top, base=base, name=f"{disk_part(disk)}.{name}")
    return files


def disk_part(disk: str) -> str:
    """A disk's name as part of a file name; it has no dot, so that no two paths collide."""
    part = re.sub(r"[^A-Za-z0-9_-]+", "-", disk)
    return disk if part == disk and len(disk) <= _LONG else f"{part[:_LONG].strip('-')}-{digest(disk)}"


def kept_inside(token: str) -> str:
    """Name of the snapshot that keeps, inside an image, what it held before a revert, until that is done."""
    return _KEPT_INSIDE + token


def is_kept_inside(name: str) -> bool:
    """Whether the name is one that `kept_inside` gives."""
    return re.fullmatch(_KEPT_INSIDE + r"[0-9a-f]{8}", name) is not None


def is_device_path(path: str) -> bool:
    """Whether the path is below /dev (but not /dev/shm), where we create no files."""
    return path.startswith("/dev/") and not path.startswith("/dev/shm/")  # noqa: S108


def state_directory(base: str) -> str:
    """Directory of our records for machines on this base image: `STEM-of-base.qmpsnap` beside it."""
    return posixpath.join(posixpath.dirname(base), fit_name(stem(base), _STATE))


def is_state_directory(path: str) -> bool:
    """Whether the path is one that `state_directory` gives for a file."""
    return path.startswith("/") and path.endswith(_STATE) and posixpath.normpath(path) == path


def layer_key(file: str) -> str:
    """Four characters that stand for a layer in the names of records; some other file may have the same."""
    whole = hashlib.blake2s(file.encode(errors="surrogateescape"), digest_size=3).digest()
    return base64.urlsafe_b64encode(whole).decode("ascii")


def state_directory_choices(base: str, files: Iterable[str]) -> tuple[str, ...]:
    """Directories of records for machines on this base image, by preference; none is below /dev.

    Args:
        base: The base image, whose name the directory has.
        files: The chain, from base to active: a directory beside each, then one named after each.
    """
    files = [file for file in files if file.startswith("/") and not is_device_path(file)]
    places = dict.fromkeys(map(posixpath.dirname, files))
    name = fit_name(stem(base), _STATE)
    beside = [posixpath.join(place, name) for place in places]
    return tuple(dict.fromkeys((*beside, *map(state_directory, files))))


def invalid_name(file: str, *, attempt: int = 1) -> str:
    """Name under which a committed file is kept: "FILE.invalid", then "FILE.invalid.2" and so on.

    A name that would become too long is cut, so that every snapshot can be committed.
    """
    ending = ".invalid" if attempt == 1 else f".invalid.{attempt}"
    directory, slash, name = file.rpartition("/")
    return f"{directory}{slash}{fit_name(name, ending)}"


def invalid_names(file: str) -> tuple[str, ...]:
    """Every name that a committed file may get, the first choice first."""
    return tuple(invalid_name(file, attempt=attempt) for attempt in range(1, _ATTEMPTS + 1))


def missing_name(file: str, mark: str) -> str:
    """A name that no file has, for a layer that was not found because another image has its name.

    Args:
        file: The earlier name of the layer.
        mark: The mark in its header.
    """
    return f"{file}.missing-{mark[:8]}"


def is_invalid_name(file: str) -> bool:
    """Whether the name marks a file that no longer holds a moment; a survey skips such files."""
    return _INVALID.fullmatch(file) is not None
