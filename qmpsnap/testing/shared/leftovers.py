"""Removes from a shared machine whatever a test left in its QEMU and in its directory."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, cast

import anyio
from msgspec.structs import replace

from qmpsnap.errors import CommandFailed, QmpsnapError, Unsupported
from qmpsnap.model.graph import Graph
from qmpsnap.model.record import MomentRecord
from qmpsnap.model.record_file import from_json, to_json
from qmpsnap.run.safe_open import remove_tree
from qmpsnap.testing.shared.settings import read_settings
from qmpsnap.testing.shared.standing import Standing, in_chains, names_of
from qmpsnap.vm import VM

_PATIENCE_S: Final = 10.0  # for jobs to end after they were cancelled
# `cont` resumes a guest in one of these; in the others it is off, or QEMU is in the middle of something.
_RESUMABLE: Final = frozenset({"paused", "prelaunch", "io-error", "watchdog", "suspended", "debug"})
_QUERIES: Final[Sequence[tuple[str, str, Mapping[str, str], str]]] = (
    ("devices", "qom-list", {"path": "/machine/peripheral"}, "name"),
    ("devices without an id", "qom-list", {"path": "/machine/peripheral-anon"}, "name"),
    ("objects", "qom-list", {"path": "/objects"}, "name"),
    ("chardevs", "query-chardev", {}, "label"),
    ("exports", "query-block-exports", {}, "id"),
    ("jobs", "query-jobs", {}, "id"),
)


async def read_standing(vm: VM, graph: Graph) -> Standing:
    """Read names and settings that must be the same before each test; the graph was read just before."""
    parts = {
        kind: names_of(key, await vm.execute(command, arguments))
        for kind, command, arguments, key in _QUERIES
    }
    return Standing.of(graph, parts | await read_settings(vm))


async def resume(vm: VM) -> None:
    """Resume a paused guest.

    Raises:
        Unsupported: When it cannot run, because it is off or has panicked.
    """
    status = await vm.status()
    if status.running:
        return
    if status.state not in _RESUMABLE:
        raise Unsupported(f"the guest cannot be resumed: its state is {status.state}", feature=status.state)
    await vm.execute("cont")


async def end_jobs(vm: VM) -> None:
    """Cancel every job and migration, and wait until none is left.

    Raises:
        TimeoutError: When one does not end.
    """
    with contextlib.suppress(CommandFailed):
        await vm.execute("migrate_cancel")
    with anyio.fail_after(_PATIENCE_S):
        while jobs := cast("list[Mapping[str, str]]", await vm.execute("query-jobs")):
            for job in jobs:
                with contextlib.suppress(CommandFailed):  # it may have ended meanwhile
                    if job["status"] == "concluded":
                        await vm.execute("job-dismiss", {"id": job["id"]})
                    elif job["type"] == "mirror":  # job-cancel lets a mirror at READY complete
                        await vm.execute("block-job-cancel", {"device": job["id"], "force": True})
                    else:
                        await vm.execute("job-cancel", {"id": job["id"]})
            await anyio.sleep(0.01)  # no event may reach us for the end of a job of another client
        # QEMU answers migrate_cancel before the migration has ended, and sends an event only if it is set to.
        while (await vm.status()).migrating:  # noqa: ASYNC110 - so there may be no event
            await anyio.sleep(0.01)


async def drop_nodes(vm: VM, known: Collection[str]) -> Graph:
    """Close each block node that is in no disk's chain and was not there before; return the graph."""
    while True:
        graph = await vm.graph()
        more = [name for name in graph.nodes.keys() - in_chains(graph) - set(known) if name[0] != "#"]
        count = 0
        for name in more:
            with contextlib.suppress(QmpsnapError):
                await vm.execute("blockdev-del", {"node-name": name})
                count += 1
        if not count:
            return graph  # a node can be closed only after those that are based on it


def record_now(directory: Path, name: str, *, active: Collection[str]) -> dict[Path, bytes]:
    """Return the record of a snapshot after a revert, by file name, without branches of earlier reverts.

    Args:
        directory: The directory of the records.
        name: The snapshot's name.
        active: The layers that disks write to now.
    """
    for path in directory.glob("moment-*.json"):
        record = from_json(path.read_text(), directory=str(directory))
        if isinstance(record, MomentRecord) and record.name == name:
            branches = tuple(branch for branch in record.branches if set(branch.values()) <= set(active))
            files = {file for branch in (record.overlays, *branches) for file in branch.values()}
            marks = {file: mark for file, mark in record.marks.items() if file in files}
            record = replace(record, branches=branches, continued=(), marks=marks)
            return {directory / record.file_name: to_json(record).encode()}
    return {}


def put_back_records(directory: Path, records: Mapping[Path, bytes]) -> None:
    """Restore these records in the directory, and remove all others."""
    remove_more(directory, records)
    for path, content in records.items():
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def put_back_logs(logs: Mapping[Path, bytes]) -> None:
    """Give logs their first content, so that a test finds nothing in them from the test before.

    What writes to a log goes on at its end if it has opened the file so. QEMU's `-serial file:` has not, and
    leaves a hole where the other text was.

    Raises:
        OSError: When a log was removed or replaced; nothing is written to it any more.
    """
    for path, content in logs.items():
        with path.open("r+b") as log:
            log.truncate(0)
            log.write(content)


def without_holes(log: bytes) -> bytes:
    """Return what a log says, without the zeros that are read where it has a hole."""
    return log.replace(b"\0", b"")


def remove_more(directory: Path, keep: Collection[Path]) -> None:
    """Remove whatever is in the directory but these paths, and the directories in which they are."""
    places = {parent for path in keep for parent in path.parents}
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            if path in places or path in keep:
                remove_more(path, keep)
            else:
                remove_tree(str(path))
        elif path not in keep:
            path.unlink(missing_ok=True)
