"""QEMUs of the matrix, and images whose every byte is known.

A layer's content is a pure function of its place in the chain (`content`), so any image can be
checked against what it must read, to the last byte.
"""

from __future__ import annotations

import functools
import json
import os
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20
SIZE = 8 * MIB


@dataclass(frozen=True)
class Qemu:
    """One QEMU of the matrix."""

    version: str
    directory: Path

    @property
    def short(self):
        """Its version as tests are named by it: "7.2"."""
        return ".".join(self.version.split(".")[:2])

    @property
    def system(self):
        return str(self.directory / "qemu-system-x86_64")

    def img(self, *words, check=True):
        """Run qemu-img; return what it printed."""
        done = subprocess.run(
            [self.directory / "qemu-img", *map(str, words)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or not check, f"qemu-img {words}: {done.stderr}"
        return done.stdout

    def create(self, file, size=SIZE, *, backing=None, backing_format="qcow2", form="qcow2", options=""):
        """Make an image, without a look at its backing file; return its path."""
        words = ["-o", options] if options else []
        if backing is not None:
            words += ["-u", "-b", backing, "-F", backing_format]
        self.img("create", "-q", "-f", form, *words, file, size)
        return str(file)

    def io(self, file, *commands, form="qcow2"):
        """Run qemu-io's commands on an image that nobody uses."""
        words = [word for command in commands for word in ("-c", command)]
        done = subprocess.run(
            [self.directory / "qemu-io", "-f", form, *words, file],
            capture_output=True,
            text=True,
            check=False,
        )
        output = done.stdout + done.stderr
        assert done.returncode == 0 and "failed" not in output, output  # noqa: PT018

    def read(self, file, form="qcow2"):
        """Return every byte that the image reads, its backing files included; nobody may use it."""
        raw = Path(f"{file}.read")
        self.img("convert", "-f", form, "-O", "raw", file, raw)
        try:
            return raw.read_bytes()
        finally:
            raw.unlink()

    def read_inside(self, file, name):
        """Return every byte of an internal snapshot; nobody may use the image."""
        raw = Path(f"{file}.read")
        self.img("convert", "-f", "qcow2", "-l", f"snapshot.name={name}", "-O", "raw", file, raw)
        try:
            return raw.read_bytes()
        finally:
            raw.unlink()

    def inside(self, file):
        """Return the names of an image's internal snapshots, as qemu-img lists them."""
        (told, *_) = self.chain(file)
        return [one["name"] for one in told.get("snapshots", [])]

    def chain(self, file, form="qcow2"):
        """Return what `qemu-img info --backing-chain` says, active first."""
        return json.loads(self.img("info", "-f", form, "--backing-chain", "--output=json", file))

    def check_chain(self, *files, form="qcow2"):
        """Demand that the images, active first, are whole and stand on each other by their headers."""
        told = self.chain(files[0], form)
        assert [one["filename"] for one in told] == list(files)
        for one, below in zip(told, [*told[1:], None], strict=True):
            recorded = one.get("full-backing-filename", one.get("backing-filename"))
            assert recorded == (below and below["filename"]), one["filename"]
            assert one.get("backing-filename-format") == (below and below["format"]), one["filename"]
            if one["format"] == "qcow2":
                self.check(one["filename"])

    def check(self, file, *, leaks=False):
        """Demand that qemu-img finds nothing wrong with a qcow2 image; `leaks`: but lost space."""
        told = json.loads(self.img("check", "--output=json", "-f", "qcow2", file, check=not leaks))
        wrong = ("corruptions", "check-errors", *(() if leaks else ("leaks",)))
        assert not any(told.get(key) for key in wrong), told


def matrix():
    script = Path(__file__).resolve().parents[1] / "scripts" / "qemu-matrix"
    lines = subprocess.run([script], capture_output=True, text=True, check=True).stdout.splitlines()
    return [
        Qemu(version, Path(directory)) for version, directory in (line.split(maxsplit=1) for line in lines)
    ]


QEMUS = matrix()
"""Every QEMU that is here, the system's first."""


# -- images ----------------------------------------------------------------------------------------


def layer_writes(index):
    """What layer `index` of a chain writes (0: the base): (pattern, offset, length) of each write."""
    writes = [
        (1 + index, 64 * KIB * index, 64 * KIB),  # its own cluster
        (0x41 + index, 2 * MIB, 64 * KIB),  # a cluster that every layer writes
        (0x81 + index, 3 * MIB + 512 * index, 512),  # a sector of its own in a cluster of all
    ]
    return [(0x11, 4 * MIB, MIB), *writes] if index == 0 else writes


@functools.cache
def content(count, size=SIZE):
    """What the newest of `count` layers reads, to the last byte."""
    data = bytearray(size)
    for index in range(count):
        for pattern, offset, length in layer_writes(index):
            data[offset : offset + length] = bytes([pattern]) * length
    return bytes(data)


def overwritten(data, *writes):
    """The same bytes after writes of (pattern, offset, length)."""
    data = bytearray(data)
    for pattern, offset, length in writes:
        data[offset : offset + length] = bytes([pattern]) * length
    return bytes(data)


def commands(writes):
    return [f"write -q -P {pattern} {offset} {length}" for pattern, offset, length in writes]


@dataclass(frozen=True)
class Images:
    """The images of one disk, oldest first.

    Attributes:
        files: Paths.
        content: What each layer reads.
    """

    files: tuple[str, ...]
    content: tuple[bytes, ...]

    @property
    def chain(self):
        """The paths as our model has them: active first."""
        return self.files[::-1]

    @property
    def active(self):
        return self.files[-1]


@dataclass(frozen=True)
class Kept:
    """A file's bytes without its holes, from which it is made again elsewhere.

    Attributes:
        size: Bytes, holes included.
        parts: (offset, bytes) of all that is no hole.
    """

    size: int
    parts: tuple[tuple[int, bytes], ...]

    @classmethod
    def of(cls, file):
        with Path(file).open("rb") as image:
            size, at, parts = os.fstat(image.fileno()).st_size, 0, []
            while at < size:
                try:
                    start = os.lseek(image.fileno(), at, os.SEEK_DATA)
                except OSError:  # nothing but a hole is left
                    break
                at = os.lseek(image.fileno(), start, os.SEEK_HOLE)
                parts.append((start, os.pread(image.fileno(), at - start, start)))
        return cls(size, tuple(parts))

    def put(self, file, backing=None):
        """Make it again; a qcow2 image that stands on another one gets that one's name."""
        with Path(file).open("xb+") as image:
            image.truncate(self.size)
            for start, data in self.parts:
                os.pwrite(image.fileno(), data, start)
            if backing is not None:
                name = os.fsencode(backing)
                offset, length = struct.unpack(">QI", os.pread(image.fileno(), 12, 8))
                assert offset + len(name) <= 64 * KIB, "the header has one cluster"
                os.pwrite(image.fileno(), name.ljust(length, b"\0"), offset)
                os.pwrite(image.fileno(), struct.pack(">I", len(name)), 16)


def make_images(qemu, folder, drawing="base <- s1 <- s2", *, relative=False, base_format="qcow2"):
    """Make the images that are drawn, base first, each with writes of its own (`layer_writes`).

    Each drawing is made once with each QEMU and then copied: the same bytes, but for backing files' names.
    """
    names = [name.strip() for name in drawing.split("<-")]
    files = []
    for name, kept in zip(names, _kept(qemu, tuple(names), base_format), strict=True):
        file = f"{folder}/{name}.{base_format if not files else 'qcow2'}"
        backing = files[-1] if files else None
        kept.put(file, Path(backing).name if backing and relative else backing)
        files.append(file)
    return Images(tuple(files), tuple(content(count) for count in range(1, len(names) + 1)))


@functools.cache
def _kept(qemu, names, base_format):
    with tempfile.TemporaryDirectory() as folder:
        return tuple(map(Kept.of, draw_images(qemu, folder, names, base_format)))


def draw_images(qemu, folder, names, base_format="qcow2"):
    """Make images of these names by QEMU's own tools; return their paths, base first."""
    files = []
    for index, name in enumerate(names):
        form = base_format if index == 0 else "qcow2"
        file = f"{folder}/{name}.{form}"
        backing_format = base_format if index == 1 else "qcow2"
        qemu.create(file, form=form, backing=files[-1] if files else None, backing_format=backing_format)
        qemu.io(file, *commands(layer_writes(index)), form=form)
        files.append(file)
    return files
