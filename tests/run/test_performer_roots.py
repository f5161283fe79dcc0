from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.errors import CommandFailed, Malformed, StillNeeded
from qmpsnap.plan.commands.block import check_active, check_roots
from qmpsnap.run import performer
from qmpsnap.run import session as sessions
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.server import Return

if TYPE_CHECKING:
    from qmpsnap.testing.server import QmpServer

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("nothing_stays")]

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


DISKS = graph(chain("base <- s1*"), chain("data*", name="vdb")).disks
ACTIVE = check_active(
    [replace(DISKS["vda"], qdev="/q/vda"), replace(DISKS["vdb"], root="thr", qdev="/q/vdb")]
)


def stats(qdev: str, *nodes: str) -> dict[str, object]:
    below: dict[str, object] = {}
    for node in reversed(nodes):
        below = {"node-name": node, **({"backing": below} if below else {})}
    return {"device": "", "qdev": qdev, **below}


async def check(server: QmpServer, *rows: object) -> None:
    server.answer("query-blockstats", Return(list(rows)))
    async with sessions.connect(server.path) as session:
        await performer.check_active(session, ACTIVE)


async def test_check_active_is_content_when_each_disk_writes_to_its_layer(server: QmpServer) -> None:
    vdb = stats("/q/vdb", "thr", "vdb-data")
    await check(server, stats("/q/cd"), vdb, stats("/q/vda", "vda-s1", "vda-base"))


@pytest.mark.parametrize(
    ("rows", "disk", "by"),
    [
        (
            [stats("/q/vda", "x", "vda-s1", "vda-base"), stats("/q/vdb", "thr", "vdb-data")],
            "vda no longer writes to the node 'vda-s1'",
            ("x",),
        ),
        ([stats("/q/vda", "vda-base"), stats("/q/vdb", "thr", "vdb-data")], "vda no longer", ("vda-base",)),
        (
            [stats("/q/vda", "vda-s1"), stats("/q/vdb", "thr", "x", "vdb-data")],
            "vdb no longer writes to the node 'vdb-data'",
            ("x",),
        ),
        ([stats("/q/vda", "vda-s1")], "vdb no longer", ()),
    ],
    ids=["covered", "moved", "covered under a throttle", "unplugged"],
)
async def test_check_active_names_what_covers_a_layer(
    server: QmpServer, rows: list[object], disk: str, by: tuple[str, ...]
) -> None:
    with pytest.raises(StillNeeded, match=disk) as caught:
        await check(server, *rows)
    assert caught.value.by == by
