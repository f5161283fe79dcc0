"""Whoever runs this code under another library than asyncio is told so."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import pytest

from qmpsnap.entry import connect, offline
from qmpsnap.errors import Unsupported
from qmpsnap.launching import launch
from qmpsnap.run.event_loop import asyncio_loop
from qmpsnap.testing.shared.faces import Face
from tests.each import each

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal


@asynccontextmanager
async def stream():
    yield ""


async def test_loop_of_asyncio_is_the_running_one():
    assert asyncio_loop() is asyncio.get_running_loop()


@each(
    ("entered", "hint"),
    [
        (connect("/qmp"), "start it with asyncio.run(), or with anyio.run() and its backend asyncio"),
        (launch(["qemu"]), "start it with asyncio.run(), or with anyio.run() and its backend asyncio"),
        (offline(vda="a.qcow2"), "start it with asyncio.run(), or with anyio.run() and its backend asyncio"),
        (
            Face[str](cast("BlockingPortal", None), stream).here(),
            'under anyio, override the fixture anyio_backend, and return "asyncio"',
        ),
    ],
)
def test_code_that_another_library_runs_is_told_so(entered, hint):
    with pytest.raises(Unsupported, match="this needs asyncio, and another library runs it") as refused:
        entered.__aenter__().send(None)  # as trio would
    assert refused.value.hint == hint
