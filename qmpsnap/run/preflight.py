"""Checks the images of a machine that is off before any tool opens them. Blocking.

Our own header reader walks the chain of each disk. It opens only regular files, and only for reading. It
opens a file only if its real path is in an allowed directory, and then checks that the path still leads to
the file that it has opened. `plan/checks/images.py` decides what is refused.
"""

# Descriptors need os, and paths stay as QEMU spells them:
# ruff: noqa: PTH115, PTH120

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from msgspec import Struct

from qmpsnap.errors import BadArgument, FileMoved, ImageInUse, NotFound, Refused, UnsafeImage
from qmpsnap.model.arguments import check, refuse
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.header import Header
from qmpsnap.model.image_chain import ImageChain, ImageFormat, ImageLayer
from qmpsnap.model.names import invalid_names
from qmpsnap.plan.checks.images import (
    LONGEST_CHAIN,
    backing_file,
    chosen_format,
    data_file,
    recorded_format,
    refuse_header,
    refuse_outside,
    refuse_shared,
    refuse_truncated,
    refuse_unspeakable,
    refuse_unusable_header,
)
from qmpsnap.run.descriptors import image_files
from qmpsnap.run.holders import FileId, Holder, locked, writers
from qmpsnap.run.image_headers import descriptor_header, truncated_table
from qmpsnap.run.os_errors import unusable
from qmpsnap.run.paths import absolute, absolute_each
from qmpsnap.run.safe_open import WrongKind, open_file

_SECTOR = 512  # bytes; QEMU rounds a raw image's size up to whole ones
_ENDING_LIMIT = 0.5  # seconds; a QEMU that was killed keeps its locks for a moment


def read_chains(
    images: Mapping[str, str],
    *,
    formats: Mapping[str, str] = Frozen(),
    allow_dirs: Iterable[str] = (),
) -> tuple[ImageChain, ...]:
    """Read the chain of each disk from its images' headers; nothing is locked or changed.

    Args:
        images: The active layer of each disk, by the name that the disk is to have.
        formats: "raw" or "qcow2" of an active layer, by disk; needed unless its name ends in ".qcow2".
        allow_dirs: Directories in which, and below which, a header may name files, in addition to the
            directory of the active layer.

    Raises:
        UnsafeImage: When an image must not be opened, because of its header or an unknown format.
        StillNeeded: When the active layer of a disk is a lower layer of another one.
        Unsupported: When an image has a format or a feature that is not supported.
        NotFound: When an image does not exist.
        InvalidTarget: When an image cannot be read.
        BadArgument: When an argument is invalid.
    """
    for disk, word in formats.items():
        if disk not in images:
            refuse("formats", disk, "no image of that disk is given")
        check("format", word, ImageFormat)
    allowed = tuple(_real(path) for path in absolute_each("allow_dirs", allow_dirs))
    chains = tuple(
        _Walk(disk, absolute("image", file), allowed).chain(formats.get(disk))
        for disk, file in images.items()
    )
    refuse_shared(chains)
    return chains


class ChainsRead(Struct, frozen=True):
    """Chains that were read one by one.

    Attributes:
        chains: Those that can be read.
        broken: Each other disk, with its active layer and the refusal.
        allowed: Real paths of the directories that the caller allows.
    """

    chains: tuple[ImageChain, ...]
    broken: tuple[tuple[str, str, Refused], ...]
    allowed: tuple[str, ...] = ()


def read_each(
    images: Mapping[str, str],
    *,
    formats: Mapping[str, str] = Frozen(),
    allow_dirs: Iterable[str] = (),
) -> ChainsRead:
    """As `read_chains`, but a chain that is refused hides no other.

    Raises:
        BadArgument: When an argument is invalid.
    """
    chains: list[ImageChain] = []
    broken: list[tuple[str, str, Refused]] = []
    allowed = absolute_each("allow_dirs", allow_dirs)
    for disk, file in images.items():
        form = {disk: formats[disk]} if disk in formats else Frozen[str, str]()
        try:
            chains += read_chains({disk: file}, formats=form, allow_dirs=allowed)
        except BadArgument:
            raise
        except Refused as error:
            broken.append((disk, file, error))
    try:
        refuse_shared(chains)
    except Refused as error:
        broken.append((", ".join(chain.disk for chain in chains), "", error))
    return ChainsRead(tuple(chains), tuple(broken), tuple(map(_real, allowed)))


def refuse_unusable(chains: Iterable[ImageChain]) -> None:
    """Refuse images that must not be changed; call this right before they are opened.

    Raises:
        ImageInUse: When a process has an image open for writing.
        UnsafeImage: When an image is marked as corrupt, was not closed properly, or is truncated.
        Unsupported: When an image is encrypted, or its name cannot be sent to QEMU.
        FileMoved: When a name now leads to another file.
    """
    layers = [layer for chain in chains for layer in chain.layers]
    for layer in layers:
        if layer.header is not None:
            refuse_unusable_header(layer.file, layer.header)
    files = {key: file for layer in layers for file, key in layer.opened}
    for file in files.values():
        refuse_unspeakable(file)
    for key, holder in _holders(files).items():
        raise ImageInUse(
            f"{files[key]!r} is in use: {holder} has it open for writing",
            file=files[key],
            pid=holder.pid,
            program=holder.program,
            user=holder.user,
            hint="if a machine runs on it, give its QMP socket with -s",
        )
    for layer in layers:  # now that nobody writes to it
        refuse_truncated(layer.file, _lost(layer))


def refuse_exchanged(chains: Iterable[ImageChain], pid: int) -> None:
    """Refuse if the process has other files open than those that were checked.

    Call this once the process has opened every image, before it changes any of them.

    Args:
        chains: The chains that were checked.
        pid: The process's id.

    Raises:
        FileMoved: When a name led to another file than before, or the process has opened a file that was not
            checked.
    """
    files = {key: file for chain in chains for layer in chain.layers for file, key in layer.opened}
    held = image_files(pid) or {}
    for key, file in files.items():
        if key not in held:
            raise FileMoved(f"{file!r} was replaced while it was being opened", file=file)
    for key, path in held.items():
        if key not in files:
            raise FileMoved(f"{path!r} was opened, which no checked header names", file=path, path=path)


class _Walk:
    """One disk's chain, from the active layer down."""

    def __init__(self, disk: str, file: str, allowed: tuple[str, ...]) -> None:
        self.disk = disk
        self.file = file
        self.own = _real(os.path.dirname(file))
        self.allowed = allowed
        self.seen: dict[FileId, str] = {}

    def chain(self, wanted: str | None) -> ImageChain:
        layers = [self._active(wanted)]
        while (file := backing_file(layers[-1])) is not None:
            if len(layers) == LONGEST_CHAIN:
                raise UnsafeImage(
                    f"the chain of {self.disk} has more than {LONGEST_CHAIN} layers",
                    file=self.file,
                    hint="start the machine, and fold the chain with -s",
                )
            layers.append(self._lower(layers[-1], file))
        return ImageChain(self.disk, tuple(layers))

    def _active(self, wanted: str | None) -> ImageLayer:
        with self._opened(self.file) as descriptor:
            header = None
            if wanted != "raw":
                header = self._header(self.file, descriptor)
            form = chosen_format(self.disk, self.file, header, wanted)
            return self._layer(self.file, descriptor, form, header)

    def _lower(self, above: ImageLayer, file: str) -> ImageLayer:
        with self._opened(file, above.file) as descriptor:
            form = recorded_format(above, file)
            header = self._header(file, descriptor) if form == "qcow2" else None
            if form == "qcow2" and header is None:
                raise UnsafeImage(
                    f"{above.file!r} is backed by {file!r} as qcow2, which has no qcow2 header",
                    file=above.file,
                )
            return self._layer(file, descriptor, form, header)

    def _layer(self, file: str, descriptor: int, form: ImageFormat, header: Header | None) -> ImageLayer:
        status = os.fstat(descriptor)
        if header is None:
            size = -(-status.st_size // _SECTOR) * _SECTOR
            return ImageLayer(file, form, size, status.st_dev, status.st_ino)
        refuse_header(file, header)
        data, data_id = data_file(file, header), None
        if data is not None:
            with self._opened(data, file) as opened:
                data_id = _id(os.fstat(opened))
        return ImageLayer(
            file, form, header.virtual_size, status.st_dev, status.st_ino, header, data, data_id
        )

    @staticmethod
    def _header(file: str, descriptor: int) -> Header | None:
        try:
            return descriptor_header(descriptor)
        except ValueError as error:
            raise UnsafeImage(f"the header of {file!r} is invalid: {error}", file=file) from error
        except OSError as error:
            raise unusable(file, error, "read") from error

    @contextmanager
    def _opened(self, file: str, named_by: str = "") -> Iterator[int]:
        """Open a file of the chain for reading, until the end of the block; refuse a file that was seen."""
        descriptor = self._open(file, named_by)
        try:
            key = _id(os.fstat(descriptor))
            if key in self.seen:
                raise UnsafeImage(
                    f"{named_by!r} leads to {file!r}, which is the same file as {self.seen[key]!r}: the "
                    f"chain of {self.disk} is a loop",
                    file=named_by,
                )
            self.seen[key] = file
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self, file: str, named_by: str) -> int:
        real = _real(file)
        refuse_outside(real, file=file, own=self.own, allowed=self.allowed, named_by=named_by)
        try:
            strict = os.path.realpath(file, strict=True)  # else ".." after a missing name counts
            descriptor = open_file(real)
        except (FileNotFoundError, NotADirectoryError) as error:
            of = f", the backing or data file of {named_by!r}," if named_by else ""
            raise NotFound(f"{file!r}{of} does not exist", hint=_folded(file)) from error
        except WrongKind as error:
            raise UnsafeImage(
                f"{file!r} cannot be an image: {error.strerror}",
                file=named_by or file,
                hint="images of a machine that is off are regular files",
            ) from error
        except (OSError, ValueError) as error:
            raise unusable(file, error, "open") from error
        if not real == strict == os.readlink(f"/proc/self/fd/{descriptor}"):
            os.close(descriptor)
            raise UnsafeImage(f"{file!r} was replaced while it was being opened", file=named_by or file)
        return descriptor


def _real(path: str) -> str:
    """The path with all symbolic links resolved."""
    try:
        return os.path.realpath(path)
    except OSError as error:
        raise unusable(path, error, "resolve") from error


def _folded(file: str) -> str:
    """The hint for a missing image that a commit has renamed to FILE.invalid; "" if there is none."""
    renamed = next((name for name in invalid_names(file) if os.path.lexists(name)), "")
    return (
        f"it was committed and renamed to {renamed!r}: give the image that received its data, the base"
        if renamed
        else ""
    )


def _lost(layer: ImageLayer) -> str:
    """The table of the image that lies beyond the end of its file, or ""."""
    try:
        return truncated_table(layer)
    except ValueError as error:
        raise UnsafeImage(f"{layer.file!r} cannot be read: {error}", file=layer.file) from error
    except OSError as error:
        raise unusable(layer.file, error, "read") from error


def _holders(files: Mapping[FileId, str]) -> dict[FileId, Holder]:
    """Who may write to which file; waits for a process that is ending, of which only the lock is seen."""
    until = time.monotonic() + _ENDING_LIMIT
    while True:
        holders = {key: Holder() for key, file in files.items() if _locked(file, key)} | writers(files)
        if Holder() not in holders.values() or time.monotonic() > until:
            return holders
        time.sleep(0.02)  # there is no event for a lock that goes


def _locked(file: str, key: FileId) -> bool:
    """Whether a QEMU process may write to the image, as its lock shows; refuse a file that was replaced."""
    try:
        descriptor = open_file(file, follow=True)
    except OSError as error:
        raise unusable(file, error, "open") from error
    try:
        if _id(os.fstat(descriptor)) != key:
            raise FileMoved(f"{file!r} was replaced after it was checked", file=file)
        return locked(descriptor)
    finally:
        os.close(descriptor)


def _id(status: os.stat_result) -> FileId:
    return status.st_dev, status.st_ino
