from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.errors import Busy, NotFound, StillNeeded
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.interrupted import is_of_fork
from qmpsnap.model.record import IntentRecord, moment_of
from qmpsnap.model.step import Stage
from qmpsnap.plan.commands.records import finish_record
from qmpsnap.plan.intent import Checkpoint, FileMode
from qmpsnap.run.outcome import Done
from tests.each import each
from tests.plan.scenes import planned
from tests.run.operations import vm_of
from tests.run.states import MACHINE, fake_of

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.testing.fake import FakeTarget

NAME = "fork-0a1b2c3d"
MODES: list[FileMode] = ["background", "in-place"]


def left(mode: FileMode = "background", *, moved: bool = True, recorded: bool = True) -> FakeTarget:
    """A machine whose fork was killed while it took its checkpoint, or when it had taken it.

    Args:
        mode: The checkpoint's mode.
        moved: Whether the guest writes to the overlays.
        recorded: Whether the record is that of a moment by then.
    """
    plan = planned(Checkpoint(NAME, mode, fork=True), MACHINE)
    assert plan.record is not None
    assert plan.after is not None
    fake = fake_of(full(plan.after) if moved else MACHINE)
    record = replace(plan.record, directory=plan.steps[0].arguments["directory"])
    fake.files.records.append(moment_of(record) if recorded else record)
    return fake


def full(of: Graph) -> Graph:
    """The same with a full active layer: a stream into it would copy less than its commit."""
    disks = {
        name: replace(disk, layers=(replace(disk.active, allocated=1 << 40), *disk.layers[1:]))
        for name, disk in of.disks.items()
    }
    return replace(of, disks=Frozen(disks))


@each("mode", MODES)
@each(("moved", "recorded"), [(True, True), (True, False), (False, False)])
async def test_fork_whose_client_is_gone_is_shown_and_taken_back(
    mode: FileMode, *, moved: bool, recorded: bool
) -> None:
    fake = left(mode, moved=moved, recorded=recorded)
    vm = vm_of(fake)
    (shown,) = await vm.jobs.interrupted()
    assert (is_of_fork(shown.id), shown.name, shown.live, shown.permanent) == (True, NAME, False, False)
    done = await vm.jobs.wait(shown.id)
    assert isinstance(done, Done)
    assert done.ended == ("finished" if recorded else "rolled-back")
    assert done.changed is moved
    assert (await vm.graph()).chains() == MACHINE.chains()  # also where a stream would copy less
    assert ((await vm.jobs.interrupted()), (await vm.moments()).moments, fake.files.records) == ((), (), [])
    assert "remove-scratch" in [step.command for step in fake.performed]


async def test_fork_whose_client_is_at_work_is_neither_shown_nor_taken_back() -> None:
    fake = left()
    vm = vm_of(fake)
    (record,) = fake.files.records
    fake.files.readers = frozenset({("/images/base.qcow2", NAME)})  # one of the layers is marked
    assert await vm.jobs.interrupted() == ()
    with pytest.raises(Busy, match="is still at work"):
        await vm.jobs.plan(record.id)
    fake.files.readers = frozenset({("/images/base.qcow2", "another")})
    assert [one.id for one in await vm.jobs.interrupted()] == [record.id]


async def test_fork_whose_layer_something_else_needs_is_not_taken_back_in_name_only() -> None:
    fake = left()
    fake.files.put("/images/other.qcow2", backing="/images/s1.qcow2")
    vm = vm_of(fake)
    (shown,) = await vm.jobs.interrupted()
    with pytest.raises(StillNeeded, match=r"/images/other\.qcow2 is based on it"):
        await vm.jobs.plan(shown.id)


async def test_fork_is_not_shown_while_another_operation_on_its_chain_has_to_be_ended_first() -> None:
    fake = left()
    vm = vm_of(fake)
    active = fake.state.disks["vda"].files
    place, stream = "/images/base.qmpsnap", "qmpsnap-stream-keep-00000001"
    end = Stage("end", (finish_record(place, (stream,)),), tidy=True)
    record = IntentRecord(
        stream, "stream", "2024-05-01T12:00:00+00:00", {"vda": active}, stages=(end,), directory=place
    )
    fake.files.records.append(record)
    assert [one.op for one in await vm.jobs.interrupted()] == ["stream"]


async def test_checkpoint_that_is_not_a_fork_s_is_no_interrupted_operation() -> None:
    fake = fake_of()
    vm = vm_of(fake)
    await vm.checkpoint(NAME, mode="background")
    (moment,) = (await vm.moments()).moments
    assert moment.record is not None
    assert await vm.jobs.interrupted() == ()
    with pytest.raises(NotFound):
        await vm.jobs.plan(moment.record.id)


async def test_rollback_of_a_fork_that_is_interrupted_is_shown_again() -> None:
    """After the record of the moment was written, and before the overlay is merged."""
    fake = left(recorded=False)
    vm = vm_of(fake)
    (shown,) = await vm.jobs.interrupted()
    plan = await vm.jobs.plan(shown.id)
    assert [part.op for part in plan.parts] == ["fork", "delete", "delete"]
    assert plan.steps[-1].command == "keep-moment"
    assert [step.command for part in plan.then for step in part.steps].count("block-commit") == 2
