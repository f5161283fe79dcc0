"""Finds the images that a QEMU has open, and what stands on what, from its descriptors and the headers.

Nothing is asked of QEMU. Blocking.
"""

# Descriptors need os, and paths stay as QEMU spells them:
# ruff: noqa: PTH115, PTH116, PTH208

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence

from msgspec import Struct

from qmpsnap.model.command_line.image_names import image_names
from qmpsnap.model.command_line.options import Option
from qmpsnap.model.header import Header, backing_path
from qmpsnap.model.running_qemu import OpenDisk
from qmpsnap.run.holders import FileId
from qmpsnap.run.image_headers import descriptor_header
from qmpsnap.run.process_paths import seen_as, status_of
from qmpsnap.run.safe_open import kernel_text, open_block, open_file

_STANDARD = frozenset({"0", "1", "2"})
_LOCKS = range(100, 300)  # bytes; block/file-posix.c: RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE


class _Image(Struct, frozen=True):
    path: str
    header: Header | None
    backing: FileId | None
    data_file: FileId | None


def open_disks(pid: int, options: Sequence[Option]) -> tuple[OpenDisk, ...] | None:
    """The images that the process has open, a disk each, with the images beneath; None if we may not look.

    A file is an image if it has a qcow2 header, or QEMU's image locks are on it.

    Args:
        pid: The process.
        options: Its command line, which names the disks.
    """
    images = _images(pid)
    if images is None:
        return None
    beneath = {image.backing for image in images.values()} | {image.data_file for image in images.values()}
    chains = [_chain(images, key) for key in images if key not in beneath]
    names = _names(pid, options, chains)
    return tuple(
        OpenDisk(names.get(chain[0], ""), tuple(images[key].path for key in chain), _rest(images[chain[-1]]))
        for chain in chains
    )


def _chain(images: Mapping[FileId, _Image], top: FileId) -> list[FileId]:
    chain = [top]
    while (below := images[chain[-1]].backing) is not None and below in images and below not in chain:
        chain.append(below)
    return chain


def _rest(lowest: _Image) -> str:
    """The backing file that the lowest layer names, which is not open."""
    return lowest.header.backing or "" if lowest.header is not None else ""


def _names(pid: int, options: Sequence[Option], chains: Sequence[Sequence[FileId]]) -> dict[FileId, str]:
    """The disk of each chain, by its active layer, if the command line names the image of just one in it."""
    found: dict[FileId, list[str]] = {}
    for disk, file in image_names(options).items():
        keys = {_key(status) for seen in seen_as(pid, file) if (status := status_of(pid, seen)) is not None}
        holding = [chain[0] for chain in chains if not keys.isdisjoint(chain)]
        if len(holding) == 1:
            found.setdefault(holding[0], []).append(disk)
    return {top: disks[0] for top, disks in found.items() if len(disks) == 1}


def _images(pid: int) -> dict[FileId, _Image] | None:
    directory = f"/proc/{pid}/fd"
    try:
        numbers = sorted(os.listdir(directory), key=int)
    except OSError:
        return None
    found: dict[FileId, _Image] = {}
    for number in numbers:
        try:
            status = os.stat(f"{directory}/{number}")
            if number not in _STANDARD and (key := _key(status)) not in found and _may_be_image(status):
                image = _image(pid, number, status)
                if image is not None:
                    found[key] = image
        except OSError:  # closed meanwhile
            continue
    return found


def _may_be_image(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)


def _image(pid: int, number: str, status: os.stat_result) -> _Image | None:
    link = f"/proc/{pid}/fd/{number}"
    header = _header(link, block=stat.S_ISBLK(status.st_mode))
    if header is None and not _is_locked(kernel_text(f"/proc/{pid}/fdinfo/{number}")):
        return None
    path = os.readlink(link)
    backing = header.backing if header is not None else None
    data_file = header.data_file if header is not None else None
    return _Image(path, header, _leads_to(pid, backing, path), _leads_to(pid, data_file, path))


def _header(link: str, *, block: bool) -> Header | None:
    try:
        descriptor = open_block(link) if block else open_file(link, follow=True)
    except OSError:
        return None
    try:
        return descriptor_header(descriptor)
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)


def _is_locked(fdinfo: str) -> bool:
    """Whether a descriptor has image locks: "lock: 1: OFDLCK ADVISORY READ -1 fe:00:12 100 101"."""
    locks = [line.split() for line in fdinfo.splitlines() if line.startswith("lock:")]
    return any(words[2] == "OFDLCK" and int(words[-2]) in _LOCKS for words in locks if words[-2].isdecimal())


def _leads_to(pid: int, recorded: str | None, of: str) -> FileId | None:
    path = backing_path(recorded, of=of) if recorded else None
    status = status_of(pid, path) if path is not None else None
    return _key(status) if status is not None else None


def _key(status: os.stat_result) -> FileId:
    return status.st_dev, status.st_ino
