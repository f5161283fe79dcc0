"""Holds images against what the guest wrote: every byte, with QEMU's own tools."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from qmpsnap.testing.writer import BLOCK_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from qmpsnap.testing.writer import Writes

__all__ = ["Moment", "Tools", "WrongBytes"]


class WrongBytes(Exception):
    """An image is not what it has to be."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What a disk read when an overlay began, and where that lies now.

    Attributes:
        name: The snapshot's name.
        disk: The disk.
        file: The layer that holds it.
        low: Writes that the disk had acknowledged before (included).
        high: Writes that it can have seen at most (included).
    """

    name: str
    disk: str
    file: str
    low: int
    high: int


class Tools:
    """qemu-img and qemu-io of one QEMU.

    Args:
        qemu: Directory of the programs.
        scratch: Directory for copies.
        writes: What the guest's writer does, by disk.
        size_bytes: Size of each disk.
    """

    def __init__(self, qemu: Path, scratch: Path, writes: dict[str, Writes], size_bytes: int) -> None:
        self._qemu = qemu
        self._scratch = scratch
        self._writes = writes
        self._size = size_bytes

    async def create(self, file: Path, image_format: str) -> None:
        """Make an empty image of the disks' size."""
        await self._run("qemu-img", "create", "-q", "-f", image_format, str(file), str(self._size))

    async def moment(self, moment: Moment, *, running: bool) -> int:
        """Return after how many writes the image stands still; it must be in the moment's range.

        Args:
            moment: The moment, with its layer.
            running: Whether QEMU has the image open: quiet, but locked.
        """
        share = ["-U"] if running else []
        image_format, copy = _format(moment.file), self._scratch / "copy.raw"
        await self._run(
            "qemu-img", "convert", *share, "-f", image_format, "-O", "raw", moment.file, str(copy)
        )
        writes = self._writes[moment.disk]
        used = writes.blocks * BLOCK_BYTES
        zeros = f"read -P 0 {used} {self._size - used}"
        await self._run("qemu-io", *share, "-r", "-f", image_format, "-c", zeros, moment.file)
        with copy.open("rb", buffering=0) as image:
            try:
                return writes.count_in(image, low=moment.low, high=moment.high)
            except ValueError as error:
                raise WrongBytes(f"{moment.file}, moment {moment.name!r}: {error}") from error

    async def equal(self, disk: str, file: str, count: int) -> None:
        """Compare a disk, every byte, with a replay of all the writes that it acknowledged."""
        writes, expected = self._writes[disk], self._scratch / "expected.raw"
        with expected.open("wb") as image:
            image.truncate(self._size)
            for block, number in writes.replay(count).items():
                image.seek(block * BLOCK_BYTES)
                image.write(writes.content(number))
        await self._run("qemu-img", "compare", "-f", "raw", "-F", _format(file), str(expected), file)

    async def sound(self, file: str) -> None:
        """Let qemu-img check an image's own tables; raw has none."""
        if _format(file) != "raw":
            await self._run("qemu-img", "check", "-q", "-f", _format(file), file)

    async def chain(self, file: str) -> tuple[str, ...]:
        """Return the files of an image's chain by its headers, the image itself first."""
        told = await self._run(
            "qemu-img", "info", "--backing-chain", "--output=json", "-f", _format(file), file
        )
        return tuple(image["filename"] for image in json.loads(told))

    async def _run(self, program: str, *arguments: str) -> str:
        ended = await anyio.run_process(
            [self._qemu / program, *arguments], check=False, stderr=subprocess.STDOUT
        )
        told = ended.stdout.decode(errors="replace")
        if ended.returncode or "verification failed" in told:
            raise WrongBytes(f"{program} {' '.join(arguments)}: {told.strip() or ended.returncode}")
        return told


def _format(file: str) -> str:
    return "raw" if file.endswith(".raw") else "qcow2"
