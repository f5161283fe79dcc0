from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import CommandFailed, Malformed
from qmpsnap.plan.commands.block import check_roots
from qmpsnap.run import performer
from qmpsnap.run import session as sessions
from qmpsnap.testing.server import Return

if TYPE_CHECKING:
    from qmpsnap.testing.server import QmpServer

pytestmark = [pytest.mark.timeout(10), pytest.mark.usefixtures("nothing_stays")]

STEP = check_roots((("vda", "/q/vda", "n1"), ("vdb", "/q/vdb", "n2")))


def row(qdev: str, node: str) -> dict[str, object]:
    return {"device": "", "qdev": qdev, "inserted": {"node-name": node, "ro": False}}


async def checked(server: QmpServer, answer: object) -> None:
    server.answer("query-block", Return(answer))
    async with sessions.connect(server.path) as session:
        await performer.check_roots(session, STEP)


async def test_check_roots_is_content_when_each_device_has_its_own(server: QmpServer) -> None:
    await checked(server, [row("/q/vda", "n1"), {"device": "cd0", "qdev": "/q/cd"}, row("/q/vdb", "n2")])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row("/q/vda", "n1"), row("/q/vdb", "old")], "vdb did not take the node 'n2', it reads 'old'"),
        ([row("/q/vda", "n1")], "vdb did not take the node 'n2', it reads None"),
        ([row("/q/vda", "n2"), row("/q/vdb", "n1")], "vda did not take the node 'n1'"),
    ],
)
async def test_check_roots_names_the_device_that_kept_another(
    server: QmpServer, rows: list[object], said: str
) -> None:
    with pytest.raises(CommandFailed) as caught:
        await checked(server, rows)
    assert said in caught.value.desc
    assert caught.value.command == "qom-set"


@pytest.mark.parametrize("answer", [None, 7, [7], {"x": 1}, [{"inserted": {"qdev": "x"}}]])
async def test_check_roots_is_malformed_when_the_answer_has_another_shape(
    server: QmpServer, answer: object
) -> None:
    with pytest.raises((Malformed, CommandFailed)) as caught:
        await checked(server, answer)
    assert isinstance(caught.value, Malformed)
