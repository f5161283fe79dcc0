"""The shell on a terminal: a prompt with completion, answers in colour, events between the lines."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.patch_stdout import patch_stdout
from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.text import Text

from qmpsnap.cli.events import event_text
from qmpsnap.cli.output import emit, wrap
from qmpsnap.cli.shell_history import ShellHistory, history_file
from qmpsnap.cli.shell_sender import ENDS, Sender, Unanswered, error_lines
from qmpsnap.errors import Interrupted, LinkLost, QmpsnapError
from qmpsnap.model.printable import printable
from qmpsnap.model.qmp_completion import HELP, Names, complete, names_of, wants_names
from qmpsnap.model.qmp_help import help_lines
from qmpsnap.model.qmp_line import Request
from qmpsnap.model.qmp_reads import only_reads
from qmpsnap.run.session.event import Event
from qmpsnap.vm import VM

if TYPE_CHECKING:
    from prompt_toolkit.document import Document

_PATIENCE = 0.8  # seconds that somebody who pressed Tab may wait


class _LineDropped(Exception):
    """Ctrl-C at the prompt."""


class _InputEnded(Exception):
    """Ctrl-D at the prompt."""


async def converse(sender: Sender) -> None:
    """Read commands at a prompt, send them, and show answers and events, until the end of the input.

    Raises:
        LinkLost: When the link is lost, or the shell is left before QEMU has answered a command.
        Interrupted: At SIGTERM.
    """
    history = ShellHistory(history_file())
    session: PromptSession[str] = PromptSession(
        "qmp> ",
        completer=_Completer(sender),
        complete_while_typing=False,
        history=history,
        interrupt_exception=_LineDropped,
        eof_exception=_InputEnded,
    )
    _emit(_greeting(sender))
    try:
        with patch_stdout(raw=True), sender.vm.events(_show_event):
            await _Conversation(sender, history).run(session)
    finally:
        history.close()


class _Conversation:
    """One shell at a terminal."""

    def __init__(self, sender: Sender, history: ShellHistory) -> None:
        self._sender = sender
        self._history = history
        self._unanswered: dict[asyncio.Future[object], str] = {}
        self._console = Console(file=sys.stdout, soft_wrap=True)

    async def run(self, session: PromptSession[str]) -> None:
        """Send one line after the other."""
        while True:
            try:
                line = await self._sender.unless_lost(session.prompt_async(handle_sigint=False))
                if not await self._do(line):
                    break
            except _LineDropped:
                continue
            except _InputEnded:
                break
            except (LinkLost, Interrupted):
                raise
            except QmpsnapError as error:
                _emit(*error_lines(error))
        if self._unanswered:
            names = ", ".join(self._unanswered.values())
            raise LinkLost(
                f"left before QEMU had answered {names}: whether it was done is not known",
                step=names,
                hint="qmpsnap chain and qmpsnap jobs show the outcome",
            )

    async def _do(self, line: str) -> bool:
        """Do what a line says; False when it ends the shell."""
        word, _, rest = line.strip().partition(" ")
        if word == HELP:
            _emit(*help_lines(rest, self._sender.schema))
            return True
        request = self._sender.read(line)
        if request is ENDS:
            return False
        if request is not None:
            self._history.remember(line, request)
            await self._send(request)
        return True

    async def _send(self, request: Request) -> None:
        try:
            self._show(await self._sender.start(request))
        except Unanswered as unanswered:
            self._leave(request, unanswered.call)
            if self._sender.signals.terminated:
                raise Interrupted(
                    f"stopped before QEMU had answered {request.command}", changed=self._sender.changed
                ) from None
            self._sender.signals.forget()

    def _leave(self, request: Request, call: asyncio.Future[object]) -> None:
        """Stop waiting for an answer; that to a command that may change something is shown when it comes."""
        if only_reads(request.command, request.arguments):
            call.cancel()
            emit(f"no longer waiting for {request.command}, which changes nothing")
            return
        self._unanswered[call] = request.command
        call.add_done_callback(self._answered)
        emit(
            f"QEMU has not answered {request.command} yet: whether it is done is not known. "
            "The answer is shown when it comes"
        )

    def _answered(self, call: asyncio.Future[object]) -> None:
        command = self._unanswered.pop(call)
        if call.cancelled():
            return
        error = call.exception()
        if error is None:
            emit(f"QEMU has answered {command}:")
            self._show(call.result())
        else:
            emit(f"QEMU has answered {command}: {error}")

    def _show(self, answer: object) -> None:
        """Print an answer: the human monitor's as its lines, any other as JSON in colour."""
        if isinstance(answer, str):
            emit(*answer.splitlines())
            return
        lines = json.dumps(answer, indent=2, ensure_ascii=False).split("\n")
        self._console.print(JSONHighlighter()(Text("\n".join(map(printable, lines)))))


class _Completer(Completer):
    """Completes from the schema, and with the names that the machine has at that moment."""

    def __init__(self, sender: Sender) -> None:
        self._schema = sender.schema
        self._vm = sender.vm

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> list[Completion]:
        """Complete without names; prompt_toolkit calls the other one."""
        del complete_event
        return self._offered(document.text_before_cursor, Names())

    async def get_completions_async(
        self, document: Document, complete_event: CompleteEvent
    ) -> AsyncGenerator[Completion, None]:
        """Complete the line before the cursor."""
        del complete_event
        text = document.text_before_cursor
        names = await _names(self._vm) if wants_names(text) else Names()
        for completion in self._offered(text, names):
            yield completion

    def _offered(self, text: str, names: Names) -> list[Completion]:
        found = complete(text, self._schema, names)
        back = found.start - len(text)
        return [
            Completion(candidate.text, back, display_meta=printable(candidate.note))
            for candidate in found.candidates
        ]


def _emit(*lines: str) -> None:
    """Print lines, wrapped between words."""
    emit(*(part for line in lines for part in wrap(line)))


def _greeting(sender: Sender) -> str:
    what = (
        "only commands that are known to change nothing are sent"
        if sender.dry
        else "commands are sent as they are, and nothing is checked or rolled back"
    )
    return f"{sender.vm.name}: {what}; Tab completes, help COMMAND explains, Ctrl-D ends"


async def _names(vm: VM) -> Names:
    """The names of the machine; none when it does not answer at once."""
    with suppress(QmpsnapError), anyio.move_on_after(_PATIENCE):
        return names_of(await vm.graph(), await vm.jobs.list())
    return Names()


def _show_event(event: Event) -> None:
    emit(event_text(event))
