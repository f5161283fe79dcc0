"""Sends the lines of a shell: what is read, what is refused, and what an interrupt in the middle means."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

import anyio

from qmpsnap.cli.output import to_stderr
from qmpsnap.cli.signals import Signals
from qmpsnap.errors import BadArgument, Changed, Interrupted, LinkLost, QmpsnapError, Refused, TargetError
from qmpsnap.model.printable import shortened
from qmpsnap.model.qapi_schema import Schema
from qmpsnap.model.qmp_line import Request, read_line
from qmpsnap.model.qmp_reads import only_reads
from qmpsnap.vm import VM

T = TypeVar("T")

ENDS = Request("exit")
"""What `Sender.read` gives for the line that ends the shell; QEMU has no such command."""

_QUITS = "quit"


class Unanswered(Exception):
    """An interrupt came before QEMU's answer.

    Attributes:
        call: The call, which goes on.
    """

    def __init__(self, call: asyncio.Future[object]) -> None:
        super().__init__()
        self.call = call


class Sender:
    """Sends commands to one machine.

    Attributes:
        vm: The machine.
        schema: What its QEMU speaks; empty if it does not say.
        signals: Ctrl-C and SIGTERM.
        dry: Whether only commands are sent that are known to change nothing.
        changed: Whether anything may have been changed: UNKNOWN once such a command was sent.
    """

    def __init__(self, vm: VM, schema: Schema, signals: Signals, *, dry: bool) -> None:
        self.vm = vm
        self.schema = schema
        self.signals = signals
        self.dry = dry
        self.changed = Changed.NO
        self._quits = False
        self._lost = asyncio.ensure_future(vm.wait_lost())

    @classmethod
    async def of(cls, vm: VM, signals: Signals, *, dry: bool) -> Self:
        """Ask the machine for its schema; without one, nothing is completed, and any command is sent."""
        try:
            schema = await vm.schema()
        except LinkLost:
            raise
        except TargetError as error:
            to_stderr(f"qmpsnap: QEMU does not give its schema, so nothing is completed: {error.message}")
            schema = Schema()
        return cls(vm, schema, signals, dry=dry)

    def read(self, line: str) -> Request | None:
        """Read a line; None if there is nothing to send, `ENDS` at the end.

        Raises:
            BadArgument: When the line cannot be sent.
            Refused: When it is `quit`, or may change something and --dry was given.
        """
        typed = line.strip()
        if typed == "exit":
            return ENDS
        if typed == _QUITS:
            raise BadArgument(
                "quit ends QEMU, and not this shell",
                parameter="line",
                value=typed,
                hint='exit or Ctrl-D ends the shell; {"execute": "quit"} ends QEMU',
            )
        request = read_line(line, self.schema)
        if request is not None and self.dry and not only_reads(request.command, request.arguments):
            sent = {"execute": request.command, "arguments": dict(request.arguments)}
            raise Refused(
                f"{request.command} may change something, and --dry was given",
                hint=f"without --dry this is sent: {json.dumps(sent, ensure_ascii=False)}",
            )
        return request

    async def send(self, request: Request) -> object:
        """Send a command; return QEMU's answer.

        Raises:
            CommandFailed, LinkLost, Malformed: As `VM.execute`.
            Interrupted: When an interrupt came before the answer.
        """
        try:
            return await self.start(request)
        except Unanswered as unanswered:
            unanswered.call.add_done_callback(_retrieve)
            if only_reads(request.command, request.arguments):
                raise Interrupted(
                    f"interrupted before QEMU had answered {request.command}", changed=self.changed
                ) from None
            raise Interrupted(
                f"interrupted before QEMU had answered {request.command}: whether it was done is not known",
                changed=Changed.UNKNOWN,
            ) from None

    async def start(self, request: Request) -> object:
        """Send a command; return QEMU's answer.

        Raises:
            CommandFailed, LinkLost, Malformed: As `VM.execute`.
            Unanswered: When an interrupt came before the answer; the call goes on.
        """
        if not only_reads(request.command, request.arguments):
            self.changed = Changed.UNKNOWN
        call = asyncio.ensure_future(self.vm.execute(request.command, request.arguments))
        with self.signals.ends() as end:
            interrupted = asyncio.ensure_future(end.wait())
            try:
                await asyncio.wait({call, interrupted}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                interrupted.cancel()
        if not call.done():
            raise Unanswered(call)
        answer = call.result()
        self._quits |= request.command == _QUITS
        return answer

    async def unless_lost(self, work: Coroutine[Any, Any, T]) -> T:
        """Do some work, unless the link is lost before it ends.

        Raises:
            LinkLost: When the link is lost.
            Ended: When QEMU has ended because it was asked to.
        """
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self._lost}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            if not task.done():
                task.cancel()
                with anyio.CancelScope(shield=True):
                    await asyncio.wait({task})  # the prompt gives the terminal back
        if self._quits:
            raise Ended
        raise LinkLost(
            f"the connection to QEMU is lost: {self._lost.result()}",
            step="shell",
            changed=self.changed,
            hint="no command was in flight; what was sent before is not taken back",
        )


class Ended(Exception):
    """QEMU has ended, because it was asked to."""


def _retrieve(call: asyncio.Future[object]) -> None:
    """Look at how a call ended that nobody waits for any more."""
    if not call.cancelled():
        call.exception()


def error_lines(error: QmpsnapError) -> list[str]:
    """An error as the shell shows it: QEMU's reason, and what to do."""
    lines = [error.message, *([f"  next: {error.hint}"] if error.hint else [])]
    return [shortened(line) for line in lines]
