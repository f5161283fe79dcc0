"""How soon a lost link is known, by a clock that only moves when everything waits for it.

So the figures are those of the limits that are waited out, however busy the host is.
"""

from __future__ import annotations

import asyncio
import selectors
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from qemu.qmp import QMPClient

from qmpsnap.errors import LinkLost
from qmpsnap.run.session import adopt, connect
from qmpsnap.testing.server import serve

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from pathlib import Path


class Waits(selectors.DefaultSelector):
    """Waits for no time: if nothing is ready, the time has passed."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready; without a timeout it really waits."""
        ready = super().select(None if timeout is None else 0)
        if not ready and timeout is not None:
            self.passed += max(timeout, 0)
        return ready


class Loop(asyncio.SelectorEventLoop):
    """An event loop by that clock."""

    def __init__(self) -> None:
        self.waits = Waits()
        super().__init__(self.waits)
        self.set_exception_handler(lambda *_: None)  # a client that never ends looks at no error of its tasks

    def time(self) -> float:
        """Seconds that have passed."""
        return self.waits.passed


async def _told(path: str, *, adopted: bool) -> dict[str, float]:
    """Seconds from the loss of the link until each waiter is told."""
    loop = asyncio.get_running_loop()
    told: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serve(path))
        server.answer("query-block")
        server.answer("transaction")
        if adopted:
            client = QMPClient("embedder")
            await client.connect(path)
            session = await stack.enter_async_context(adopt(client))
        else:
            session = await stack.enter_async_context(connect(path))

        async def note(name: str, call: Awaitable[object]) -> None:
            with suppress(LinkLost):
                await call
            told[name] = loop.time() - began

        calls = {
            "query": session.query("query-block"),
            "change": session.change("transaction"),
            "wait": session.wait_lost(),
        }
        tasks = [asyncio.create_task(note(name, call)) for name, call in calls.items()]
        await server.wait_for("query-block")
        await server.wait_for("transaction")
        began = loop.time()
        server.hang_up()
        await asyncio.gather(*tasks)
    return told


async def never(_: QMPClient) -> None:
    """A client that does not end."""
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("ends", "adopted", "seconds"),
    [(True, False, 0.0), (True, True, 0.0), (False, False, 0.8), (False, True, 0.0)],
    ids=["ours", "the-embedder-s", "ours-that-hangs", "the-embedder-s-that-hangs"],
)
def test_lost_link_is_told_to_every_waiter_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, ends: bool, adopted: bool, seconds: float
) -> None:
    if not ends:
        monkeypatch.setattr(QMPClient, "disconnect", never)
    with asyncio.Runner(loop_factory=Loop) as runner:
        told = runner.run(_told(str(tmp_path / "s"), adopted=adopted))
    assert told == {name: pytest.approx(seconds, abs=0.01) for name in ("query", "change", "wait")}
    assert max(told.values()) < 1
