"""Decides which images of a machine that is off are refused, before any tool opens them.

A header is untrusted: whoever created the image chose what it names. So a layer is opened in the format that
the caller gives or the overlay records, never in one that its content suggests, and a name must lead to a
plain file in a directory that the caller named.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable

from qmpsnap.errors import StillNeeded, UnsafeImage, Unsupported
from qmpsnap.model.header import Header, backing_path, is_plain_name
from qmpsnap.model.hints import command, quoted
from qmpsnap.model.image_chain import ImageChain, ImageFormat, ImageLayer
from qmpsnap.model.option_hints import Hint, Named
from qmpsnap.model.wrong_start import WrongStart

LONGEST_CHAIN = 1000
"""Layers of a disk; QEMU reads a graph in a time that grows with the square of their number."""

_DIRTY, _CORRUPT, _EXTENDED_L2 = 1, 2, 16  # qcow2's incompatible features
_KNOWN = 31  # with the compression type
_LONGEST_L1 = 32 << 20  # bytes; block/qcow2.h: QCOW_MAX_L1_SIZE
_MOST_SNAPSHOTS = 65536  # block/qcow2.h: QCOW_MAX_SNAPSHOTS
_LUKS = 2  # the method of encryption that QEMU opens
_SUFFIX = ".qcow2"

_BRANCHES = ("snapshot", "commit")  # a commit searches for images on what it changes, which may be given up


def chosen_format(disk: str, file: str, header: Header | None, wanted: str | None) -> ImageFormat:
    """The format in which a disk's active layer is opened.

    Args:
        disk: The disk.
        file: The image that the caller named.
        header: Its qcow2 header, if it has one.
        wanted: The format that the caller gave, if any.

    Raises:
        UnsafeImage: When no format was given and the name does not show it, or the header contradicts it.
    """
    raw, qcow2 = (Named("format", (quoted(disk), word, disk)) for word in ("raw", "qcow2"))
    if wanted == "raw":
        return "raw"
    if wanted == "qcow2" or file.endswith(_SUFFIX):
        if header is not None:
            return "qcow2"
        given = "was given as qcow2" if wanted else f"has a name in {_SUFFIX}"
        raise UnsafeImage(
            f"{file!r} {given}, but has no qcow2 header",
            file=file,
            hint=Hint("if it is a raw image: ", raw),
        )
    if header is None:
        raise UnsafeImage(
            f"the format of {file!r} was not given", file=file, hint=Hint("if it is raw: ", raw)
        )
    raise UnsafeImage(
        f"the format of {file!r} was not given: its qcow2 header may have been written by a guest into its "
        "raw disk",
        file=file,
        hint=Hint(raw, ", or if the image was made as qcow2: ", qcow2),
    )


def recorded_format(layer: ImageLayer, backing: str) -> ImageFormat:
    """The format in which a layer's backing file is opened.

    Args:
        layer: The layer.
        backing: Path of its backing file.

    Raises:
        UnsafeImage: When the header records no format, so that QEMU would probe it.
        Unsupported: When the header records a format other than raw or qcow2.
    """
    recorded = layer.header.backing_format if layer.header is not None else None
    if recorded is None:
        rebase = f"qemu-img rebase -u -b {quoted(layer.backing or '')} -F FORMAT {quoted(layer.file)}"
        raise UnsafeImage(
            f"{layer.file!r} does not record the format of its backing file {backing!r}",
            file=layer.file,
            hint=f"record the format with which that image was made: {rebase}",
        )
    if recorded not in {"raw", "qcow2"}:
        raise Unsupported(
            f"{layer.file!r} records the format {recorded!r} for its backing file: with the machine off "
            "only raw and qcow2 images are opened",
            feature="images of other formats",
            hint="start the machine, and use -s",
        )
    return "raw" if recorded == "raw" else "qcow2"


def backing_file(layer: ImageLayer) -> str | None:
    """The absolute path of a layer's backing file, if it has one; symlinks and ".." are not resolved.

    Raises:
        UnsafeImage: When the header names something other than a plain file.
    """
    if layer.backing is None:
        return None
    path = backing_path(layer.backing, of=layer.file) if is_plain_name(layer.backing) else None
    if path is None:
        raise UnsafeImage(
            f"{layer.file!r} records {layer.backing!r} as its backing file, which is not a plain file name",
            file=layer.file,
            hint="if you trust the image, start the machine, and use -s",
        )
    return path


def data_file(file: str, header: Header) -> str | None:
    """The absolute path of an image's external data file, if it has one; symlinks are not resolved.

    Raises:
        UnsafeImage: When its header does not name an absolute path: QEMU takes a relative one from the
            directory in which it was started (7.2, 10.0 and 11.1), which is recorded nowhere.
    """
    name = header.data_file
    if name is None:
        return None
    path = backing_path(name, of=file) if is_plain_name(name) else None
    if path is None or not name.removeprefix("file:").startswith("/"):
        what = (
            f"{name!r} as its data file, which is not an absolute path"
            if name
            else "no name of its data file"
        )
        raise UnsafeImage(
            f"{file!r} records {what}",
            file=file,
            hint=f"if you trust the image: qemu-img amend -f qcow2 -o data_file=/PATH {quoted(file)}",
        )
    return path


def refuse_outside(real: str, *, file: str, own: str, allowed: Collection[str], named_by: str = "") -> None:
    """Refuse a file that is outside the directories in which the images of a disk may be.

    Args:
        real: Its path without symlinks.
        file: The path that was followed.
        own: Real path of the directory of the image that the caller named; those below it do not count.
        allowed: Real paths of directories that the caller allows, with all below them.
        named_by: The image whose header names the file; "" for the one that the caller named.

    Raises:
        UnsafeImage: Naming the directory.
    """
    where = posixpath.dirname(real)
    if where == own or any(where == root or where.startswith(root.rstrip("/") + "/") for root in allowed):
        return
    link = f", a symbolic link to {real!r}" if real != posixpath.normpath(file) else ""
    what = f"{named_by!r} leads to {file!r}{link}" if named_by else f"{file!r} is {link.removeprefix(', ')}"
    raise UnsafeImage(
        f"{what}, outside the directory {own!r}",
        file=named_by or file,
        hint=f"if you trust the image: --allow-dir {quoted(where)}",
    )


def refuse_header(file: str, header: Header) -> None:
    """Refuse a header that no QEMU writes, or that has features that we do not know.

    Raises:
        UnsafeImage: When a number in it is out of range.
        Unsupported: When it has an unknown incompatible feature.
    """
    cluster = 1 << header.cluster_bits
    covered = header.l1_entries * (cluster // (16 if header.incompatible & _EXTENDED_L2 else 8)) * cluster
    problem = ""
    if header.l1_entries * 8 > _LONGEST_L1:
        problem = f"an L1 table of {header.l1_entries} entries"
    elif header.virtual_size > covered:
        problem = f"a virtual size of {header.virtual_size} bytes, of which its L1 table covers {covered}"
    elif header.snapshot_count > _MOST_SNAPSHOTS:
        problem = f"{header.snapshot_count} snapshots"
    if problem:
        raise UnsafeImage(f"the header of {file!r} is invalid: it claims {problem}", file=file)
    if header.incompatible & ~_KNOWN:
        raise Unsupported(
            f"{file!r} has features that are not known here (incompatible features "
            f"{header.incompatible & ~_KNOWN:#x})",
            feature="unknown features of qcow2",
        )


def refuse_unusable_header(file: str, header: Header) -> None:
    """Refuse an image that can be listed, but must not be opened for changes.

    Raises:
        UnsafeImage: When it is marked as corrupt, or was not closed properly.
        Unsupported: When its data are encrypted.
    """
    if header.incompatible & (_CORRUPT | _DIRTY):
        why = "is marked as corrupt" if header.incompatible & _CORRUPT else "was not closed properly"
        raise UnsafeImage(
            f"{file!r} {why}",
            file=file,
            hint=f"keep a copy of it, then: qemu-img check -f qcow2 -r all {quoted(file)}",
        )
    if header.encryption:
        method = "LUKS" if header.encryption == _LUKS else "AES"
        raise Unsupported(
            f"{file!r} is encrypted ({method}), and no secret passes through qmpsnap",
            feature="encrypted images of a machine that is off",
            hint="start the machine, which gives QEMU the secret, and use -s",
        )


def refuse_truncated(file: str, lost: str) -> None:
    """Refuse an image whose file ends before one of its tables.

    QEMU reads such a table as zeroes. Without its L1 table, or an L2 table, a disk reads what the layers
    beneath hold, and a stream succeeds; without its refcounts a storage daemon hangs in a stream (all three).

    Args:
        file: The image.
        lost: What lies beyond the end, as `lost_table` tells; "" for nothing.

    Raises:
        UnsafeImage: When something does.
    """
    if lost:
        raise UnsafeImage(
            f"{file!r} is truncated: its file ends before its {lost}",
            file=file,
            hint="use another copy of it; qemu-img check says what else is missing",
        )


def refuse_unspeakable(file: str) -> None:
    """Refuse a file name that is not UTF-8, because QMP cannot send it to QEMU.

    Raises:
        Unsupported: When it is not UTF-8.
    """
    try:
        file.encode()
    except UnicodeEncodeError as error:
        raise Unsupported(
            f"the name {file!r} is not UTF-8, so QEMU cannot be told to open that file",
            feature="file names that are not UTF-8",
            hint="rename it, and change the name in the overlay on it (qemu-img rebase -u)",
        ) from error


def refuse_below(kind: str, disks: Collection[str], found: Iterable[WrongStart]) -> None:
    """Refuse to change a disk whose active layer is the backing file of other images; a snapshot may branch.

    Args:
        kind: The kind of the intent.
        disks: Names of the disks that it works on.
        found: Disks of which such a layer was named.

    Raises:
        StillNeeded: Naming the newest images above it.
    """
    for wrong in found:
        if wrong.disk in disks and kind not in _BRANCHES:
            newest = " or ".join(f"-i {quoted(wrong.disk)}={quoted(file)}" for file in wrong.newest)
            raise StillNeeded(
                f"still needed by {', '.join(wrong.newest)}: backed by {wrong.active}, which is named as the "
                f"active layer of {wrong.disk}",
                by=wrong.newest,
                hint=f"name the newest layer: {newest}; or branch from it first: "
                + command("-i", f"{wrong.disk}={wrong.active}", "snapshot"),
            )


def refuse_shared(chains: Iterable[ImageChain]) -> None:
    """Refuse two disks of which one writes into a layer of the other.

    Raises:
        UnsafeImage: When two disks have the same active layer, or a data file is used twice.
        StillNeeded: When the active layer of a disk is a lower layer of another one.
    """
    tops: dict[tuple[int, int], ImageChain] = {}
    chains = tuple(chains)
    for chain in chains:
        other = tops.setdefault(chain.active.opened[0][1], chain)
        if other is not chain:
            raise UnsafeImage(
                f"the disks {other.disk} and {chain.disk} are the same image, {chain.active.file!r}",
                file=chain.active.file,
            )
    written: dict[tuple[int, int], ImageLayer] = {}
    for chain in chains:
        for index, layer in enumerate(chain.layers):
            top = tops.get(layer.opened[0][1])
            if index and top is not None:
                raise StillNeeded(
                    f"{top.active.file!r} is the disk {top.disk}, and is needed by {chain.active.file!r}, "
                    f"the disk {chain.disk}",
                    by=[chain.active.file],
                    hint=f"name one of them: -i {quoted(chain.disk)}={quoted(chain.active.file)}",
                )
            for _, key in layer.opened[1:]:
                user = written.setdefault(key, layer)
                if user.opened[0] != layer.opened[0]:
                    raise UnsafeImage(
                        f"{layer.file!r} and {user.file!r} have the same data file, {layer.data_file!r}",
                        file=layer.file,
                    )
