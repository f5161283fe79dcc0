"""Reports how a command ended: the exit code, and the text or JSON of an error."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from qmpsnap.cli.app import App, cli
from qmpsnap.cli.output import Unwritable, emit, json_line, start_lines, to_stderr
from qmpsnap.errors import (
    AmbiguousName,
    Busy,
    Changed,
    Detached,
    GraphMismatch,
    Incomplete,
    Interrupted,
    LinkLost,
    QmpsnapError,
    Refused,
)
from qmpsnap.model.printable import printable

INTERRUPTED = 130
_UNWRITABLE = 1
_USAGE = 2


def run_group(arguments: Sequence[str]) -> int:
    """Run the verb that the arguments name; turn its result or error into an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text at all
    app = App()
    try:
        code = cli.main(args=list(arguments), prog_name="qmpsnap", standalone_mode=False, obj=app)
        return code if isinstance(code, int) else 0
    except QmpsnapError as error:
        return _reported(app, error)
    except click.ClickException as error:
        if not arguments:
            to_stderr(
                *cli.get_help(click.Context(cli, info_name="qmpsnap", **cli.context_settings)).split("\n")
            )
            return _USAGE
        return _usage_error(app, arguments, error)
    except (click.Abort, KeyboardInterrupt):
        if app.ended:
            late = "interrupted after the operation had ended, before its result was printed"
            return _reported(app, Interrupted(late, changed=Changed.YES if app.moved else Changed.UNKNOWN))
        return _reported(app, Interrupted("stopped before anything was sent"))
    except Unwritable:
        return _UNWRITABLE
    except Exception as error:  # noqa: BLE001 - the one place that reports bugs
        return _bug(app, error)


def _reported(app: App, error: QmpsnapError) -> int:
    """As `report`; if stdout cannot be written, the error was printed to stderr and its exit code stays."""
    try:
        return report(app, error)
    except Unwritable:
        return INTERRUPTED if isinstance(error, Detached) else error.exit_code


def report(app: App, error: QmpsnapError) -> int:
    """Print what happened, whether anything was changed, and what to do next; return the exit code."""
    code = INTERRUPTED if isinstance(error, Detached) else error.exit_code
    if app.json:
        body = error.to_json()
        if app.moved:
            body["active"] = dict(app.moved)
        emit(json_line(error=body))
        return code
    to_stderr(f"qmpsnap: {'refused: ' if isinstance(error, Refused) else ''}{printable(error.message)}")
    to_stderr(*(f"  {printable(line)}" for line in error.details()))
    to_stderr(*(f"  {line}" for line in start_lines(app.moved)))
    to_stderr(f"  {error.outcome(moved=bool(app.moved))}")
    if hint := _hint(error):
        to_stderr(f"  next: {printable(hint)}")
    if isinstance(error, Detached):
        emit(error.job_id)
    return code


def _hint(error: QmpsnapError) -> str:
    if error.hint:
        return error.hint
    match error:
        case Busy():
            return f"qmpsnap job wait {error.job_id}, or qmpsnap job cancel {error.job_id}"
        case AmbiguousName():
            return f"one of: {', '.join(error.candidates)}"
        case LinkLost() | GraphMismatch():
            return "qmpsnap chain and qmpsnap jobs show the outcome"
        case Incomplete():
            return "qmpsnap jobs shows what is left, and how to finish it"
        case _:
            return ""


def _usage_error(app: App, arguments: Sequence[str], error: click.ClickException) -> int:
    message = error.format_message().replace("\n\t", " ")  # between the choices of a missing argument
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "qmpsnap"
    hint = f"{path} --help"
    if app.json or "--json" in arguments:
        body = {"type": "UsageError", "message": message, "changed": "no", "hint": hint}
        emit(json_line(error=body))
    else:
        to_stderr(f"qmpsnap: {message}", "  nothing was changed", f"  next: {hint}")
    return _USAGE


def _bug(app: App, error: Exception) -> int:
    """Report a bug of ours; with the traceback under -v."""
    message = f"bug in qmpsnap: {type(error).__name__}: {error}"
    hint = (
        "check with qmpsnap chain and qmpsnap jobs; please report it, with the output of the same "
        "command under -vv"
    )
    if app.verbose:
        import traceback  # noqa: PLC0415 - for a fault alone

        for part in traceback.format_exception(error):
            # Each frame has a line for its place and one for its source; the other lines are messages.
            to_stderr(
                *(part.rstrip("\n").split("\n") if part.startswith("  File ") else (part.rstrip("\n"),))
            )
    failure = QmpsnapError(message, changed=Changed.UNKNOWN, hint=hint)
    return _reported(app, failure)
