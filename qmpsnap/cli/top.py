"""`qmpsnap top`: a view of the machine that stays open and follows it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
from contextlib import ExitStack, redirect_stderr
from io import StringIO
from typing import TYPE_CHECKING, Any, Self

import anyio
import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.machine import refuse_off
from qmpsnap.cli.output import emit, json_line, to_stderr
from qmpsnap.cli.reader import reader_gone
from qmpsnap.cli.report import INTERRUPTED
from qmpsnap.cli.runner import current_app, run
from qmpsnap.cli.signals import Signals
from qmpsnap.cli.top_view import block, event_line, screen
from qmpsnap.errors import Interrupted
from qmpsnap.vm import VM
from qmpsnap.watching import Overview

if TYPE_CHECKING:
    from rich.live import Live

_REDRAWN = (signal.SIGWINCH, signal.SIGCONT)


@verb(
    "top",
    example="qmpsnap -s /run/vm1/qmp.sock top",
    short_help="Follow the guest, its disks, jobs and events.",
)
@click.option("--once", is_flag=True, help="Print the present state once, and exit.")
def top(*, once: bool) -> None:
    """Follow the guest's run state, the chains, the jobs of all clients and the last events.

    On a terminal the view is redrawn when something happens, and once a second while a job runs; q or Ctrl-C
    ends it. Elsewhere lines are printed for each change. When QEMU ends, the last state stays on the terminal
    (exit 5).
    """
    app = current_app()
    refuse_off(app, "top")

    async def work(vm: VM, _: Signals) -> None:
        with anyio.CancelScope() as scope, reader_gone(scope.cancel):
            async with vm.watch() as overviews:
                with _display(vm.name, scope, once=once) as display:
                    async for overview in overviews:
                        display.show(overview)
                        if once:
                            return

    try:
        run(work)
    except Interrupted:
        click.get_current_context().exit(INTERRUPTED)  # the usual end: nothing to report


def _display(name: str, scope: anyio.CancelScope, *, once: bool) -> Screen | Lines:
    """The display for what stdout is; it cancels the scope when nobody looks any more."""
    if not current_app().json and not once and sys.stdout is not None and sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415 - for a terminal alone

        if not (console := Console()).is_dumb_terminal:
            return Screen(console, name, scope)
    return Lines(name, scope, as_json=current_app().json, once=once)


class Lines:
    """Prints lines for each change: the state if it has changed, and the new events.

    Args:
        name: The machine's name.
        scope: Is cancelled when nobody reads any more.
        as_json: Whether each overview is a JSON object on one line.
        once: Whether one overview is shown; it has the progress of the jobs.
    """

    def __init__(self, name: str, scope: anyio.CancelScope, *, as_json: bool, once: bool) -> None:
        self._name = name
        self._scope = scope
        self._json = as_json
        self._once = once
        self._heard = 0
        self._block: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return

    def show(self, overview: Overview) -> None:
        """Print what has changed."""
        if self._json:
            lines = [json_line(**overview.to_json(heard=self._heard))]
        else:
            now = block(overview, self._name, progress=self._once)
            lines = [f"event {event_line(event)}" for event in overview.events_since(self._heard)]
            if now != self._block:
                lines += [*now, ""]
            self._block = now
        self._heard = overview.heard
        if lines and not emit(*lines):
            self._scope.cancel()


class Screen:
    """Fills the terminal, and leaves the last state on it at the end.

    Args:
        console: The terminal.
        name: The machine's name.
        scope: Is cancelled when q is typed.
    """

    def __init__(self, console: Any, name: str, scope: anyio.CancelScope) -> None:  # noqa: ANN401 - rich is not loaded
        self._console = console
        self._name = name
        self._scope = scope
        self._loop = asyncio.get_running_loop()
        self._logged = StringIO()
        self._held = ExitStack()
        self._overview: Overview | None = None
        self._live: Live | None = None
        self._keyboard: list[Any] | None = None

    def __enter__(self) -> Self:
        if sys.stderr is not None and sys.stderr.isatty():  # what is logged would be drawn into the view
            self._held.enter_context(redirect_stderr(self._logged))
        for number in _REDRAWN:
            self._loop.add_signal_handler(number, self._draw)
        self._loop.add_signal_handler(signal.SIGTSTP, self._suspend)
        self._open()
        return self

    def __exit__(self, *exc: object) -> None:
        for number in (*_REDRAWN, signal.SIGTSTP):
            self._loop.remove_signal_handler(number)
        self._close()
        if self._overview is not None:
            emit(*(line.plain for line in self._lines(self._overview)))
        self._held.close()
        to_stderr(*self._logged.getvalue().splitlines())

    def show(self, overview: Overview) -> None:
        """Show it until the next one."""
        self._overview = overview
        self._draw()

    def _draw(self) -> None:
        from rich.console import Group  # noqa: PLC0415 - loaded by now

        if self._live is not None and self._overview is not None:
            self._live.update(Group(*self._lines(self._overview)), refresh=True)

    def _lines(self, overview: Overview) -> list[Any]:
        width, height = self._console.size
        return screen(
            overview, self._name, width=width, height=height, ascii_only=self._console.options.ascii_only
        )

    def _open(self) -> None:
        from rich.live import Live  # noqa: PLC0415 - for a terminal alone

        self._live = Live(
            console=self._console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()
        if sys.stdin is not None and sys.stdin.isatty():
            self._keyboard = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin, termios.TCSANOW)
            self._loop.add_reader(sys.stdin.fileno(), self._typed)

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._keyboard is not None:
            self._loop.remove_reader(sys.stdin.fileno())
            termios.tcsetattr(sys.stdin, termios.TCSANOW, self._keyboard)
            self._keyboard = None

    def _typed(self) -> None:
        try:
            typed = os.read(sys.stdin.fileno(), 1024)
        except OSError:  # the terminal is gone
            typed = b""
        if not typed or b"q" in typed:
            self._scope.cancel()

    def _suspend(self) -> None:
        """Give the terminal back to the shell until we are resumed."""
        self._close()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._open()
        self._draw()
