"""What results look like: text for people, one JSON object for programs."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qmpsnap.model.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "VERSION",
    "Row",
    "Unwritable",
    "chain_lines",
    "columns",
    "duration",
    "emit",
    "json_line",
    "printable",
    "relative",
    "size",
    "start_lines",
    "table",
    "to_stderr",
    "wrap",
]

VERSION = 1
_NARROWEST = 40  # columns; a terminal may say that it has none
_LEAST = 12  # columns of the last one of a table
_BENEATH = "    "
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
            print(printable(line))  # noqa: T201 - this is where results are printed
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
        return False
    except OSError as error:
        _discard_stdout()
        to_stderr(f"qmpsnap: cannot write to stdout ({error.strerror or error}); the result is:", *lines)
        raise Unwritable from error
    return True


def _discard_stdout() -> None:
    """Send what is still buffered away, or the interpreter complains about it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def to_stderr(*lines: str) -> None:
    """Write lines to stderr, each as one line there; a terminal gets it broken between words."""
    printed: Iterable[str] = map(printable, lines)
    if sys.stderr.isatty():
        printed = (part for line in printed for part in wrap(line))
    for line in printed:
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - and this where all else is


def json_line(**fields: object) -> str:
    """One JSON object, on one line, with its version; what JSON has no number for is null."""
    return _dump({"version": VERSION, **fields})


def _dump(value: object) -> str:
    try:
        return json.dumps(value, default=_plain, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(json.loads(json.dumps(value, default=_plain))))


def _finite(value: object) -> object:
    """The same without NaN and infinities, which Python reads and writes, and JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
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


def columns() -> int:
    """How wide a table may be: as the terminal, or 80 columns where there is none."""
    return max(shutil.get_terminal_size().columns, _NARROWEST)


def relative(file: str) -> str:
    """A file's name as it may be typed here: relative where it lies in or below this directory."""
    try:
        here = os.getcwd().rstrip("/") + "/"  # noqa: PTH109 - a path of QEMU's need not be one of ours
    except OSError:
        return file
    return file.removeprefix(here) or file


def wrap(text: str, *, indent: str = "", more: str = "    ") -> list[str]:
    """Lines of a text, broken between words; a command line of ours is never broken, for it may be copied.

    Args:
        text: The text.
        indent: What the first line begins with.
        more: What each further one begins with, beside that.
    """
    return _wrap(_words(text), indent, indent + more)


def chain_lines(disk: str, drawing: str) -> list[str]:
    """Lines of a drawn chain, broken before its arrows."""
    first, *others = f"{printable(disk)}: {printable(drawing)}".split(" <- ")
    return _wrap([first, *(f"<- {other}" for other in others)], "", "    ")


def _words(text: str) -> list[str]:
    """What may not be broken: each word, and a command line of ours up to what ends it in a sentence."""
    words: list[str] = []
    typed = False
    for word in text.split(" "):
        if typed:
            words[-1] += f" {word}"
        else:
            words.append(word)
            typed = word.lstrip("(") == "qmpsnap"
        if word.endswith((",", ";", ")")) and words[-1].count("'") % 2 == 0:
            typed = False
    return words


def _wrap(words: Sequence[str], first: str, further: str) -> list[str]:
    room = columns()
    lines, line, empty = [], first, True
    for word in words:
        if not empty and len(line) + 1 + len(word) > room:
            lines.append(line)
            line, empty = further, True
        line, empty = (line if empty else f"{line} ") + word, False
    return [*lines, line]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table.

    Attributes:
        cells: Texts, as many as there are columns.
        beneath: Remarks, each on lines of its own below the row.
    """

    cells: tuple[str, ...]
    beneath: tuple[str, ...] = ()


def table(
    header: Sequence[str], rows: Iterable[Row], *, right: Sequence[str] = (), indent: str = "  "
) -> list[str]:
    """Lines of a table that fits the terminal; a column without any content is left out.

    The last column is broken between words; what does not fit there at all, a long path, stands below the
    row, and what is too long for the first column above it. No name is ever cut.

    Args:
        header: The columns' names.
        rows: The rows.
        right: Columns that are set to the right.
        indent: What each line begins with.
    """
    rows = list(rows)
    used = [index for index in range(len(header)) if any(row.cells[index] for row in rows)]
    if not used:
        return []
    body = [[header[index] for index in used]]
    body += [[printable(row.cells[index]) for index in used] for row in rows]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    if len(used) > 1:
        last = min(widths[-1], _LEAST)
        room = columns() - len(indent) - sum(width + 2 for width in widths[1:-1]) - 2 - last
        widths[0] = max((len(row[0]) for row in body[1:] if len(row[0]) <= room), default=0)
        widths[0] = max(widths[0], len(body[0][0]))
    lines = []
    remarks: list[tuple[str, ...]] = [(), *(row.beneath for row in rows)]
    for row, beneath in zip(body, remarks, strict=True):
        lines += _lines(row, widths, [header[index] in right for index in used], indent)
        for remark in beneath:
            lines += wrap(printable(remark), indent=indent + _BENEATH)
    return lines


def _lines(row: list[str], widths: list[int], rights: list[bool], indent: str) -> list[str]:
    *cells, last = row
    lines = []
    if cells and len(cells[0]) > widths[0]:
        lines.append(indent + cells[0])
        cells[0] = ""
    start = indent + "".join(
        (cell.rjust(width) if right else cell.ljust(width)) + "  "
        for cell, width, right in zip(cells, widths[:-1], rights[:-1], strict=True)
    )
    if rights[-1]:
        last = last.rjust(min(widths[-1], columns() - len(start)))
    words = [last] if rights[-1] else last.split(" ")
    if cells and max(map(len, words)) > columns() - len(start):
        return [*lines, start.rstrip(), indent + _BENEATH + last]
    lines += _wrap(words, start, " " * len(start))
    return [line.rstrip() for line in lines]


def start_lines(active: Mapping[str, str]) -> list[str]:
    """What whoever starts the machine next must know."""
    return [f"from now on, start {printable(disk)} from {printable(file)}" for disk, file in active.items()]
