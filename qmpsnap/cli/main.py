"""The command line's entry point: every way out ends here, with its text and its exit code."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main", "run"]

_NEEDED = ("click", "rich")


def main() -> NoReturn:
    """Run the command line with this process's arguments, and exit as mission's table says."""
    code = run(sys.argv[1:])
    _flush()
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; results are on stdout, all else on stderr.

    Args:
        arguments: What was typed after the program's name.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        print(  # noqa: T201 - there is no click to say it
            f"qmpsnap: the command line needs {' and '.join(missing)}: pip install 'qmpsnap[cli]'",
            file=sys.stderr,
        )
        return 2
    # Only now: importing qmpsnap must never need click, and whoever lacks it is told so above.
    from qmpsnap.cli.outcome import run_group  # noqa: PLC0415

    return run_group(arguments)


def _flush() -> None:
    """Write out what is left; a reader that has gone is no error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter complains at its end
    except (OSError, AttributeError):
        pass  # it was said when it was written; or there is no stdout at all
