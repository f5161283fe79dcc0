"""What results look like: text for people, one JSON object for programs."""

from __future__ import annotations

import json
import math
import os
import sys
from typing import TYPE_CHECKING

from qmpsnap.model.shown import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["VERSION", "Unwritable", "duration", "emit", "moved", "shown", "size", "spell", "table", "tell"]

VERSION = 1
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


class Unwritable(Exception):
    """The result could not be written to stdout; it was told on stderr instead."""


def emit(*lines: str) -> bool:
    """Write lines to stdout, at once; False when nobody reads them any more.

    Each is one line there, whatever it holds: this and `tell` are the only places that print.

    Raises:
        Unwritable: When stdout takes them not, a full disk under it for instance.
    """
    try:
        for line in lines:
            print(shown(line))  # noqa: T201 - this is where results are printed
        sys.stdout.flush()
    except BrokenPipeError:
        _to_nowhere()
        return False
    except OSError as error:
        _to_nowhere()
        tell(f"qmpsnap: stdout cannot be written ({error.strerror or error}); the result is:", *lines)
        raise Unwritable from error
    return True


def _to_nowhere() -> None:
    """Send what is still buffered away, or the interpreter complains about it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(*lines: str) -> None:
    """Write lines to stderr, each as one line there."""
    for line in lines:
        print(shown(line), file=sys.stderr, flush=True)  # noqa: T201 - and this where all else is


def spell(**fields: object) -> str:
    """One JSON object, on one line, with its version; what JSON has no number for is null."""
    return _dumped({"version": VERSION, **fields})


def _dumped(value: object) -> str:
    try:
        return json.dumps(value, default=_plain, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(json.loads(json.dumps(value, default=_plain))))


def _finite(value: object) -> object:
    """The same without NaN and infinities, which Python reads and writes, and JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: object) -> object:
    if isinstance(value, dict | str | int | float):
        return value
    try:
        return dict(value)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return str(value)


def size(number: int | None) -> str:
    """Bytes in units of 1024, three digits: "1.5 GiB"; "?" for what is no size."""
    if number is None or number < 0:
        return "?"
    if number < 1024:
        return f"{number} B"
    value, unit = float(number), ""
    for unit in _UNITS:  # noqa: B007 - the last one is used
        value /= 1024
        if value < 999.5:
            break
    return f"{value:.3g} {unit}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them: "3.1 ms", "12 s", "1:02:03"."""
    if seconds is None:
        return "?"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 99.5:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = (), indent: str = "  "
) -> list[str]:
    """Lines of a table; a column without any content is left out.

    Args:
        header: The columns' names.
        rows: Texts, as many in each row as there are columns.
        right: Columns that are set to the right.
        indent: What each line begins with.
    """
    body = [tuple(map(shown, row)) for row in rows]
    used = [index for index in range(len(header)) if any(row[index] for row in body)]
    lines = []
    widths = {index: max(len(row[index]) for row in (tuple(header), *body)) for index in used}
    for row in (tuple(header), *body):
        cells = [
            row[index].rjust(widths[index]) if header[index] in right else row[index].ljust(widths[index])
            for index in used
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines


def moved(active: Mapping[str, str]) -> list[str]:
    """What whoever starts the machine next must know."""
    return [f"from now on start {shown(disk)} from {shown(file)}" for disk, file in active.items()]
