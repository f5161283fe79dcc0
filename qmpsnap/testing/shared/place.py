"""The private directory of a shared machine, and the overlays that its disks start from."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from qmpsnap.errors import NotFound, UnsafeImage
from qmpsnap.model.option_hints import reword
from qmpsnap.run.disk import in_thread
from qmpsnap.run.guard import removed_at_death
from qmpsnap.run.images import Images
from qmpsnap.run.preflight import read_chains
from qmpsnap.run.safe_open import open_file
from qmpsnap.run.scratch import scratch

_FLOCK: Final = struct.Struct("@hhqqi4x")  # struct flock of fcntl.h, where off_t has 64 bits
# QEMU (block/file-posix.c): a read lock on byte 200 + n says that permission n is not shared. Permission 1
# is to write, 3 is to resize.
_NOT_SHARED: Final = (201, 203)


@contextmanager
def private_directory() -> Iterator[Path]:
    """Create a private directory with a short path; it is removed with the block, or if our process dies."""
    with scratch() as path, removed_at_death(path):
        yield Path(path)


@contextmanager
def unwritable(files: Collection[str]) -> Iterator[None]:
    """Prevent every QEMU, also ours, from writing to the images: it does not get the lock that it needs.

    On a file system without locks this does nothing.
    """
    with ExitStack() as stack:
        for file in files:
            with contextlib.suppress(OSError):
                descriptor = open_file(file, follow=True)
                stack.callback(os.close, descriptor)
                for byte in _NOT_SHARED:
                    fcntl.fcntl(
                        descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
                    )
        yield


async def read_bases(
    disks: Mapping[str, str], formats: Mapping[str, str], *, cwd: str = ""
) -> tuple[Base, ...]:
    """Read the headers of the images that a machine's disks are based on.

    Args:
        disks: The image of each disk.
        formats: The format of each image; needed unless its name ends in ".qcow2".
        cwd: The directory that a relative path counts from; "": the current one.

    Raises:
        Refused: When an image cannot be used; see `qmpsnap.offline`.
    """
    try:
        files = {disk: str(Path(cwd, file)) for disk, file in disks.items()}
        chains = await in_thread(partial(read_chains, files, formats=formats))
    except NotFound as error:
        if not error.hint and not all(map(os.path.isabs, disks.values())):
            error.hint = f"a relative path counts from {str(Path.cwd() / cwd)!r}, where pytest was started"
        raise
    except UnsafeImage as error:
        reword(error, {"format": 'give "{2}": (PATH, "{1}")'})
        raise
    return tuple(
        Base(chain.disk, chain.files, chain.active.format, chain.active.virtual_size) for chain in chains
    )


class Base:
    """An image that a disk is based on.

    Attributes:
        disk: The disk's name.
        files: Paths of the image and of the images beneath it.
        format: The image's format.
        size_bytes: Size of the disk as the guest sees it.
    """

    def __init__(self, disk: str, files: tuple[str, ...], format: str, size_bytes: int) -> None:  # noqa: A002
        self.disk: Final = disk
        self.files: Final = files
        self.format: Final = format
        self.size_bytes: Final = size_bytes


async def overlay_each(bases: Collection[Base], directory: Path) -> dict[str, str]:
    """Create an empty overlay on each image; return their paths by disk."""
    files: dict[str, str] = {}
    for base in bases:
        file = str(directory / f"{base.disk}.qcow2")
        await Images().create_image(
            file,
            size_bytes=base.size_bytes,
            format="qcow2",
            like=None,
            backing=base.files[0],
            backing_format=base.format,
        )
        files[base.disk] = file
    return files
