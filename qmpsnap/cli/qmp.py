"""`qmpsnap qmp`: send any QMP command."""

from __future__ import annotations

import json
from contextlib import suppress

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.machine import refuse_off
from qmpsnap.cli.options import COMMAND, dry_run
from qmpsnap.cli.output import emit, json_line
from qmpsnap.cli.runner import current_app, run, show_steps
from qmpsnap.cli.signals import Signals
from qmpsnap.errors import CommandFailed
from qmpsnap.model.qmp_line import similar
from qmpsnap.vm import VM


@verb(
    "qmp",
    example="""qmpsnap -s /run/vm1/qmp.sock qmp human-monitor-command '{"command-line": "info block"}'""",
    short_help="Send any QMP command as it is.",
)
@click.argument("command", type=COMMAND)
@click.argument("arguments", metavar="[JSON]", required=False)
@dry_run
def qmp(command: str, arguments: str | None) -> None:
    """Send COMMAND with the arguments in the JSON object, and print what QEMU returns.

    Nothing is checked before or after, nothing is rolled back, and nothing is recorded. Errors of the
    human monitor are text in its answer, so the exit code is 0 all the same.
    """
    parsed = _object(arguments)
    refuse_off(current_app(), "qmp")
    if current_app().dry_run:
        show_steps((command, parsed, "qmp"))
        return

    async def work(vm: VM, signals: Signals) -> object:
        with signals.operation(None):
            return await _execute(vm, command, parsed)

    answer = run(work)
    if current_app().json:
        emit(json_line(**{"return": answer}))
    elif isinstance(answer, str):  # the human monitor's
        emit(*answer.splitlines())
    else:
        emit(*json.dumps(answer, indent=2).splitlines())


async def _execute(vm: VM, command: str, arguments: dict[str, object]) -> object:
    """Send it; the error of a command that this QEMU does not have names similar ones."""
    try:
        return await vm.execute(command, arguments)
    except CommandFailed as error:
        if error.qmp_class == "CommandNotFound":
            with suppress(CommandFailed):
                error.hint = similar(command, (await vm.schema()).commands) or error.hint
        raise


def _object(text: str | None) -> dict[str, object]:
    """The arguments as typed.

    Raises:
        click.BadParameter: When they are not a JSON object.
    """
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"{text!r} is not JSON: {error}", param_hint="JSON") from None
    if not isinstance(value, dict):
        raise click.BadParameter(
            f'{text!r} is not a JSON object such as \'{{"node-name": "x"}}\'', param_hint="JSON"
        )
    return value
