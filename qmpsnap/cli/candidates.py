"""Names of a machine for completion: quick, silent, and empty when it does not answer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import click

from qmpsnap.cli.app import App
from qmpsnap.cli.machine import opened
from qmpsnap.errors import QmpsnapError
from qmpsnap.model.disk_names import find_disk
from qmpsnap.model.features import SchemaInfo, event_names
from qmpsnap.model.graph import Graph
from qmpsnap.model.qapi import read
from qmpsnap.vm import VM

T = TypeVar("T")
_PATIENCE = 0.8  # seconds that somebody who pressed Tab may wait


def commands(context: click.Context) -> list[str]:
    """Complete COMMAND with what query-commands lists."""
    replies = _ask(context, lambda vm: vm.execute("query-commands"))
    return sorted(str(command["name"]) for command in replies) if isinstance(replies, list) else []


def events(context: click.Context) -> list[str]:
    """Complete NAME with the events that this QEMU can send."""
    return _ask(context, known_events) or []


async def known_events(vm: VM) -> list[str]:
    """Names of the events that this QEMU can send. QAPI: query-qmp-schema (introspect.json)."""
    command = "query-qmp-schema"
    return event_names(read(list[SchemaInfo], await vm.execute(command), command))


def disks(context: click.Context) -> list[str]:
    """Complete DISK, by the names that `chain` shows."""
    graph = _ask(context, lambda vm: vm.graph())
    return list(graph.disks) if graph is not None else []


def layers(context: click.Context) -> list[str]:
    """Last components of the layers' paths: of the disk in the command line, else of all disks."""
    graph = _ask(context, lambda vm: vm.graph())
    if graph is None:
        return []
    # click drops the arguments before an option that still needs its value; the shell has them.
    words = os.environ.get("COMP_WORDS", "").split()
    disk = context.params.get("disk") or next((word for word in words if word in graph.disks), None)
    return sorted(_layers(graph, disk))


def jobs(context: click.Context) -> list[str]:
    """Complete ID with the jobs of every client."""
    running = _ask(context, lambda vm: vm.jobs.list())
    return [job.id for job in running] if running is not None else []


def snapshots(context: click.Context) -> list[str]:
    """Names of the snapshots; external ones only where QEMU's files are visible."""
    listing = _ask(context, lambda vm: vm.moments(), with_files=True)
    return sorted({moment.name for moment in listing.moments}) if listing is not None else []


def _layers(graph: Graph, disk: str | None) -> set[str]:
    chosen = list(graph.disks.values())
    if disk:
        try:
            chosen = [find_disk(graph, disk)]
        except QmpsnapError:
            return set()
    return {layer.file.rpartition("/")[2] or layer.file for disk in chosen for layer in disk.layers}


def _ask(
    context: click.Context, question: Callable[[VM], Awaitable[T]], *, with_files: bool = False
) -> T | None:
    app = context.find_object(App)
    if app is None:
        return None
    app.record = None  # the command itself creates it
    answer: list[T] = []

    async def ask_machine() -> None:
        machine = opened(app, looks=True, with_files=with_files, greeting_limit=_PATIENCE / 2)
        with anyio.move_on_after(_PATIENCE):
            async with machine as vm:
                answer.append(await question(vm))

    try:
        asyncio.run(ask_machine())
    except (QmpsnapError, OSError, click.UsageError):
        return None
    return answer[0] if answer else None
