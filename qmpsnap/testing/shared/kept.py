"""Keeps the logs, messages and chains of a machine whose test failed."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from pathlib import Path
from typing import Final

import anyio

from qmpsnap.errors import QmpsnapError
from qmpsnap.model.graph import Graph
from qmpsnap.run.disk import in_thread
from qmpsnap.run.process import start_program
from qmpsnap.run.safe_open import remove_tree
from qmpsnap.testing.shared.leftovers import without_holes
from qmpsnap.testing.shared.reset import LOGS, Booted
from qmpsnap.testing.shared.standing import pictures

_PATIENCE_S: Final = 5.0  # a QEMU that hangs must not hold up the report
_MESSAGES: Final = "qmp*.jsonl"


async def keep(booted: Booted, folder: Path, *, overlays: bool) -> None:
    """Copy the logs and messages of a failed test; nothing is raised when the machine does not answer.

    - `console.log`: what the guest wrote to its console, at its boot and in this test.
    - `qemu.log`: what QEMU printed, in the same way.
    - `qmp*.jsonl`: the QMP messages of each connection that the test had.
    - `chain-before`, `chain-after`: the chain of each disk when the test began, and now.
    - `state`: the run state, or why there is none.
    - `overlays/`: copies of the overlays, backed by each other and by the test suite's images.

    Args:
        booted: The machine.
        folder: The folder; it is created, and what an earlier run of the test has left in it is removed.
        overlays: Whether the overlays are copied, for which the guest is paused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_earlier(folder)
    (folder / "chain-before").write_text(booted.chains)
    graph: Graph | None = None
    try:
        with anyio.fail_after(_PATIENCE_S):
            status = await booted.vm.status()
            graph = await booted.vm.graph()
            if overlays:
                await booted.vm.execute("stop")
        (folder / "state").write_text(f"{status.state}\n")
        (folder / "chain-after").write_text(pictures(graph))
    except (QmpsnapError, TimeoutError) as error:
        why = str(error) or "QEMU does not answer"
        (folder / "state").write_text(f"{why}\n")
    for path in (*(booted.directory / name for name in LOGS), *booted.directory.glob(_MESSAGES)):
        with contextlib.suppress(OSError):
            (folder / path.name).write_bytes(without_holes(path.read_bytes()))
    if overlays and graph is not None:
        await _copy_overlays(booted.directory, graph, folder / "overlays")


def _remove_earlier(folder: Path) -> None:
    """Remove what another run of the test may have left that this one does not replace."""
    for path in (*folder.glob(_MESSAGES), *(folder / name for name in ("chain-after", *LOGS))):
        path.unlink(missing_ok=True)
    remove_tree(str(folder / "overlays"))


async def _copy_overlays(directory: Path, graph: Graph, folder: Path) -> None:
    """Copy each layer that lies in the directory; each copy is backed by the copy of the layer below."""
    folder.mkdir(exist_ok=True)
    for disk in graph.disks.values():
        for layer in reversed(disk.layers):
            if not layer.file.startswith(f"{directory}{os.sep}"):
                continue
            copy = folder / Path(layer.file).name
            await in_thread(partial(_copy_sparsely, layer.file, copy))
            backing = layer.backing or ""
            if backing.startswith(f"{directory}{os.sep}"):
                await _rebase(copy, Path(backing).name, layer.backing_format or "qcow2")


def _copy_sparsely(source: str, copy: Path) -> None:
    with Path(source).open("rb") as reader, copy.open("wb") as writer:
        while chunk := reader.read(1 << 20):
            if chunk.strip(b"\0"):
                writer.write(chunk)
            else:
                writer.seek(len(chunk), os.SEEK_CUR)
        writer.truncate()


async def _rebase(copy: Path, backing: str, backing_format: str) -> None:
    words = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", backing, "-F", backing_format, str(copy)]
    async with start_program(words, name="qemu-img", cwd=copy.parent) as process:
        await process.wait()
