"""`qmpsnap shell`: type QMP commands at a prompt, or read them from a file."""

from __future__ import annotations

import asyncio
import sys
from importlib.util import find_spec

import anyio.to_thread
import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.machine import refuse_off
from qmpsnap.cli.output import emit, json_line, to_stderr
from qmpsnap.cli.runner import current_app, run
from qmpsnap.cli.shell_sender import ENDS, Ended, Sender
from qmpsnap.cli.signals import Signals
from qmpsnap.errors import BadArgument, Changed, Interrupted, QmpsnapError
from qmpsnap.vm import VM


@verb(
    "shell",
    example="qmpsnap -s /run/vm1/qmp.sock shell --dry",
    short_help="Type QMP commands, with completion.",
)
@click.option(
    "--dry",
    is_flag=True,
    help="Send commands that are known to change nothing, and refuse all others. [default: send all]",
)
def shell(*, dry: bool) -> None:
    """Type QMP commands: COMMAND KEY=VALUE..., COMMAND {JSON}, or {"execute": ...}.

    Tab completes commands, arguments and their values, from QEMU's own schema. `help COMMAND` shows what a
    command takes, `exit` or Ctrl-D ends the shell.

    Commands are sent as they are: nothing is checked, rolled back or recorded.

    If stdin is no terminal, or with --json, each line is a command, and each answer one line of JSON. The
    first failure ends the shell, with its exit code.
    """
    app = current_app()
    refuse_off(app, "shell")
    on_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty() and not app.json
    if on_terminal and find_spec("prompt_toolkit") is None:
        raise click.UsageError("a shell on a terminal needs prompt_toolkit: pip install 'qmpsnap[cli]'")

    async def work(vm: VM, signals: Signals) -> None:
        sender = await Sender.of(vm, signals, dry=dry)
        try:
            if on_terminal:
                from qmpsnap.cli.shell_prompt import converse  # noqa: PLC0415 - for a terminal alone

                await converse(sender)
            else:
                await _read(sender)
        except Ended:
            to_stderr("QEMU has ended")
        except asyncio.CancelledError:
            if not signals.interrupted:
                raise
            raise Interrupted(
                "the shell was interrupted; what it has sent before is not taken back", changed=sender.changed
            ) from None

    run(work)


async def _read(sender: Sender) -> None:
    """Send each line of stdin, and print each answer as one line of JSON.

    Raises:
        QmpsnapError: At the first line that fails; its number is in the message.
    """
    number = 0
    while (data := await sender.unless_lost(_next_line())) != b"":
        number += 1
        before = sender.changed
        try:
            request = sender.read(_text(data))
            if request is ENDS:
                return
            if request is not None:
                answer = await sender.send(request)
                emit(json_line(command=request.command, **{"return": answer}))
        except QmpsnapError as error:
            error.message = f"line {number}: {error.message}"
            if error.changed is Changed.NO:
                error.changed = before  # by the lines before
            raise


async def _next_line() -> bytes:
    if sys.stdin is None:
        return b""
    return await anyio.to_thread.run_sync(sys.stdin.buffer.readline, abandon_on_cancel=True)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadArgument(f"not UTF-8: {error}", parameter="line", value=data) from None
