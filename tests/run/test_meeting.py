from __future__ import annotations

import anyio
import pytest

from qmpsnap.model.step import MoveRoot, Overlay, PutOverlays, Root, Step
from qmpsnap.plan.commands.block import snapshot_sync
from qmpsnap.plan.commands.state import cont, snapshot_save, stop, stop_for_load, system_reset
from qmpsnap.run.meeting import Meeting, Point, point_of

TAKE = snapshot_sync((Overlay("vda", "n", "m", "/m", "/n", "us"),))


@pytest.mark.parametrize(
    ("step", "point"),
    [
        (stop(), Point.PAUSE),
        (stop_for_load("x"), Point.PAUSE),
        (TAKE, Point.MOVE),
        (
            Step(on="qmp", command="qom-set", effect=MoveRoot(Root("vda", "m", "/m", "qcow2", None, ()))),
            Point.MOVE,
        ),
        (system_reset(), Point.MOVE),
        (cont(), Point.RESUME),
        (snapshot_save("j", "t", (("", "n"),)), None),
        (Step(on="host", command="create-overlay"), None),
    ],
    ids=str,
)
def test_point_of_tells_at_which_steps_others_are_waited_for(step, point):
    assert point_of(step) is point
    assert isinstance(TAKE.effect, PutOverlays)


async def test_before_waits_until_every_machine_has_come_as_far():
    meeting, passed = Meeting("ab"), []

    async def one(name):
        for step in (stop(), TAKE, cont()):
            await meeting.before(name, step)
            passed.append((name, step.command))

    async with anyio.create_task_group() as group:
        group.start_soon(one, "a")
        await anyio.wait_all_tasks_blocked()
        assert passed == []
        group.start_soon(one, "b")
    assert [command for _, command in passed] == ["stop"] * 2 + ["transaction"] * 2 + ["cont"] * 2


async def test_before_waits_for_nobody_who_has_ended_or_once_it_is_called_off():
    meeting = Meeting("ab")
    meeting.reach("b")
    await meeting.before("a", cont())
    meeting = Meeting("ab")
    meeting.call_off()
    await meeting.before("a", stop())
    assert meeting.off.is_set()
