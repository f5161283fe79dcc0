"""Explains from outside why a guest does not answer: by its machine, and by its console."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import anyio

from qmpsnap.errors import GuestFailed, QmpsnapError
from qmpsnap.run.session import Event
from qmpsnap.testing.shell import shorten
from qmpsnap.vm import VM

__all__ = ["Witness", "last_lines", "without_codes"]

_LINES: Final = 15
_CODES: Final = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])|[\x00\x07\x0e\x0f]"
)
# What QEMU calls the guest's end. QAPI: GUEST_PANICKED, SHUTDOWN, RESET (run-state.json).
_ENDS: Final = {"GUEST_PANICKED": "has panicked", "SHUTDOWN": "has shut down"}


class Witness:
    """Explains why a guest does not answer.

    Args:
        vm: The machine, if it is known: if it is paused, the error says so, and if the guest panics or shuts
            down, the wait ends at once.
        console: Returns the last output on the guest's console; the error has its last lines.
        port_id: Id of the guest's port, if QEMU sends an event when the guest closes the port.
    """

    def __init__(
        self, vm: VM | None = None, console: Callable[[], str] | None = None, *, port_id: str = ""
    ) -> None:
        self._vm = vm
        self._console = console
        self._port_id = port_id

    @contextmanager
    def watch(self, script: str) -> Iterator[None]:
        """End the wait of the block when the guest ends.

        Raises:
            GuestFailed: When it has; the message says how, and has the console's last lines.
        """
        if self._vm is None:
            yield
            return
        ends: list[str] = []

        def look(event: Event) -> None:
            if how := self._end(event):
                ends.append(how)
                scope.cancel()

        with anyio.CancelScope() as scope, self._vm.events(look):
            yield
        if scope.cancelled_caught:
            message = f"the guest {ends[0]} during {shorten(script)!r}{self._printed()}"
            raise GuestFailed(message, script=script, output=self._tail())

    async def explain(self, message: str, script: str) -> GuestFailed:
        """Return the error of a guest that does not answer, with the machine's state and the console."""
        state = ""
        if self._vm is not None:
            try:
                status = await self._vm.status()
            except QmpsnapError as error:
                state = f": {error.message}"
            else:
                state = "" if status.running else f": the machine does not run, its state is {status.state!r}"
        failed = GuestFailed(f"{message}{state}{self._printed()}", script=script, output=self._tail())
        if state:
            failed.hint = "qmpsnap cont resumes a paused machine"
        return failed

    def _end(self, event: Event) -> str:
        if event.name == "VSERPORT_CHANGE" and self._port_id:
            closed = event.data.get("id") == self._port_id and event.data.get("open") is False
            return "has closed its port" if closed else ""
        return _ENDS.get(event.name, "")

    def _tail(self) -> str:
        return "" if self._console is None else last_lines(self._console())

    def _printed(self) -> str:
        tail = self._tail()
        return f"; the console's last lines:\n{tail}" if tail else ""


def last_lines(text: str) -> str:
    """Return the last lines of a console's output, without control codes."""
    lines = [line.rstrip() for line in without_codes(text).splitlines()]
    return "\n".join([line for line in lines if line][-_LINES:])


def without_codes(text: str) -> str:
    """Return a console's text without the codes that move the cursor and colour the text; lines end in LF."""
    return _CODES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
