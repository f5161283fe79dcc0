"""Explains from outside why a guest does not answer: by its machine, and by its console."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import anyio

from qmpsnap.errors import GuestFailed, QmpsnapError
from qmpsnap.model.console_text import has_halted, has_panicked, last_lines
from qmpsnap.run.session import Event
from qmpsnap.testing.shell import shorten
from qmpsnap.vm import VM

__all__ = ["PRINTED", "Witness"]

PRINTED: Final = "; the console's last lines:"
"""Ends the first line of a message, if the console has printed anything."""

_LOOK_S: Final = 0.2
_REST_S: Final = 1.0  # for what a kernel prints after the first line of its panic
_ANSWER_S: Final = 5.0  # for QEMU's state; QEMU itself may hang
_PANICKED: Final = "has panicked"
# What QEMU calls the guest's end. QAPI: GUEST_PANICKED, SHUTDOWN, RESET (run-state.json).
_ENDS: Final = {"GUEST_PANICKED": _PANICKED, "SHUTDOWN": "has shut down", "RESET": "was reset"}


class Witness:
    """Explains why a guest does not answer.

    Args:
        vm: The machine, if it is known: if it is paused, the error says so, and if the guest panics, shuts
            down or is reset, the wait ends at once.
        console: Returns the last output on the guest's console; the error has its last lines, and a panic of
            Linux that it shows ends the wait.
        port_id: Id of the guest's port, if QEMU sends an event when the guest closes the port.
    """

    def __init__(
        self, vm: VM | None = None, console: Callable[[], str] | None = None, *, port_id: str = ""
    ) -> None:
        self._vm = vm
        self._console = console
        self._port_id = port_id

    @contextmanager
    def watch(
        self, script: str = "", *, doing: str = "", boots: bool = False, wanted: str = ""
    ) -> Iterator[None]:
        """End the wait of the block when the guest ends.

        Args:
            script: What the guest runs.
            doing: What it does instead, as "the boot".
            boots: Whether a reset does not matter.
            wanted: Name of the event that ends the wait without an error; "": none.

        Raises:
            GuestFailed: When it has; the message says how, and has the console's last lines.
        """
        ends: list[str] = []
        before = "" if self._console is None else self._console()

        def panicked() -> bool:
            return self._console is not None and has_panicked(self._console(), before=before)

        def end(how: str) -> None:
            ends.append(_PANICKED if how and panicked() else how)  # a kernel may reset the machine afterwards
            scope.cancel()

        def look(event: Event) -> None:
            if event.name == wanted:
                end("")
            elif not (boots and event.name == "RESET") and (how := self._end(event)):
                end(how)

        cause: GuestFailed | None = None
        try:
            with anyio.CancelScope() as scope, ExitStack() as stack:
                if self._vm is not None:
                    stack.enter_context(self._vm.events(look))
                if self._console is not None:
                    stack.enter_context(_reading(self._console, panicked, end))
                yield
                return
        except GuestFailed as error:  # that the port was closed, for example: the event says why
            if not ends or error.status is not None:
                raise
            cause = error
        if ends[0]:
            message = f"the guest {ends[0]} during {doing or repr(shorten(script))}{self._printed()}"
            raise GuestFailed(message, script=script, output=self._tail()) from cause

    async def explain(self, message: str, script: str) -> GuestFailed:
        """Return the error of a guest that does not answer, with the machine's state and the console."""
        state = ""
        if self._vm is not None:
            try:
                with anyio.fail_after(_ANSWER_S):
                    status = await self._vm.status()
            except QmpsnapError as error:
                state = f": {error.message}"
            except TimeoutError:
                state = f": QEMU has not answered for {_ANSWER_S:g} s"
            else:
                state = "" if status.running else f": the machine does not run, its state is {status.state!r}"
        failed = GuestFailed(f"{message}{state}{self._printed()}", script=script, output=self._tail())
        if "does not run" in state:
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
        return f"{PRINTED}\n{tail}" if tail else ""


@contextmanager
def _reading(
    console: Callable[[], str], panicked: Callable[[], bool], end: Callable[[str], None]
) -> Iterator[None]:
    """Look for a panic in what the console prints during the block. A log has no event for us."""
    loop, seen_at = asyncio.get_running_loop(), 0.0

    def look() -> None:
        nonlocal seen_at
        if panicked():
            seen_at = seen_at or loop.time()
            if has_halted(console()) or loop.time() >= seen_at + _REST_S:
                end(_PANICKED)
                return
        looks.append(loop.call_later(_LOOK_S, look))

    looks = [loop.call_later(_LOOK_S, look)]
    try:
        yield
    finally:
        looks[-1].cancel()
