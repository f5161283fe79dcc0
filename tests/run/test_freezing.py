from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from qmpsnap.errors import CommandFailed, ConnectFailed
from qmpsnap.run import freezing
from qmpsnap.run.freezing import is_frozen, thaw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from anyio.abc import SocketStream

REFUSES: dict[str, object] = {"error": {"class": "GenericError", "desc": "no"}}


@asynccontextmanager
async def agent(path: Path, answer: dict[str, object] | None) -> AsyncIterator[str]:
    """A guest's agent that gives each command the same answer; None: it never answers."""

    async def serve(client: SocketStream) -> None:
        async with client:
            async for data in client:
                for line in data.replace(b"\xff", b"").splitlines():
                    request = json.loads(line)
                    if request["execute"] == "guest-sync-delimited":
                        reply = b"\xff" + json.dumps({"return": request["arguments"]["id"]}).encode()
                    else:
                        reply = json.dumps(answer).encode()
                    if answer is not None:
                        await client.send(reply + b"\n")

    listener = await anyio.create_unix_listener(path / "agent")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield f"{path}/agent"
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "frozen"), [({"return": "frozen"}, True), ({"return": "thawed"}, False), (REFUSES, None)]
)
async def test_an_agent_says_whether_the_guest_is_frozen(
    tmp_path: Path, answer: dict[str, object], frozen: bool | None
) -> None:
    async with agent(tmp_path, answer) as path:
        assert await is_frozen(path) is frozen


async def test_a_guest_is_thawed(tmp_path: Path) -> None:
    async with agent(tmp_path, {"return": 2}) as path:
        assert await thaw(path) == 2


async def test_an_agent_that_cannot_be_asked_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await is_frozen(f"{tmp_path}/absent") is None
    with pytest.raises(ConnectFailed, match="absent: No such file or directory"):
        await thaw(tmp_path / "absent")
    async with agent(tmp_path, REFUSES) as path:
        with pytest.raises(CommandFailed, match="the agent refuses guest-fsfreeze-thaw: no"):
            await thaw(path)
    (tmp_path / "agent").unlink()
    monkeypatch.setattr(freezing, "_ANSWER_LIMIT", 0.02)
    monkeypatch.setattr(freezing, "_THAW_LIMIT", 0.02)
    async with agent(tmp_path, None) as path:
        assert await is_frozen(path) is None
        with pytest.raises(ConnectFailed, match="does not answer"):
            await thaw(path)
