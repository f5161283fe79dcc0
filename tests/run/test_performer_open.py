"""How an image is opened that is to be read with io_uring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from qmpsnap.errors import CommandFailed
from qmpsnap.plan.commands.block import blockdev_add, open_store_to_read
from qmpsnap.run import session as sessions
from qmpsnap.run.catalog import Catalog
from qmpsnap.run.host import Host
from qmpsnap.run.images import Images
from qmpsnap.run.migration import Migrations
from qmpsnap.run.performer import Performer
from qmpsnap.testing.server import Fail, Return

if TYPE_CHECKING:
    from qmpsnap.model.step import Step
    from qmpsnap.testing.server import QmpServer

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("nothing_stays")]

STORE = open_store_to_read("n", "/f")
PLAIN = {"driver": "file", "filename": "/f"}


async def opened(server: QmpServer, step: Step) -> list[object]:
    """Open it; return the options of the file in each command that was sent."""
    async with sessions.connect(server.path) as session:
        await Performer(session, Migrations(session), Host(Images(), Catalog())).perform(step)
    commands: list[Any] = [one for one in server.received if one["execute"] == "blockdev-add"]
    return [one["arguments"]["file"] for one in commands]


async def test_store_is_read_with_io_uring(server: QmpServer) -> None:
    server.answer("blockdev-add", Return({}))
    assert await opened(server, STORE) == [{**PLAIN, "aio": "io_uring"}]


@pytest.mark.parametrize(
    "refusal",
    [
        "Invalid parameter 'io_uring'",
        "Parameter 'aio' does not accept value 'io_uring'",
        "Unable to use io_uring: failed to init linux io_uring ring: Operation not permitted",
    ],
)
async def test_store_is_read_without_io_uring_where_qemu_cannot_use_it(
    server: QmpServer, refusal: str
) -> None:
    server.answer("blockdev-add", Return({}))
    server.answer_once("blockdev-add", Fail(refusal))
    assert await opened(server, STORE) == [{**PLAIN, "aio": "io_uring"}, PLAIN]


@pytest.mark.parametrize(
    ("step", "refusal"),
    [
        (STORE, "Could not open '/f': No such file or directory"),
        (blockdev_add("n", "/f"), "Could not open '/io_uring/f': No such file or directory"),
    ],
)
async def test_another_refusal_stands(server: QmpServer, step: Step, refusal: str) -> None:
    server.answer("blockdev-add", Fail(refusal))
    with pytest.raises(CommandFailed, match="No such file"):
        await opened(server, step)
    assert [one["execute"] for one in server.received].count("blockdev-add") == 1
