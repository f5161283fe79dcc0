"""`qmpsnap replay`: serve the record of a session as a QMP server."""

from __future__ import annotations

import asyncio

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import FILE
from qmpsnap.cli.output import emit, json_line, relative
from qmpsnap.cli.runner import current_app, run_alone
from qmpsnap.cli.signals import Signals
from qmpsnap.errors import TargetError
from qmpsnap.model.printable import printable
from qmpsnap.testing.replay import replay as serve_record


@verb(
    "replay",
    example="qmpsnap replay session.jsonl --listen /tmp/vm1.sock",
    short_help="Serve a recorded session as a QMP server.",
)
@click.argument("file", type=FILE)
@click.option(
    "--listen",
    "path",
    type=FILE,
    metavar="PATH",
    help="The socket to create. [default: FILE.sock]",
)
def replay(file: str, path: str | None) -> None:
    """Serve the record FILE, which --record has made, on a unix socket.

    Each client gets the recorded replies and events of the next session. A command that differs from the
    recorded one gets an error that says which was expected. Ends when the last session has been played, or by
    Ctrl-C; exits with 4 if a command was refused.
    """
    as_json = current_app().json

    async def serve(signals: Signals) -> tuple[str, ...]:
        async with serve_record(file, path or f"{file}.sock") as server:
            emit(
                json_line(socket=server.path)
                if as_json
                else f"listening on {printable(relative(server.path))}"
            )
            with signals.ends() as end:
                ended = asyncio.ensure_future(end.wait())
                played = asyncio.ensure_future(server.played.wait())
                await asyncio.wait({ended, played}, return_when=asyncio.FIRST_COMPLETED)
                for task in (ended, played):
                    task.cancel()
            return tuple(server.refused)

    refused = run_alone(serve)
    for refusal in refused:
        emit(json_line(refused=refusal) if as_json else f"refused: {printable(refusal)}")
    if refused:
        click.get_current_context().exit(TargetError.exit_code)
