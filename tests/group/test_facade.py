from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from qmpsnap.errors import (
    BadArgument,
    BadName,
    Busy,
    Changed,
    CommandFailed,
    NotFound,
    TargetExists,
    Unsupported,
)
from qmpsnap.group import Group
from qmpsnap.model.record import Member
from qmpsnap.plan.intent import Checkpoint, Commit, Delete, Revert, Snapshot
from qmpsnap.testing.fake import refused
from qmpsnap.testing.fake_images import FakeImages
from tests.each import each
from tests.group.machines import A, Two
from tests.run.operations import vm_of

pytestmark = pytest.mark.timeout(60)


def test_group_refuses_what_are_no_machines():
    two = Two.made()
    vm = vm_of(two.a)
    machines: Any
    for machines in ({}, [vm], {"a": two.a}, {"": vm}, {"a b": vm}, {"a": vm, "b": vm}, {1: vm}, None):
        with pytest.raises(BadArgument, match="machines"):
            Group(machines)


async def test_plan_gives_each_machine_files_of_its_own_and_one_id():
    plans = await Two.made().group.plan(Checkpoint("s"))
    records = [plan.record for plan in plans.values() if plan.record is not None]
    members = {record.member for record in records}
    (group,) = {member.id for member in members if member is not None}
    assert members == {Member(group, "a", ("a", "b")), Member(group, "b", ("a", "b"))}
    made = [file for record in records for file in record.made]
    assert len(set(made)) == len(made)


async def test_plan_refused_by_one_machine_sends_nothing_to_any():
    two = Two.made()
    await vm_of(two.b).snapshot("s")
    two.b.performed.clear()
    with pytest.raises(TargetExists, match=r"^b: "):
        await two.group.snapshot("s")
    assert (two.a.performed, two.b.performed) == ([], [])


async def test_plan_refuses_images_of_a_machine_that_is_off():
    group = Group({"off": vm_of(FakeImages(A))})
    with pytest.raises(Unsupported, match=r"^off: "):
        await group.snapshot("s")


async def test_plan_refuses_other_intents_and_names():
    group: Any = Two.made().group
    intent: Any
    for intent in (Commit("vda"), "s", None):
        with pytest.raises(BadArgument, match="intent"):
            await group.plan(intent)
    with pytest.raises(BadName):
        await group.snapshot("a b")
    with pytest.raises(BadArgument, match="member"):
        await group.checkpoint("s", mode="internal")
    with pytest.raises(BadArgument, match="plans"):
        await group.run({})
    with pytest.raises(BadArgument, match="member"):
        Snapshot("s", member="a")  # type: ignore[arg-type]


async def test_revert_refuses_a_moment_that_some_machines_do_not_have():
    two = Two.made()
    await two.group.snapshot("s")
    await vm_of(two.b).delete("s")
    with pytest.raises(NotFound, match="incomplete: it is missing on b"):
        await two.group.revert("s")
    assert [(one.complete, list(one.held)) for one in await two.group.moments()] == [(False, ["a"])]
    await two.group.delete("s")
    assert await two.listed() == []


async def test_revert_refuses_a_moment_that_was_taken_of_other_machines_too():
    two = Two.made()
    await two.group.snapshot("s")
    alone = Group({"a": vm_of(two.a)})
    with pytest.raises(NotFound, match="incomplete: it is missing on b"):
        await alone.revert("s")
    assert await alone.recover() == ()  # it is not the moment of this group alone
    renamed = Group({"b": vm_of(two.a), "a": vm_of(two.b)})
    with pytest.raises(NotFound, match="this group has no moment 's'"):
        await renamed.revert("s")
    assert await two.listed() == [("s", True)]


async def test_revert_and_delete_refuse_a_moment_of_single_machines():
    two = Two.made()
    for fake in two.machines:
        await vm_of(fake).snapshot("s")
    for call in (two.group.revert, two.group.delete):
        with pytest.raises(NotFound, match="this group has no moment 's'"):
            await call("s")


@each(
    ("live", "state", "hint"),
    [
        (True, "is running", "wait until its client ends"),
        (False, "was interrupted", "Group.recover() finishes it"),
    ],
)
async def test_plan_refuses_while_an_operation_of_the_group_is_unfinished(live, state, hint):
    two = Two.made()
    record = (await two.group.plan(Snapshot("s")))["b"].record
    assert record is not None
    two.b.files.records.append(replace(record, directory="/images/base.qmpsnap", live=live))
    for intent in (Snapshot("t"), Revert("s"), Delete("s")):
        with pytest.raises(Busy, match=f"^b: snapshot 's' of the group {state}") as busy:
            await two.group.plan(intent)
        assert busy.value.hint == hint
    assert (two.a.performed, two.b.performed) == ([], [])
    if not live:
        await two.group.recover()
        assert await two.listed() == []


async def test_recover_finishes_an_interrupted_revert_to_a_moment_of_the_group():
    two = Two.made()
    await two.group.checkpoint("s")
    record = (await two.group.plan(Revert("s")))["b"].record
    assert record is not None
    two.b.files.records.append(replace(record, directory="/images/base.qmpsnap"))
    with pytest.raises(Busy, match=r"^b: revert 's' of the group was interrupted"):
        await two.group.plan(Snapshot("t"))
    await two.group.recover()
    assert await two.group.machines["b"].jobs.interrupted() == ()


async def test_interrupted_operation_of_one_machine_alone_is_none_of_the_group():
    two = Two.made()
    await two.group.machines["b"].checkpoint("alone", mode="in-place")
    record = (await two.group.machines["b"].plan(Revert("alone"))).record
    assert record is not None
    two.b.files.records.append(replace(record, directory="/images/base.qmpsnap"))
    await two.group.recover()
    assert [left.id for left in await two.group.machines["b"].jobs.interrupted()] == [record.id]


async def test_stop_and_cont_reach_every_machine():
    two = Two.made()
    await two.group.stop()
    await two.group.cont()
    assert (
        [command for command, _ in two.a.sent] == [command for command, _ in two.b.sent] == ["stop", "cont"]
    )


async def test_cont_resumes_no_machine_when_one_may_not_be_resumed():
    two = Two.made()
    await two.group.stop()
    two.b.guest._set("postmigrate", running=False)
    with pytest.raises(Unsupported, match=r"^b: .*postmigrate"):
        await two.group.cont()
    assert [command for command, _ in two.a.sent] == ["stop"]


async def test_stop_names_a_guest_that_qemu_does_not_resume_after_a_failure():
    two = Two.made()
    two.b.fail("stop", refused("no"))
    two.a.fail("cont", refused("not now"))
    with pytest.raises(CommandFailed, match=r"^b: ") as caught:
        await two.group.stop()
    (left,) = caught.value.left
    assert left.startswith("the guest of a is paused: qmpsnap cont (")
    assert caught.value.changed is Changed.YES


async def test_stop_lets_all_run_again_when_one_cannot_be_paused():
    two = Two.made()
    two.b.fail("stop", refused("no"))
    with pytest.raises(Exception, match=r"^b: no"):
        await two.group.stop()
    assert [command for command, _ in two.a.sent] == ["stop", "cont"]
