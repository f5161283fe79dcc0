"""Resets a running machine to exactly its first state, or raises that it cannot."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qmpsnap.errors import MachineDiffers
from qmpsnap.testing.shared import leftovers, memory_only, settings
from qmpsnap.testing.shared.standing import Reset, Standing, differences, pictures
from qmpsnap.vm import VM

if TYPE_CHECKING:
    import anyio

READY: Final = "qmpsnap-ready"
"""Name of the checkpoint of the booted guest; `START` is that of the snapshot of its disks before the
boot."""

START: Final = "qmpsnap-start"

CONSOLE_LOG: Final = "console.log"
"""Name of the file, in the directory of a QEMU, that gets what the guest writes to its console."""

LOGS: Final = (CONSOLE_LOG, "qemu.log")
"""Names of the logs in the directory of a QEMU."""

_END_BYTES: Final = 64 * 1024

RECORDS: Final = "records"
"""Name of the directory there that has the records of its snapshots."""


@dataclass
class Booted:
    """A QEMU that runs.

    Attributes:
        vm: Our own connection to it.
        directory: Its sockets, logs and images.
        mode: How it can be reset.
        leave, ended: Set to let it end, and once it has.
        standing: What must be the same after a reset; None: it is not reset.
        files: Files that a reset needs, with size and time of the last change (ns).
        others: Directories, sockets and the like that are part of the machine.
        logs: What the logs have when the guest goes on after a reset.
        records: The records that a reset needs, with their content.
        used: Whether a test has had it.
        wakes: Whether the guest's clock and random seed are those of a checkpoint.
        busy: Monitors to which a client of an earlier test is still connected, and who that is.
        chains: A picture of the chains when the test began.
        store: The file of its memory, if it has no disk to write to; else "".
    """

    vm: VM
    directory: Path
    mode: Reset
    leave: anyio.Event
    ended: anyio.Event
    standing: Standing | None = None
    files: dict[Path, tuple[int, int]] = field(default_factory=dict)
    others: frozenset[Path] = frozenset()
    logs: dict[Path, bytes] = field(default_factory=dict)
    records: dict[Path, bytes] = field(default_factory=dict)
    used: bool = False
    wakes: bool = False
    busy: dict[str, str] = field(default_factory=dict)
    chains: str = ""
    store: str = ""


async def keep_disks(booted: Booted) -> None:
    """Take a snapshot of the disks before the guest has run, and start the guest."""
    await booted.vm.snapshot(START)
    await booted.vm.cont()


async def keep_memory(booted: Booted) -> None:
    """Take a checkpoint of a guest that is ready."""
    file = booted.directory / "ready.vmstate.qcow2"
    if (await booted.vm.graph()).writable():
        await booted.vm.checkpoint(READY, mode="in-place", memory=file)
    else:
        await memory_only.save(booted.vm, str(file))
        booted.store = str(file)


async def note(booted: Booted) -> None:
    """Note the state that the machine must have after each reset."""
    graph = await booted.vm.graph()
    booted.standing = await leftovers.read_standing(booted.vm, graph)
    active = {Path(disk.active.file) for disk in graph.disks.values() if disk.layers}
    booted.records = {path: path.read_bytes() for path in _files(booted.directory / RECORDS)}
    booted.files = {path: _stamp(path) for path in _files(booted.directory) if path not in active}
    booted.others = frozenset(booted.directory.rglob("*")) - set(_files(booted.directory))
    logs = [path for name in LOGS if (path := booted.directory / name).exists()]
    boots = booted.mode == "disks"  # it boots after each reset
    booted.logs = {path: b"" if boots else path.read_bytes() for path in logs}


async def put_back(booted: Booted) -> None:
    """Reset the machine; its guest runs then, but may still be booting.

    Raises:
        MachineDiffers: When the machine differs from its first state, or would differ after the reset.
        QmpsnapError, OSError, TimeoutError: When it cannot be reset.
    """
    if booted.standing is None:
        raise MachineDiffers("it was not prepared for a reset", differences=())
    vm, records = booted.vm, booted.directory / RECORDS
    if command := settings.hidden_of(booted.directory):
        raise MachineDiffers(f"it sent {command}, which no reset undoes", differences=[command])
    _check_files(booted, booted.standing)
    await leftovers.end_jobs(vm)
    await settings.put_back(vm, exports=bool(booted.standing.parts["exports"]))
    leftovers.put_back_records(records, booted.records)
    await leftovers.resume(vm)
    name = READY if booted.mode == "memory" else START
    await (memory_only.load(vm, booted.store) if booted.store else vm.revert(name))
    leftovers.put_back_logs(booted.logs)
    graph = await leftovers.drop_nodes(vm, booted.standing.nodes)
    await leftovers.resume(vm)
    changes = [
        str(change) for change in differences(booted.standing, await leftovers.read_standing(vm, graph))
    ]
    if changes:
        raise MachineDiffers(
            f"the machine differs after the reset: {'; '.join(changes)}", differences=changes
        )
    active = {disk.active.file for disk in graph.disks.values() if disk.layers}
    booted.records = leftovers.record_now(records, name, active=active)
    leftovers.put_back_records(records, booted.records)
    keep = booted.files.keys() | booted.others | booted.records.keys() | {Path(file) for file in active}
    leftovers.remove_more(booted.directory, keep)
    booted.chains = pictures(graph)


def _check_files(booted: Booted, standing: Standing) -> None:
    """Refuse if a layer that the reset needs was written to, and so no longer holds its moment."""
    layers = {Path(file) for files in standing.chains.values() for file in files}
    for path in booted.files.keys() & layers:
        if not path.exists() or _stamp(path) != booted.files[path]:
            raise MachineDiffers(
                f"it changed {path.name}, to which the reset goes back", differences=[str(path)]
            )


def console_text(directory: Path) -> str:
    """Return what the guest has written to its console, without that of earlier tests; "" without a log."""
    try:
        return leftovers.without_holes((directory / CONSOLE_LOG).read_bytes()).decode(errors="replace")
    except OSError:
        return ""


def console_end(directory: Path) -> str:
    """Return what the last 64 KiB of the console's log say."""
    try:
        with (directory / CONSOLE_LOG).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _END_BYTES))
            return leftovers.without_holes(log.read()).decode(errors="replace")
    except OSError:
        return ""


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
