"""The command line's entry point: every command ends here, with its exit code."""

from __future__ import annotations

# What Python itself has imported by now, and no more: an import can be stopped by Ctrl-C. `_signal` is
# `signal` without its enums.
import _signal  # type: ignore[import-not-found]
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn


_NEEDED = ("click", "rich")
_NO_MACHINE = frozenset({"explain", "completion"})  # verbs that need little of the package
_INTERRUPTED = 130
_STOPPED = "qmpsnap: stopped before anything was sent\n  nothing was changed\n"
_STOPPED_JSON = (
    '{"version": 1, "error": {"type": "Interrupted", "message": "stopped before anything was sent", '
    '"changed": "no", "hint": "", "invalid": [], "left": []}}\n'
)


def main() -> NoReturn:
    """Run the command line with this process's arguments, and exit with its exit code."""
    arguments = sys.argv[1:]
    _answer_signals(as_json="--json" in arguments)
    code = run(arguments)
    _flush()
    # At once: to take down one module after the other takes Python a tenth of a whole command.
    os._exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; results are on stdout, all else on stderr.

    Args:
        arguments: What was typed after the program's name.
    """
    import gc  # noqa: PLC0415 - see above
    from importlib.util import find_spec  # noqa: PLC0415

    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        print(  # noqa: T201 - click is missing
            f"qmpsnap: the command line needs {' and '.join(missing)}: pip install 'qmpsnap[cli]'",
            file=sys.stderr,
        )
        return 2
    # Only now: `main` answers signals, and click is known to be there. The whole package: once the event loop
    # runs, signals are handled by the operation.
    gc.disable()  # imports leave little behind, and it would be looked for again and again
    if next((word for word in arguments if not word.startswith("-")), "") not in _NO_MACHINE:
        import qmpsnap.entry  # noqa: F401, PLC0415
    from qmpsnap.cli.report import run_group  # noqa: PLC0415

    gc.freeze()
    gc.enable()
    return run_group(arguments)


def _answer_signals(*, as_json: bool) -> None:
    """Let Ctrl-C and SIGTERM end the process until `Signals` takes over; nothing has been sent before.

    The process ends at once, not by an exception: an exception can get lost in an import, and after an `exec`
    Python would end by the signal instead of with our exit code.
    """
    message, stream = (_STOPPED_JSON, 1) if as_json else (_STOPPED, 2)

    def leave(number: int, frame: object) -> None:
        del number, frame
        try:  # noqa: SIM105 - contextlib is not imported by now
            os.write(stream, message.encode())
        except OSError:
            pass
        os._exit(_INTERRUPTED)

    for number in (_signal.SIGINT, _signal.SIGTERM):
        if _signal.getsignal(number) in {_signal.default_int_handler, _signal.SIG_DFL}:  # else it is ignored
            _signal.signal(number, leave)


def _flush() -> None:
    """Flush what is left, as Python's own end would; a reader that has gone is no error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter complains at its end
    except (OSError, AttributeError):
        pass  # already reported when it was written; or there is no stdout at all
    try:  # noqa: SIM105 - as above
        sys.stderr.flush()
    except (OSError, AttributeError):
        pass
