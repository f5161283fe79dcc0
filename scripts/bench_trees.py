"""The tree of many images, against our own reader of their headers alone."""

from __future__ import annotations

import time
from pathlib import Path

from bench_machines import MIB, Bench
from bench_rows import ratio

import qmpsnap
from qmpsnap.model.empty_image import empty_qcow2
from qmpsnap.model.record import MomentRecord
from qmpsnap.model.record_file import to_json
from qmpsnap.run.image_headers import file_header

__all__ = ["trees"]

IMAGES = 200
BRANCH = 20  # images that follow each other before the next branch begins, on the tenth of all


def put(file: Path, backing: Path | None) -> None:
    form = "qcow2" if backing else None
    image = empty_qcow2(virtual_size=MIB, backing=str(backing) if backing else None, backing_format=form)
    with file.open("wb") as out:
        out.truncate(image.size_bytes)
        for offset, part in image.parts:
            out.seek(offset)
            out.write(part)


def plant(directory: Path) -> list[Path]:
    """Make images with a record each: ten branches of twenty images, nine of them begin in the first."""
    files, below = [directory / "base.qcow2"], []
    put(files[0], None)
    (directory / "base.qmpsnap").mkdir()
    below.append([files[0]])
    for number in range(1, IMAGES):
        under = number - 1 if number % BRANCH else BRANCH // 2
        file = directory / f"base.s{number:03}.qcow2"
        put(file, files[under])
        record = MomentRecord(
            id=f"qmpsnap-snapshot-keep-{number:08x}",
            name=f"s{number:03}",
            created=f"2026-01-01T00:{number // 60:02}:{number % 60:02}+00:00",
            overlays={"disk0": str(file)},
            covered={"disk0": str(files[under])},
            chains={"disk0": tuple(map(str, below[under]))},
        )
        (directory / "base.qmpsnap" / record.file_name).write_text(to_json(record))
        files.append(file)
        below.append([file, *below[under]])
    return files


async def trees(bench: Bench):
    """A tree of 200 images with a snapshot each: listed as often as their headers are read."""
    directory = bench.fresh()
    files = plant(directory)
    with bench.machine(directory, files[-1:]) as socket:
        async with qmpsnap.connect(socket) as vm:
            listing = await vm.moments()
            if len(listing.tree.images) != IMAGES or len(listing.moments) != IMAGES - 1:
                raise SystemExit("the tree is not whole")
            ours, bare = [], []
            for _ in range(bench.runs):
                started = time.perf_counter()
                await vm.moments()
                ours.append(time.perf_counter() - started)
                started = time.perf_counter()
                for file in files:
                    file_header(str(file))
                bare.append(time.perf_counter() - started)
    yield ratio(f"list of {IMAGES} images, against their headers", ours, bare, 2.5)
