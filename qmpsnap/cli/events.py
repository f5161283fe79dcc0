"""`qmpsnap events`: print QEMU's events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from fnmatch import fnmatchcase

import anyio
import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.candidates import known_events
from qmpsnap.cli.machine import refuse_off
from qmpsnap.cli.options import EVENT
from qmpsnap.cli.output import emit, json_line
from qmpsnap.cli.reader import reader_gone
from qmpsnap.cli.report import INTERRUPTED
from qmpsnap.cli.runner import current_app, run
from qmpsnap.cli.signals import Signals
from qmpsnap.errors import Changed, Interrupted, LinkLost, NotFound, TargetError
from qmpsnap.model.printable import printable
from qmpsnap.run.session.event import Event
from qmpsnap.vm import VM


@verb(
    "events",
    example="qmpsnap -s /run/vm1/qmp.sock events 'BLOCK_JOB_*' SHUTDOWN",
    short_help="Print QEMU's events as they arrive.",
)
@click.argument("names", metavar="[NAME]...", nargs=-1, type=EVENT)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    metavar="N",
    help="Exit with 0 after N events. [default: no limit]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Exit after so many seconds: with 0, or with 4 if --count events have not come. [default: no limit]",
)
def events(names: tuple[str, ...], count: int | None, timeout: float | None) -> None:
    """Print QEMU's events, one a line, until the link is lost (exit 5) or Ctrl-C (exit 130).

    With NAMEs only these events are printed. A NAME may be a pattern with *, ? and [...].
    """
    app = current_app()
    refuse_off(app, "events")
    wanted = Wanted(tuple(name.upper() for name in names), count)

    async def work(vm: VM, _: Signals) -> str:
        enough = anyio.Event()

        def sink(event: Event) -> None:
            if enough.is_set() or not wanted.takes(event):
                return
            if not emit(_json(event) if app.json else event_text(event)) or wanted.enough:
                enough.set()

        with vm.events(sink), reader_gone(enough.set), anyio.move_on_after(timeout):
            if names:
                wanted.check(await known_events(vm))
            return await _first(vm, enough)
        if wanted.missing:
            raise TargetError(
                f"only {wanted.seen} of {count} events came within {timeout:g} s",
                hint="wait longer, or check the names: qmpsnap events prints every event",
            )
        return ""

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


async def _first(vm: VM, enough: anyio.Event) -> str:
    """Wait until the link is lost, and return why, or until there were enough events, and return ""."""
    lost = asyncio.ensure_future(vm.wait_lost())
    ended = asyncio.ensure_future(enough.wait())
    try:
        await asyncio.wait({lost, ended}, return_when=asyncio.FIRST_COMPLETED)
        return "" if ended.done() else lost.result()
    finally:
        for task in (lost, ended):
            task.cancel()


class Wanted:
    """The events to print.

    Args:
        patterns: Their names, in capitals, or patterns of the shell; none: every event.
        count: How many are enough; None: any number.

    Attributes:
        seen: How many of them have come.
    """

    def __init__(self, patterns: tuple[str, ...], count: int | None) -> None:
        self.seen = 0
        self._patterns = patterns
        self._count = count

    def takes(self, event: Event) -> bool:
        """Whether the event is one of them; it is counted."""
        if self._patterns and not any(fnmatchcase(event.name, pattern) for pattern in self._patterns):
            return False
        self.seen += 1
        return True

    @property
    def enough(self) -> bool:
        """Whether no more are wanted."""
        return self.seen == self._count

    @property
    def missing(self) -> bool:
        """Whether more were wanted than have come."""
        return self._count is not None and self.seen < self._count

    def check(self, known: Sequence[str]) -> None:
        """Refuse a name that can never come.

        Args:
            known: The events that this QEMU can send.

        Raises:
            NotFound: When a pattern fits none of them.
        """
        for pattern in self._patterns:
            if not any(fnmatchcase(name, pattern) for name in known):
                similar = get_close_matches(pattern, known, n=3)
                raise NotFound(
                    f"this QEMU has no event {pattern!r}",
                    hint=f"did you mean {' or '.join(similar)}?"
                    if similar
                    else f"its events are {', '.join(known)}",
                )


def _json(event: Event) -> str:
    return json_line(**event.to_json())


def event_text(event: Event) -> str:
    """An event with its local date and time, on one line."""
    time = datetime.fromtimestamp(event.timestamp, UTC).astimezone().isoformat(" ", "milliseconds")
    return " ".join([time, printable(event.name), *facts(event)])


def facts(event: Event) -> list[str]:
    """The data of an event, each as KEY=VALUE on one line."""
    return [f"{printable(key)}={_value(value)}" for key, value in event.data.items()]


def _value(value: object) -> str:
    return printable(value) if isinstance(value, str) and value else json.dumps(value)
