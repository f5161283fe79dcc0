"""`qmpsnap events`: print QEMU's events."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import anyio
import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.machine import refuse_off
from qmpsnap.cli.output import emit, json_line
from qmpsnap.cli.report import INTERRUPTED
from qmpsnap.cli.runner import current_app, run
from qmpsnap.cli.signals import Signals
from qmpsnap.errors import Changed, Interrupted, LinkLost
from qmpsnap.model.printable import printable
from qmpsnap.run.session.event import Event
from qmpsnap.vm import VM


@verb(
    "events",
    example="qmpsnap -s /run/vm1/qmp.sock --json events | jq .event",
    short_help="Print QEMU's events as they arrive.",
)
def events() -> None:
    """Print QEMU's events, one a line, until the link is lost (exit 5) or Ctrl-C (exit 130)."""
    app = current_app()
    refuse_off(app, "events")

    async def work(vm: VM, _: Signals) -> str:
        closed = anyio.Event()

        def sink(event: Event) -> None:
            if not closed.is_set() and not emit(_json(event) if app.json else _text(event)):
                closed.set()

        with vm.events(sink), _reader_gone(closed.set):
            lost = asyncio.ensure_future(vm.wait_lost())
            gone = asyncio.ensure_future(closed.wait())
            try:
                await asyncio.wait({lost, gone}, return_when=asyncio.FIRST_COMPLETED)
                return lost.result() if lost.done() else ""
            finally:
                for task in (lost, gone):
                    task.cancel()

    try:
        reason = run(work)
    except Interrupted:
        click.get_current_context().exit(INTERRUPTED)  # the usual end: nothing to report
    if reason:
        raise LinkLost(
            f"no more events: {reason}",
            step="events",
            changed=Changed.NO,
            hint="connect again when QEMU is back",
        )


@contextmanager
def _reader_gone(notify: Callable[[], object]) -> Iterator[None]:
    """Call `notify` when stdout is a pipe whose reader is gone, even while no event arrives."""
    descriptor = sys.stdout.fileno()
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        yield
        return
    # A pipe that we write to is never readable: only its end wakes us.
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(descriptor)
        notify()

    loop.add_reader(descriptor, ended)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)


def _json(event: Event) -> str:
    return json_line(**event.to_json())


def _text(event: Event) -> str:
    time = datetime.fromtimestamp(event.timestamp, UTC).astimezone().isoformat(" ", "milliseconds")
    facts = (f"{key}={_value(value)}" for key, value in event.data.items())
    return " ".join([time, printable(event.name), *facts])


def _value(value: object) -> str:
    return printable(value) if isinstance(value, str) and value else json.dumps(value)
