"""`qmpsnap thaw`: thaw the file systems of a guest that somebody left frozen."""

from __future__ import annotations

import click

import qmpsnap
from qmpsnap.cli.app import verb
from qmpsnap.cli.options import dry_run
from qmpsnap.cli.output import emit, json_line
from qmpsnap.cli.runner import current_app, run_alone, show_steps
from qmpsnap.cli.signals import Signals


@verb(
    "thaw",
    example="qmpsnap thaw /run/vm1/agent.sock",
    short_help="Thaw a guest's file systems, through its agent.",
)
@click.argument("agent", type=click.Path())
@dry_run
def thaw(agent: str) -> None:
    """Thaw the file systems of a guest; AGENT is the socket of its guest agent.

    A guest is frozen while a backup or a snapshot is taken. If the program that did that dies, all writes in
    the guest wait for ever: the agent thaws nothing by itself.
    """
    if current_app().dry_run:
        show_steps(("guest-fsfreeze-thaw", {}, "host"))
        return

    async def work(_: Signals) -> int:
        return await qmpsnap.thaw(agent)

    count = run_alone(work)
    if current_app().json:
        emit(json_line(thawed=count))
    else:
        emit(f"thawed: {count} file system{'s' if count != 1 else ''}")
