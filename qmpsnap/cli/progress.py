"""Progress of a job on stderr: a bar on a terminal; with --progress one line per update.

With --json these lines are JSON objects. They go to stderr, since stdout holds exactly one object.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from qmpsnap.cli.output import duration, json_line, to_stderr
from qmpsnap.model.printable import printable
from qmpsnap.model.units import size
from qmpsnap.run.target import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


_SOON = 2  # updates; a job that ends within the first needs no bar


def reporter(*, asked: bool, as_json: bool) -> Bar | Lines | None:
    """The progress display; None if nobody would see it, and then QEMU is not queried."""
    if asked:
        return Lines(as_json=as_json)
    return Bar() if sys.stderr.isatty() else None


class Lines:
    """Prints one line per update."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json

    def update(self, progress: Progress) -> None:
        """Show the job's progress."""
        job = progress.job
        if self._json:
            to_stderr(json_line(progress=progress.to_json()))
        else:
            to_stderr(
                ", ".join(filter(None, (f"{printable(job.id)}: {job.status}", progress_facts(progress))))
            )

    def hide(self) -> None:
        """Do nothing: printed lines stay."""

    show = hide


class Bar:
    """A bar that appears when a job takes longer than one update, and can be hidden."""

    def __init__(self) -> None:
        self._rich: RichProgress | None = None
        self._task: TaskID | None = None
        self._looks = 0
        self._hidden = False

    def update(self, progress: Progress) -> None:
        """Show the job's progress."""
        self._looks += 1
        if self._looks < _SOON or self._hidden:
            return
        if self._rich is None:
            self._draw(progress)
        assert self._rich is not None  # noqa: S101 - just drawn
        assert self._task is not None  # noqa: S101 - just drawn
        job = progress.job
        self._rich.update(
            self._task,
            total=job.length if job.length > 1 else None,
            completed=job.offset,
            status=str(job.status),
            facts=progress_facts(progress),
        )
        self._rich.refresh()

    def hide(self) -> None:
        """Hide the bar, for a question or for good."""
        self._hidden = True
        if self._rich is not None:
            self._rich.stop()
            self._rich = None

    def show(self) -> None:
        """Show the bar again with the next update."""
        self._hidden = False

    def _draw(self, progress: Progress) -> None:
        # Importing rich takes longer than many jobs: only when there is something to draw.
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import BarColumn, TextColumn  # noqa: PLC0415
        from rich.progress import Progress as RichProgress  # noqa: PLC0415

        self._rich = RichProgress(
            TextColumn("{task.description} {task.fields[status]}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
            console=Console(stderr=True),
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,
        )
        job = progress.job
        self._task = self._rich.add_task(printable(job.type), total=None, status="", facts="")
        self._rich.start()


def progress_facts(progress: Progress) -> str:
    """How much is done, how fast, and how long it takes; "" if the job does not tell."""
    job = progress.job
    if job.length <= 1:  # jobs on VM state count from 0 to 1, which says nothing
        return ""
    facts = [f"{job.fraction:.0%} of {size(job.length)}"]
    if progress.rate is not None:
        facts.append(f"{size(round(progress.rate))}/s")
    if progress.remaining is not None:
        facts.append(f"{duration(progress.remaining)} left")
    return ", ".join(facts)
