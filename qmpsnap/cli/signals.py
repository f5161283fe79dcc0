"""Ctrl-C and SIGTERM while a command runs.

Before an operation has started, either ends the command. While it runs:
  first Ctrl-C on a terminal   asks: detach, cancel or continue; the operation keeps running meanwhile
  first one elsewhere, SIGTERM cancel and roll back
  second one                   detach: the job's id is printed, the job keeps running

A job on VM state cannot be left alone: QEMU completes it, but the rest of the operation, such as resuming the
guest, needs a client. There is no detaching then; after the second signal the id is printed with the command
that finishes the operation.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, Self

import anyio

from qmpsnap.cli.app import App
from qmpsnap.cli.output import to_stderr
from qmpsnap.cli.progress import Bar, Lines
from qmpsnap.cli.report import report
from qmpsnap.errors import Changed, Detached, Interrupted, LinkLost, QmpsnapError
from qmpsnap.model.printable import printable
from qmpsnap.plan.intent import Checkpoint
from qmpsnap.plan.plan import Plan

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AFTER_CANCEL = 30.0  # seconds; then the outcome is unknown
_AFTER_DETACH = 1.0  # seconds; an operation that no longer waits for its job cannot be left cleanly


class Signals:
    """Handles SIGINT and SIGTERM; a context manager, to be used inside the event loop.

    Attributes:
        cancel: Set to stop the operation (for `Hooks`).
        detach: Set to leave its job running (for `Hooks`).
        terminated: Whether SIGTERM has arrived.
    """

    def __init__(self, app: App) -> None:
        self.cancel = anyio.Event()
        self.detach = anyio.Event()
        self.terminated = False
        self._app = app
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._interrupts = 0
        self._running = False  # an operation is running
        self._ended = False  # it has ended: there is nothing left to interrupt
        self._undone = False  # what was begun is undone when the task is cancelled
        self._asking = False
        self._end: anyio.Event | None = None
        self._plan: Plan | None = None
        self._name = ""
        self._bar: Bar | Lines | None = None

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._loop.add_signal_handler(number, self._on_signal, number)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop_asking()
        for number in _SIGNALS:
            self._loop.remove_signal_handler(number)

    @property
    def interrupted(self) -> bool:
        """Whether a signal has arrived."""
        return self._interrupts > 0

    @contextmanager
    def operation(
        self, plan: Plan | None, bar: Bar | Lines | None = None, *, name: str = ""
    ) -> Iterator[None]:
        """Handle signals for an operation, which runs while the block lasts.

        Args:
            plan: Its plan; None for a command that has none.
            bar: Its progress display, which is hidden during the question.
            name: Its id; "" for the plan's.
        """
        self._running, self._plan, self._bar = True, plan, bar
        self._name = name or (plan.operation_id if plan is not None else "")
        try:
            yield
        finally:
            self._ended = self._app.ended = True
            if self._asking:
                self._stop_asking()
                to_stderr("", "the job has ended meanwhile")
            if bar is not None:
                bar.hide()

    @contextmanager
    def ends(self) -> Iterator[anyio.Event]:
        """Yield an event that the first signal sets; until then the command does not end by itself."""
        self._end = anyio.Event()
        try:
            yield self._end
        finally:
            self._end = None

    def forget(self) -> None:
        """Go on after an interrupt: the next one is a first one again."""
        self._interrupts = 0

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Handle signals for work that undoes what it has begun when it is cancelled, within a time limit."""
        self._undone = True
        try:
            yield
        except asyncio.CancelledError:
            if not self.interrupted:
                raise
            raise Interrupted("stopped as requested, and rolled back") from None
        finally:
            self._app.ended = True

    @property
    def _job_id(self) -> str:
        return self._plan.job_id if self._plan is not None else ""

    @property
    def _can_be_left(self) -> bool:
        # The daemon that has the images of a machine that is off ends with us.
        return self._plan is not None and self._plan.can_be_left and not self._app.images

    @property
    def _takes_in_background(self) -> bool:
        intent = self._plan.intent if self._plan is not None else None
        return isinstance(intent, Checkpoint) and intent.mode == "background"

    def _on_signal(self, number: signal.Signals) -> None:
        if self._ended:
            return
        self._interrupts += 1
        self.terminated |= number is signal.SIGTERM
        if self._end is not None:
            self._end.set()
        elif not self._running:
            if self._interrupts > 1 and self._undone:
                to_stderr("what was begun is being rolled back: please wait")
                return
            if self._interrupts > 1 or self._task is None:
                self._exit(Interrupted("stopped before anything was changed"))
            self._task.cancel()
        elif self._interrupts > 1 and not (self._asking and number is signal.SIGTERM):
            self._stop_asking()
            self._detach()
        elif number is signal.SIGINT and self._job_id and sys.stdin.isatty() and sys.stderr.isatty():
            self._ask()
        else:
            self._stop_asking()
            self._cancel()

    def _cancel(self) -> None:
        if self.cancel.is_set():
            return
        if self._can_be_left:
            to_stderr(f"stopping and rolling back; interrupt again to leave job {self._job_id} running")
        elif self._takes_in_background:
            to_stderr("stopping: what was begun is rolled back, or else finished")
        elif self._job_id:
            to_stderr(
                "stopping: what was begun is rolled back, or else finished; interrupt again to leave it"
            )
        else:
            to_stderr("stopping and rolling back")
        self.cancel.set()
        self._loop.call_later(_AFTER_CANCEL, self._exit_unanswered)

    def _detach(self) -> None:
        if not self._job_id:
            to_stderr("there is no job to leave running; waiting for QEMU's answer")
            return
        (self.detach if self._can_be_left else self.cancel).set()
        self._loop.call_later(_AFTER_DETACH, self._exit_detached)

    def _exit_detached(self) -> None:
        """Exit at once: the operation was no longer waiting for its job. A later client finds the record."""
        assert self._plan is not None  # noqa: S101 - there is a job
        if self._app.images:
            self._exit(stopped(self._name))
        self._exit(detached(self._plan, self._name, cancelled=self.cancel.is_set()))

    def _exit_unanswered(self) -> None:
        self._exit(no_answer(self._plan, self._name))

    def _exit(self, error: QmpsnapError) -> NoReturn:
        """End the process now, with what is known."""
        if self._bar is not None:
            self._bar.hide()
        code = report(self._app, error)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)

    # -- the question ------------------------------------------------------------------------------

    def _ask(self) -> None:
        if self._bar is not None:
            self._bar.hide()
        self._asking = True
        # The terminal delivers whole lines, so reading never blocks the loop.
        self._loop.add_reader(sys.stdin.fileno(), self._on_answer)
        to_stderr("", f"job {printable(self._job_id)} keeps running meanwhile")
        self._prompt()

    def _prompt(self) -> None:
        sys.stderr.write(f"{'[d]etach, ' if self._can_be_left else ''}[c]ancel, c[o]ntinue? ")
        sys.stderr.flush()

    def _on_answer(self) -> None:
        try:
            answer = os.read(sys.stdin.fileno(), 4096).decode(errors="replace").strip().lower()
        except OSError:
            answer = "o"
        match answer[:1]:
            case "d" if self._can_be_left:
                self._stop_asking()
                self._detach()
            case "c":
                self._stop_asking()
                self._cancel()
            case "o" | "":
                self._stop_asking()
                self._interrupts = 0
                to_stderr("continuing")
                if self._bar is not None:
                    self._bar.show()
            case _:
                self._prompt()

    def _stop_asking(self) -> None:
        if self._asking:
            self._asking = False
            self._loop.remove_reader(sys.stdin.fileno())


def detached(plan: Plan, name: str, *, cancelled: bool) -> Detached:
    """The error for a process that ends in the middle of an operation with a job.

    Args:
        plan: Its plan.
        name: Its id.
        cancelled: Whether a cancellation was requested before.
    """
    if plan.can_be_left:
        state = "it was being cancelled" if cancelled else "it was about to finish"
        return Detached(
            f"left job {plan.job_id}; {state}",
            job_id=plan.job_id,
            hint=f"qmpsnap job wait {plan.job_id} shows the outcome and finishes the operation",
        )
    paused = ", and the guest may stay paused until then" if plan.halts else ""
    error = Detached(
        f"stopped in the middle of {name}: QEMU completes the job, but the operation has to be "
        f"finished{paused}",
        job_id=name,
        hint=_ending(plan, name),
    )
    error.changed = Changed.UNKNOWN
    return error


def stopped(name: str) -> Detached:
    """The error for a process that ends in the middle of an operation on images, with their daemon."""
    error = Detached(
        f"stopped in the middle of {name}",
        job_id=name,
        hint=f"to finish or roll back the operation, give the same images to: qmpsnap job wait {name}",
    )
    error.changed = Changed.UNKNOWN
    return error


def no_answer(plan: Plan | None, name: str) -> LinkLost:
    """The error when QEMU has not answered for so long that the process ends; arguments as for `detached`."""
    paused = "; the guest may be paused" if plan is not None and plan.halts else ""
    end = f"; {_ending(plan, name)}" if plan is not None and name else ""
    return LinkLost(
        f"QEMU has not answered within {_AFTER_CANCEL:g} s after the interrupt{paused}",
        changed=Changed.UNKNOWN,
        hint=f"when it answers again, qmpsnap chain and qmpsnap jobs show the outcome{end}",
    )


def _ending(plan: Plan, name: str) -> str:
    # A save leaves it paused.
    runs = ", and resumes the guest if it was running" if plan.halts and plan.op != "save" else ""
    return f"qmpsnap job wait {name} finishes it{runs}"
