"""What results look like: text for people, one JSON object for programs."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from qmpsnap.model.printable import printable, shortened

VERSION = 1
_NARROWEST = 40  # columns; a terminal may report 0
_LEAST = 12  # minimal width of a table's last column
_BENEATH = "    "


class Unwritable(Exception):
    """The result could not be written to stdout; it was printed to stderr instead."""


def emit(*lines: str) -> bool:
    """Write lines to stdout and flush; False when nobody reads them any more.

    Each prints as one line, whatever it contains: only this and `to_stderr` print.

    Raises:
        Unwritable: When stdout cannot be written, for instance on a full disk.
    """
    if sys.stdout is None:  # the descriptor was closed when we were started
        _to_stderr(["qmpsnap: stdout is closed; the result is:", *lines])
        raise Unwritable
    try:
        for line in lines:
            print(printable(line))  # noqa: T201 - this is where results are printed
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
        return False
    except OSError as error:
        _discard_stdout()
        _to_stderr([f"qmpsnap: cannot write to stdout ({error.strerror or error}); the result is:", *lines])
        raise Unwritable from error
    return True


def _discard_stdout() -> None:
    """Discard what is still buffered, or the interpreter complains about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def to_stderr(*lines: str) -> None:
    """Write messages to stderr, each as one line; on a terminal they are wrapped between words.

    What is too long to be read, such as a name of a megabyte, is shortened.
    Without anybody to read them they are dropped: the exit code gives the outcome all the same.
    """
    _to_stderr(map(shortened, lines))


def _to_stderr(lines: Iterable[str]) -> None:
    if sys.stderr is None:
        return
    printed: Iterable[str] = map(printable, lines)
    try:
        if sys.stderr.isatty():
            printed = (part for line in printed for part in wrap(line))
        for line in printed:
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - and this where all else is
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def json_line(**fields: object) -> str:
    """One JSON object on one line, with its version; NaN and infinities become null."""
    return _dump({"version": VERSION, **fields})


def _dump(value: object) -> str:
    try:
        return json.dumps(value, default=_plain, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(json.loads(json.dumps(value, default=_plain))))


def _finite(value: object) -> object:
    """The same value without NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
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


def local(created: str) -> str:
    """An ISO 8601 time in the local time zone, to the second."""
    return f"{datetime.fromisoformat(created).astimezone():%Y-%m-%d %H:%M:%S}"


def duration(seconds: float | None) -> str:
    """Seconds in a readable unit: "3.1 ms", "12 s", "1:02:03"."""
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
    """The terminal's width, or 80 columns without a terminal."""
    return max(shutil.get_terminal_size().columns, _NARROWEST)


def relative(file: str) -> str:
    """A file's path, relative if the file is in or below the current directory."""
    try:
        here = os.getcwd().rstrip("/") + "/"  # noqa: PTH109 - names are compared as QEMU spells them
    except OSError:
        return file
    return file.removeprefix(here) or file


def wrap(text: str, *, indent: str = "", more: str = "    ") -> list[str]:
    """Wrap a text between words; a qmpsnap command line is never broken, so that it can be copied.

    Args:
        text: The text.
        indent: What the first line begins with.
        more: What each further line begins with, after that.
    """
    return _wrap(_words(text), indent, indent + more)


def chain_lines(disk: str, drawing: str) -> list[str]:
    """Wrap a drawn chain before its arrows."""
    first, *others = f"{printable(disk)}: {printable(drawing)}".split(" <- ")
    return _wrap([first, *(f"<- {other}" for other in others)], "", "    ")


def _words(text: str) -> list[str]:
    """The unbreakable parts: each word, and a qmpsnap command line up to the punctuation that ends it."""
    words: list[str] = []
    typed = False
    for word in text.split(" "):
        if typed:
            words[-1] += f" {word}"
        else:
            words.append(word)
            typed = word.lstrip("(") == "qmpsnap"
        ends = word.endswith((",", ";", ":", ")")) or (word.endswith(".") and word.strip("./"))
        if ends and words[-1].count("'") % 2 == 0:
            typed = False
    return words


def _wrap(words: Sequence[str], first: str, further: str) -> list[str]:
    room = columns()
    lines, fresh = [first], True
    for word in words:
        if not fresh and len(lines[-1]) + 1 + len(word) > room:
            lines.append(further)
            fresh = True
        lines[-1] += word if fresh else f" {word}"
        fresh = False
    return lines


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table.

    Attributes:
        cells: One text per column.
        beneath: Remarks, each on lines of its own below the row.
    """

    cells: tuple[str, ...]
    beneath: tuple[str, ...] = ()


def table(
    header: Sequence[str], rows: Iterable[Row], *, right: Sequence[str] = (), indent: str = "  "
) -> list[str]:
    """Lines of a table that fits the terminal; an empty column is left out.

    The last column is wrapped between words; a word that does not fit, such as a long path, goes below the
    row, and what is too long for the first column goes above it. No name is ever cut.

    Args:
        header: The columns' names.
        rows: The rows.
        right: Names of right-aligned columns.
        indent: What each line begins with.
    """
    rows = list(rows)
    used = [index for index in range(len(header)) if any(row.cells[index] for row in rows)]
    if not used:
        return []
    body = [[header[index] for index in used]]
    body += [[printable(row.cells[index]) for index in used] for row in rows]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    if len(used) > 1:  # the first column is as wide as its longest cell that leaves room for the others
        last = min(widths[-1], _LEAST)
        room = columns() - len(indent) - sum(width + 2 for width in widths[1:-1]) - 2 - last
        fitting = [len(row[0]) for row in body[1:] if len(row[0]) <= room]
        widths[0] = max([len(body[0][0]), *fitting])
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
    """From which files the machine has to be started next time."""
    return [f"from now on, start {printable(disk)} from {printable(file)}" for disk, file in active.items()]
