"""How `top` shows an overview: pure functions from the overview to lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.cells import cell_len
from rich.text import Text

from qmpsnap.cli.events import facts
from qmpsnap.cli.jobs import job_state
from qmpsnap.cli.output import relative
from qmpsnap.cli.progress import progress_facts
from qmpsnap.model.graph import Disk, draw
from qmpsnap.model.job import JobStatus
from qmpsnap.model.printable import printable
from qmpsnap.run.session import Event
from qmpsnap.watching import JobNow, Overview

_BAR = 30  # columns
_CHAIN_LINES = 3
_LEAST_EVENTS = 4  # lines, of which the first is the title
_MARK = "(read-only)"
_GOOD = frozenset({"running"})
_BAD = frozenset({"guest-panicked", "internal-error", "io-error", "shutdown"})


def screen(overview: Overview, name: str, *, width: int, height: int, ascii_only: bool = False) -> list[Text]:
    """Lines that fill a terminal: the jobs come first, and the last events take what is left.

    Args:
        overview: The overview.
        name: The machine's name.
        width: Columns of the terminal.
        height: Lines of the terminal; the result has at most as many.
        ascii_only: Whether the terminal shows no other characters.
    """
    top = [line for text in _head(overview, name) for line in _folded(text, width)]
    jobs = [line for job in overview.jobs for line in _job(job, width, ascii_only=ascii_only)]
    disks = [line for disk in overview.graph.disks.values() for line in _disk(disk, width)] or [
        Text("no disks", "dim")
    ]
    room = height - len(top)
    if jobs:
        jobs = _cut([_title("JOBS"), *jobs], max(room // 2, room - len(disks) - 1 - _LEAST_EVENTS))
    room -= len(jobs)
    disks = _cut([_title("DISKS"), *disks], room - _LEAST_EVENTS)
    room -= len(disks)
    shown = overview.events[-max(room - 1, 1) :]
    events = [_title("EVENTS"), *(_event(event) for event in shown)] if shown else []
    lines = [*top, *disks, *jobs, *events][:height]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def block(overview: Overview, name: str, *, progress: bool = False) -> list[str]:
    """Lines for a file or a pipe, without events.

    Args:
        overview: The overview.
        name: The machine's name.
        progress: Whether each job has its progress; without it the lines differ only after a change.
    """
    lines = _head(overview, name)
    for disk in overview.graph.disks.values():
        mark = f" {_MARK}" if _is_marked(disk) else ""
        lines.append(Text(f"{printable(disk.name)}: {printable(draw(disk.files))}{mark}"))
    for job in overview.jobs:
        where = f", into {printable(relative(job.place.target))}" if job.place.target else ""
        about = f", {amount}" if progress and (amount := progress_facts(job.progress)) else ""
        lines.append(Text(f"job {printable(job.job.id)}: {_job_title(job)}{about}{where}"))
    return [line.plain for line in lines]


def event_line(event: Event) -> str:
    """An event with its local time, on one line."""
    return _event(event).plain


def _head(overview: Overview, name: str) -> list[Text]:
    status = overview.status
    if status is None:
        line = Text().append("no guest", "yellow")
    else:
        colour = "green" if status.state in _GOOD else "red" if status.state in _BAD else "yellow"
        line = Text().append(printable(status.state), f"bold {colour}")
        if status.migration != "none":
            line.append(f" (migration: {printable(status.migration)})")
    lines = [line.append(f"  {printable(relative(name))}")]
    if overview.pause is not None:
        lines.append(Text(printable(overview.pause.cause), "yellow"))
        lines += [Text(f"next: {printable(overview.pause.advice)}")] if overview.pause.advice else []
    if overview.silent_s:
        lines.append(Text(f"QEMU has not answered for {overview.silent_s} s", "bold red"))
    if overview.unread:
        lines.append(Text(f"the chains may be out of date: {printable(overview.unread)}", "yellow"))
    return lines


def _disk(disk: Disk, width: int) -> list[Text]:
    """A disk with the oldest layer and as many of the newest as fit."""
    name = printable(disk.name)
    base, *newer = draw(tuple(map(printable, disk.files))).split(" <- ")
    mark = [_MARK] if _is_marked(disk) else []
    for kept in range(min(len(newer), width // 2), -1, -1):
        left = len(newer) - kept
        parts = [*([f"... {left} more ..."] if left else []), *newer[left:]]
        lines = _wrapped([f"{name}: {base}", *(f"<- {part}" for part in parts), *mark], width)
        if len(lines) <= _CHAIN_LINES:
            break
    found = [Text(line) for line in lines]
    found[0].stylize("cyan", 0, len(name))
    return found


def _is_marked(disk: Disk) -> bool:
    return bool(disk.layers) and disk.read_only


def _job(job: JobNow, width: int, *, ascii_only: bool) -> list[Text]:
    state = job.job.status
    title = Text(_job_title(job), "red" if job.job.error or job.job.stopped_by_error else "")
    lines = _folded(title, width)
    about = progress_facts(job.progress)
    if job.job.length > 1:
        columns = min(_BAR, max(width - 2, 1))
        done = round(columns * job.job.fraction)
        full, rest = ("#", "-") if ascii_only else ("\N{FULL BLOCK}", "\N{LIGHT SHADE}")
        bar = Text("  ").append(full * done, "green" if state is JobStatus.READY else "blue")
        bar.append(rest * (columns - done), "dim")
        if bar.cell_len + 1 + len(about) <= width:
            lines.append(bar.append(f" {about}"))
        else:
            lines += [bar, *_folded(Text(f"  {about}"), width)]
    lines.append(Text(f"  {printable(job.job.id)}", "dim"))
    if job.place.target:
        lines += _folded(Text(f"  into {printable(relative(job.place.target))}", "dim"), width)
    if job.job.error:
        lines += _folded(Text(f"  error: {printable(job.job.error)}", "red"), width)
    return lines


def _job_title(job: JobNow) -> str:
    place = f" of {printable(job.place.disk)}" if job.place.disk else ""
    return f"{printable(job.job.op or job.job.type)}{place}: {job_state(job.job)}"


def _event(event: Event) -> Text:
    time = datetime.fromtimestamp(event.timestamp, UTC).astimezone().isoformat(" ", "milliseconds")[11:23]
    line = Text().append(f"{time} ", "dim").append(printable(event.name), "bold")
    for fact in facts(event):
        line.append(f" {fact}")
    return line


def _title(text: str) -> Text:
    return Text(text, "dim")


def _cut(lines: Sequence[Text], room: int) -> list[Text]:
    """As many of the lines as there is room for, with the number of those that are left out."""
    room = max(room, 2)
    if len(lines) <= room:
        return list(lines)
    return [*lines[: room - 1], Text(f"  ... {len(lines) - room + 1} more lines", "dim")]


def _folded(text: Text, width: int) -> list[Text]:
    """The text on lines of that width, broken between words, further lines indented."""
    if text.cell_len <= width:
        return [text]
    indent = " " * (len(text.plain) - len(text.plain.lstrip()))
    lines = _wrapped(text.plain.split(), width - len(indent))
    return [Text(f"{indent}{line}", text.style) for line in lines]


def _wrapped(words: Iterable[str], width: int) -> list[str]:
    lines: list[str] = []
    for word in words:
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(f"    {word}" if lines else word)
    return lines
