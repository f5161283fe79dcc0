from __future__ import annotations

import asyncio
import io
import signal
from contextlib import asynccontextmanager

import anyio
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.data_structures import Size
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output.vt100 import Vt100_Output

import qmpsnap
from qmpsnap.cli.app import App
from qmpsnap.cli.shell_prompt import _Completer, converse
from qmpsnap.cli.shell_sender import Sender
from qmpsnap.cli.signals import Signals
from qmpsnap.errors import Interrupted, LinkLost
from qmpsnap.testing.server import Emit, Return, Wait, serve
from tests.cli.conftest import disks, stands
from tests.model.schemas import REPLY


@pytest.fixture
async def server(tmp_path):
    async with serve(str(tmp_path / "s")) as scripted:
        disks(scripted, vda=("/d/top", "/d/base"))
        for command in ("query-jobs", "query-block-jobs", "query-commands"):
            scripted.answer(command, Return([]))
        stands(scripted)
        scripted.answer("query-qmp-schema", Return(REPLY))
        yield scripted


@pytest.fixture
async def sender(server):
    async with qmpsnap.connect(server.path, shared_fs=False) as vm:
        with Signals(App()) as signals:
            yield await Sender.of(vm, signals, dry=False)


class Typed:
    """A shell in this process: what is typed into it, and what it has written."""

    def __init__(self, keys, written, task):
        self.keys, self.written, self.task = keys, written, task

    async def sees(self, text):
        while text not in " ".join(self.written.getvalue().split()):
            assert not self.task.done(), await self.task
            await anyio.sleep(0.01)


@asynccontextmanager
async def typing(sender):
    """Converse meanwhile; in the test itself, as pytest puts its own stdout back after a fixture."""
    written = io.StringIO()
    output = Vt100_Output(written, lambda: Size(rows=40, columns=160), enable_cpr=False)
    with create_pipe_input() as keys, create_app_session(input=keys, output=output):
        task = asyncio.create_task(converse(sender))
        yield Typed(keys, written, task)
        task.cancel()
        await asyncio.wait({task})


@pytest.fixture(autouse=True)
def _history(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


async def offered(sender, text):
    found = _Completer(sender).get_completions_async(Document(text), CompleteEvent())
    return [one async for one in found]


async def test_completer_offers_names_of_the_machine_but_none_with_control_codes(server, sender):
    disks(server, **{"vda": ("/d/top",), "vd\x1b[2Jb": ("/d/b",)})
    found = await offered(sender, "block-commit device=vd")
    assert [one.text for one in found] == ["vda-0", "vda-0-file"]


async def test_completer_offers_no_names_when_the_machine_is_slow_to_tell_them(server, sender, monkeypatch):
    monkeypatch.setattr("qmpsnap.cli.shell_prompt._PATIENCE", 0)
    assert await offered(sender, "block-commit device=vd") == []


async def test_converse_leaves_a_query_that_is_interrupted(server, sender):
    async with typing(sender) as typed:
        server.answer("query-status", Wait(asyncio.Event()))
        typed.keys.send_text("query-status\r")
        await server.wait_for("query-status")
        signal.raise_signal(signal.SIGINT)
        await typed.sees("no longer waiting for query-status, which changes nothing")
        typed.keys.send_text("\x04")
        await typed.task


async def test_converse_shows_a_late_answer_to_a_command_that_was_interrupted(server, sender):
    async with typing(sender) as typed:
        gate = asyncio.Event()
        server.answer("block-commit", Wait(gate), Return({"late": "a\x9b2Jb"}))
        typed.keys.send_text("block-commit device=vda\r")
        await server.wait_for("block-commit")
        signal.raise_signal(signal.SIGINT)
        await typed.sees("QEMU has not answered block-commit yet: whether it is done is not known.")
        gate.set()
        await typed.sees("QEMU has answered block-commit:")
        await typed.sees("a\\x9b2Jb")

        assert "\x9b" not in typed.written.getvalue()
        typed.keys.send_text("\x04")
        await typed.task


async def test_converse_says_at_its_end_what_was_not_answered(server, sender):
    async with typing(sender) as typed:
        server.answer("block-commit", Wait(asyncio.Event()))
        typed.keys.send_text("block-commit device=vda\r")
        await server.wait_for("block-commit")
        signal.raise_signal(signal.SIGINT)
        await typed.sees("QEMU has not answered block-commit yet")
        typed.keys.send_text("\x04")
        with pytest.raises(LinkLost, match="left before QEMU had answered block-commit") as caught:
            await typed.task
        assert caught.value.changed is qmpsnap.Changed.UNKNOWN


async def test_converse_ends_at_sigterm_in_the_middle_of_a_command(server, sender):
    async with typing(sender) as typed:
        server.answer("block-commit", Wait(asyncio.Event()))
        typed.keys.send_text("block-commit device=vda\r")
        await server.wait_for("block-commit")
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="stopped before QEMU had answered block-commit") as caught:
            await typed.task
        assert caught.value.changed is qmpsnap.Changed.UNKNOWN


async def test_converse_shows_events_as_the_verb_events_does(server, sender):
    async with typing(sender) as typed:
        await typed.sees("qmp>")
        server.emit(Emit("RTC_CHANGE", {"offset": 1, "qom-path": "/a\x1b[2Jb"}))
        await typed.sees("RTC_CHANGE offset=1 qom-path=/a\\x1b[2Jb")
        typed.keys.send_text("exit\r")
        await typed.task


async def test_converse_ends_with_the_link(server, sender):
    async with typing(sender) as typed:
        await typed.sees("qmp>")
        server.hang_up()
        with pytest.raises(LinkLost, match="the connection to QEMU is lost"):
            await typed.task
