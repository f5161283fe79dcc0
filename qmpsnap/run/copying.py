"""Copies a disk as it was at a moment into an image of its own, compares the two, and checks images.

qemu-img does that: it knows which clusters hold data, and reads each layer once. Every option of the source
is written out, so that it follows no header and probes no format.
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
from qmpsnap.model.hints import hint_for
from qmpsnap.model.view import DiskView, ViewLayer
from qmpsnap.plan.commands.reading import read_options
from qmpsnap.run.disk import in_thread
from qmpsnap.run.process import Process, start_program
from qmpsnap.run.safe_open import open_file
from qmpsnap.run.tools import tool

_PERCENT = re.compile(r"\((\d+\.\d+)/100%\)")
_DIFFERENT = 1  # exit status of qemu-img compare

Tell = Callable[[float], Awaitable[None]]
"""Called with how much is done, from 0 to 1."""


async def copy_disk(
    view: DiskView, file: str, *, speed: int = 0, remove: str, tell: Tell, interval: float
) -> None:
    """Write the disk into a new qcow2 image, without its holes, and sync it.

    Cancelled or failed, a part of the file is left.

    Args:
        view: What is read.
        file: The image; nothing has that name, in a directory that nobody else writes to.
        speed: Limit in bytes/s; 0: none.
        remove: Directory that is removed if our process is killed.
        tell: Is told how much is done.
        interval: Seconds between two calls of `tell`.

    Raises:
        CommandFailed: When qemu-img fails; `.desc` is its message.
    """
    limit = ["-r", str(speed)] if speed else []
    words = ["convert", "-p", *limit, "-O", "qcow2", _named(read_options(view)), file]
    await _run(words, f"copy of {view.disk}", remove=remove, tell=tell, interval=interval)
    await in_thread(partial(_sync, file))


async def compare_disk(view: DiskView, file: str, *, remove: str) -> None:
    """Compare the disk with a qcow2 image, byte for byte.

    Raises:
        CommandFailed: When they differ, or cannot be read.
    """
    words = ["compare", "-F", "qcow2", _named(read_options(view)), file]
    await _run(words, f"comparison of {view.disk}", remove=remove)


async def check_image(file: str) -> None:
    """Check that a qcow2 image is whole, and needs no other file.

    Raises:
        CommandFailed: When it is not.
    """
    alone = DiskView("", "", (ViewLayer(file, "qcow2"),), 0)
    await _run(["check", "-q", _named(read_options(alone))], f"check of {file}")


def _sync(file: str) -> None:
    descriptor = open_file(file, write=True)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _named(options: dict[str, object]) -> str:
    return f"json:{json.dumps(options)}"


async def _run(
    words: list[str], name: str, *, remove: str = "", tell: Tell | None = None, interval: float = 1.0
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
            raise _failed(words[0], name, process, status)


@asynccontextmanager
async def alongside(work: Coroutine[object, object, None]) -> AsyncIterator[asyncio.Future[None]]:
    """Do something else while the block lasts; it ends with the block, where it may be awaited before."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _follow(process: Process, tell: Tell, interval: float) -> None:
    """Tell how much is done, as `qemu-img -p` prints it, until the process has ended."""
    while process.returncode is None:
        with anyio.move_on_after(interval):
            await process.wait()
        if process.returncode:  # it failed
            return
        done = _PERCENT.findall(process.output_tail)
        if done:
            await tell(float(done[-1]) / 100)


def _failed(command: str, name: str, process: Process, status: int) -> CommandFailed:
    lines = [line for line in process.output_tail.replace("\r", "\n").splitlines() if line.strip()]
    said = next(
        (line.strip() for line in reversed(lines) if not _PERCENT.search(line)), f"exit status {status}"
    )
    what = "they differ" if command == "compare" and status == _DIFFERENT else "it failed"
    return CommandFailed(
        f"{name}: {what}: {said}",
        command=f"qemu-img {command}",
        arguments={},
        qmp_class="",
        desc=said,
        hint=hint_for(said),
    )
