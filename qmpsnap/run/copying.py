"""Copies a disk as it was at a moment into a standalone image, compares the two, and checks images.

qemu-img does the work, because it knows which clusters hold data, and reads each layer once. It gets every
option of the source explicitly, so it follows no header and probes no format.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial

import anyio

from qmpsnap.errors import CommandFailed
from qmpsnap.model.hints import hint_for, is_lock_refused
from qmpsnap.model.view import DiskView, ViewLayer
from qmpsnap.plan.commands.reading import read_options
from qmpsnap.run.disk import in_thread
from qmpsnap.run.lock_holders import lock_holders
from qmpsnap.run.process import Process, start_program
from qmpsnap.run.safe_open import open_file
from qmpsnap.run.tools import tool

_PERCENT = re.compile(r"\((\d+\.\d+)/100%\)")
_DIFFERENT = 1  # exit status of qemu-img compare

Tell = Callable[[float], Awaitable[None]]
"""Called with the progress, from 0 to 1."""


async def copy_disk(
    view: DiskView, file: str, *, speed: int = 0, remove: str, tell: Tell, interval: float
) -> None:
    """Copy the disk into a new, sparse qcow2 image, and sync it.

    If the copy fails or is cancelled, an incomplete file is left.

    Args:
        view: The disk to read.
        file: The image; the file must not exist, in a directory to which nobody else writes.
        speed: Limit in bytes/s; 0: none.
        remove: Directory to remove if our process is killed.
        tell: Called with the progress.
        interval: Seconds between two calls of `tell`.

    Raises:
        CommandFailed: When qemu-img fails; `.desc` is its message.
    """
    limit = ["-r", str(speed)] if speed else []
    words = ["convert", "-p", *limit, "-O", "qcow2", _named(read_options(view)), file]
    await _run(words, f"copy of {view.disk}", view, remove=remove, tell=tell, interval=interval)
    await in_thread(partial(_sync, file))


async def compare_disk(view: DiskView, file: str, *, remove: str) -> None:
    """Compare the disk with a qcow2 image, byte for byte.

    Raises:
        CommandFailed: When they differ, or one of them cannot be read.
    """
    words = ["compare", "-F", "qcow2", _named(read_options(view)), file]
    await _run(words, f"comparison of {view.disk}", view, remove=remove)


async def check_image(file: str) -> None:
    """Check that a qcow2 image is consistent, and needs no other file.

    Raises:
        CommandFailed: When the check fails.
    """
    alone = DiskView("", "", (ViewLayer(file, "qcow2"),), 0)
    await _run(["check", "-q", _named(read_options(alone))], f"check of {file}", alone)


def _sync(file: str) -> None:
    descriptor = open_file(file, write=True)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _named(options: dict[str, object]) -> str:
    return f"json:{json.dumps(options)}"


async def _run(
    words: list[str],
    name: str,
    view: DiskView,
    *,
    remove: str = "",
    tell: Tell | None = None,
    interval: float = 1.0,
) -> None:
    argv = [tool("qemu-img"), *words]
    async with start_program(argv, name=name, remove=(remove,) if remove else ()) as process:
        if tell is None:
            status = await process.wait()
        else:
            async with alongside(_follow(process, tell, interval)) as following:
                status = await process.wait()
                await following
        if status != 0:
            raise await _failed(words[0], name, view, process, status)


@asynccontextmanager
async def alongside(work: Coroutine[object, object, None]) -> AsyncIterator[asyncio.Future[None]]:
    """Run a coroutine beside the block; it is cancelled at the end of the block, unless it was awaited."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _follow(process: Process, tell: Tell, interval: float) -> None:
    """Report the progress that `qemu-img -p` prints, until the process has ended."""
    while process.returncode is None:
        with anyio.move_on_after(interval):
            await process.wait()
        if process.returncode:  # it failed
            return
        done = _PERCENT.findall(process.output_tail)
        if done:
            await tell(float(done[-1]) / 100)


async def _failed(command: str, name: str, view: DiskView, process: Process, status: int) -> CommandFailed:
    lines = [line.strip() for line in process.output_tail.replace("\r", "\n").splitlines()]
    words = [line for line in reversed(lines) if line and not _PERCENT.search(line)]
    locked = next(filter(is_lock_refused, words), "")  # the line after it only asks who has it
    said = locked or next(iter(words), f"exit status {status}")
    holders = await in_thread(partial(lock_holders, view.files, process.pid)) if locked else ""
    what = "they differ" if command == "compare" and status == _DIFFERENT else "it failed"
    return CommandFailed(
        f"{name}: {what}: {said}",
        command=f"qemu-img {command}",
        arguments={},
        qmp_class="",
        desc=said,
        hint=holders or hint_for(said),
    )
