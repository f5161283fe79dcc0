"""What the pytest plugin adds to the report of a failed test and of a session, and leaves out of them."""

from __future__ import annotations

import hashlib
import re
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qmpsnap.errors import QmpsnapError
from qmpsnap.testing.shared import faces

if TYPE_CHECKING:
    import pytest

    from qmpsnap.testing.shared.pool import InUse

_PACKAGE = str(Path(__file__).parents[2])
_LONGEST: Final = 100
_NOT_PLAIN: Final = re.compile(r"[^A-Za-z0-9_.-]+")
# What the name has "-" for can be read from it; of "[a-b]", "[a/b]" and "[ä]" it cannot.
_PLAIN_ID: Final = re.compile(r"[A-Za-z0-9_./]+(::[A-Za-z0-9_.]+)+(\[[A-Za-z0-9_.]+\])?")


def end_traceback_at_test(error: BaseException, *, plugin: str) -> None:
    """Remove the frames below the test from an error of qmpsnap, whose message says it all.

    They would hide the line of the test. The frames of `plugin`, the plugin's file, are above it. So it is
    for the error of a plain test that calls a method that does not exist, or with arguments that it does not
    take.
    """
    if not isinstance(error, QmpsnapError) and _files(error)[-1:] != [faces.__file__]:
        return
    entry, above = error.__traceback__, None
    while entry is not None:
        file = entry.tb_frame.f_code.co_filename
        if above is not None and file != plugin and file.startswith(_PACKAGE):
            above.tb_next = None
            error.__cause__, error.__suppress_context__ = None, True
            return
        above, entry = entry, entry.tb_next


def leave_out_fixture(error: BaseException, report: pytest.TestReport, *, plugin: str) -> None:
    """Leave only the message of an error that a fixture of `plugin` has raised; its source adds nothing."""
    if _files(error)[-1:] != [plugin]:
        return
    for shown, *_ in getattr(report.longrepr, "chain", ()):
        entry = shown.reprentries[-1]
        if lines := [line for line in entry.lines if line.startswith("E ")]:
            entry.lines, entry.reprfuncargs = lines, None
            shown.reprentries = [entry]


def _files(error: BaseException) -> list[str]:
    """Return the file of each frame of its traceback, that in which it was raised last."""
    return [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]


def folder_name(test: str) -> str:
    """Return the name of the folder of a failed test; no two tests have the same.

    Args:
        test: The node id of pytest; of a longer one than 100 characters, the name has the end.
    """
    plain = _NOT_PLAIN.sub("-", test)
    if _PLAIN_ID.fullmatch(test) and len(plain) <= _LONGEST:
        return plain.strip("-")
    return f"{plain[-_LONGEST:].strip('-')}-{hashlib.sha256(test.encode(errors='replace')).hexdigest()[:8]}"


def keep_failed(in_use: InUse, folder: Path, *, overlays: bool) -> str:
    """Keep the logs and messages of a failed test in a folder; return what it has, or why nothing."""
    try:
        in_use.keep(folder, overlays=overlays)
        names = ", ".join(sorted(path.name for path in folder.iterdir()))
    except Exception as error:  # noqa: BLE001 - the test's own failure must stay visible
        return f"nothing could be kept: {error}"
    return f"{folder}\nhas {names}"


def lines_of(
    *, reset: str, boots: list[float], resets: list[float], again: list[str], spare: str, worker: str = ""
) -> list[str]:
    """How the machines of a process were reset, and why any was booted again; `worker`: its name in xdist."""
    typical = f", {sorted(resets)[len(resets) // 2]:.2f} s each" if resets else ""
    how = reset or ("as the tests' markers say" if boots else "not chosen, because no machine became ready")
    lines = [
        f"reset: {how}; {len(boots)} boot(s), {len(resets)} reset(s){typical}",
        *([spare] if spare else []),
        *(f"booted anew after {line}" for line in again),
    ]
    return [f"[{worker}] {line}" for line in lines] if worker else lines
