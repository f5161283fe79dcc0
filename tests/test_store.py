"""The store of a checkpoint, made by a helper on a fake machine: complete, or nothing of it is left."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest
from msgspec.structs import replace

from qmpsnap.errors import (
    BadArgument,
    Changed,
    ConnectFailed,
    Interrupted,
    JobFailed,
    LinkLost,
    MachineDiffers,
    NotFound,
    QmpsnapError,
)
from qmpsnap.model.memory import MemoryFact
from qmpsnap.plan.intent import Checkpoint, MakeStore
from qmpsnap.plan.vmstate.store import conversion
from qmpsnap.run.outcome import Done, Hooks
from qmpsnap.store import with_store
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.testing.fake_machine import a_machine
from tests.each import each
from tests.run.operations import vm_of
from tests.run.states import COMMON, fake_of, ready_on, waiting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from qmpsnap.model.start import Start
    from qmpsnap.model.step import Step
    from qmpsnap.plan.intent import Mode
    from qmpsnap.vm import VM, Launcher

pytestmark = pytest.mark.timeout(60)
IN_PLACE = "'c1' reverts in place: its memory is in a store"


def nothing(_: FakeTarget) -> None:
    """Change nothing."""


def ends(fake: FakeTarget) -> None:
    fake.fail("snapshot-save", LinkLost("QEMU ended"), happened=True)


def is_full(fake: FakeTarget) -> None:
    fake.job_error = "No space left on device"


def is_another(fake: FakeTarget) -> None:
    fake.guest.now = replace(fake.guest.now, fingerprint=replace(fake.guest.now.fingerprint, memory=7))


def launching(old: FakeTarget, change: Callable[[FakeTarget], None] = nothing) -> Launcher:
    @asynccontextmanager
    async def launch(start: Start) -> AsyncIterator[VM]:
        drawn = ready_on(dict(start.disks))
        for disk, file in start.disks.items():
            old.files.put(file, backing=drawn.disks[disk].files[1])
        fake = FakeTarget(drawn, files=old.files, commands=COMMON, machine=waiting(a_machine(drawn)))
        try:
            change(fake)
            yield vm_of(fake)
        finally:
            for file in start.disks.values():
                del old.files.facts[file]

    return launch


async def seen(vm: VM) -> tuple[str, str]:
    """How the checkpoint reverts, and where its memory is."""
    (moment,) = (await vm.moments()).moments
    return moment.mode, moment.vm_state_file


async def test_background_checkpoint_gets_its_store_where_a_launcher_is_known() -> None:
    fake = fake_of()
    vm = vm_of(fake)
    vm.launcher = launching(fake)
    done = await vm.checkpoint("c1", mode="background")
    assert (done.op, done.notes) == ("checkpoint", (IN_PLACE,))
    assert await seen(vm) == ("in-place", "/images/base.c1.vmstate.qcow2")
    assert [file for file in fake.files.names if "memory" in file or "partial" in file] == []
    assert await vm.jobs.interrupted() == ()


async def test_conversion_of_a_planned_checkpoint_is_what_is_planned_once_it_is_taken() -> None:
    vm = vm_of(fake_of())
    plan = await vm.plan(Checkpoint("c1", "background", store=True))
    foreseen = conversion(plan)
    await vm.run(plan)
    later = await vm.plan(MakeStore("c1"))
    assert foreseen is not None
    assert str(foreseen) == str(later)
    assert [step.command for step in foreseen.steps] == [
        *("write-record", "create-store"),
        *("blockdev-add", "snapshot-save", "await-job", "job-dismiss", "blockdev-del"),
        *("seal-store", "keep-store", "finish-record"),
    ]


@each("mode", ["stop", "in-place"])
async def test_checkpoint_without_a_helper_has_no_conversion(mode: Mode) -> None:
    assert conversion(await vm_of(fake_of()).plan(Checkpoint("c1", mode))) is None


def raises(_: FakeTarget) -> None:
    raise FileNotFoundError("no such QEMU")


FAILURES = [
    (ends, ConnectFailed, "the helper QEMU ended before the store of 'c1' was complete"),
    (is_full, JobFailed, "No space left on device"),
    (is_another, MachineDiffers, "belongs to another machine"),
    (raises, FileNotFoundError, "no such QEMU"),
]


@each(("change", "error", "text"), FAILURES)
async def test_make_store_leaves_the_checkpoint_as_it_was_when_the_helper_fails(
    change: Callable[[FakeTarget], None], error: type[Exception], text: str
) -> None:
    fake = fake_of()
    vm = vm_of(fake)
    await vm.checkpoint("c1", mode="background")
    before = (fake.files.names, await seen(vm))
    with pytest.raises(error, match=text) as caught:
        await vm.make_store("c1", launcher=launching(fake, change))
    if isinstance(caught.value, QmpsnapError):
        assert (caught.value.changed, caught.value.left) == (Changed.NO, ())
    assert (fake.files.names, await seen(vm)) == before
    assert await vm.jobs.interrupted() == ()
    await vm.make_store("c1", launcher=launching(fake))
    assert (await seen(vm))[0] == "in-place"


@each(("change", "error", "text"), FAILURES)
async def test_background_checkpoint_is_complete_and_says_why_it_has_no_store(
    change: Callable[[FakeTarget], None], error: type[Exception], text: str
) -> None:
    fake = fake_of()
    vm = vm_of(fake)
    done = await vm.checkpoint("c1", mode="background", launcher=launching(fake, change))
    (note,) = done.notes
    assert note.startswith("'c1' reverts in a new QEMU: ")
    assert text in note
    assert issubclass(error, QmpsnapError) is ("the launcher has failed" not in note)
    assert await seen(vm) == ("background", "/images/base.c1.memory")


async def test_background_checkpoint_says_that_no_launcher_is_known() -> None:
    fake = fake_of()
    done = await vm_of(fake).checkpoint("c1", mode="background")
    (note,) = done.notes
    assert note == (
        "'c1' reverts in a new QEMU: no launcher is known; to make it revert in place: "
        "qmpsnap checkpoint --convert c1 --launcher COMMAND"
    )


async def test_background_checkpoint_of_a_paused_guest_is_saved_into_a_store_without_a_helper() -> None:
    fake = fake_of(running=False)
    vm = vm_of(fake)
    vm.launcher = launching(fake, raises)
    done = await vm.checkpoint("c1", mode="background")
    assert done.notes == ("the guest is paused, so its memory is saved as with --mode in-place",)
    assert (await seen(vm))[0] == "in-place"


async def test_background_checkpoint_is_complete_when_its_caller_stops_the_conversion() -> None:
    fake = fake_of()
    vm = vm_of(fake)
    hooks = Hooks(cancel=anyio.Event())

    def stops(_: FakeTarget) -> None:
        assert hooks.cancel is not None
        hooks.cancel.set()

    vm.launcher = launching(fake, stops)
    with pytest.raises(Interrupted, match="'c1' is complete, without a store") as caught:
        await vm.checkpoint("c1", mode="background", hooks=hooks)
    assert (caught.value.changed, await vm.jobs.interrupted()) == (Changed.YES, ())
    assert caught.value.hint == "qmpsnap checkpoint --convert c1 --launcher COMMAND"
    assert await seen(vm) == ("background", "/images/base.c1.memory")


async def test_background_checkpoint_is_complete_when_its_caller_stops_while_the_helper_starts() -> None:
    fake = fake_of()
    vm = vm_of(fake)
    hooks = Hooks(cancel=anyio.Event())
    ended = []

    @asynccontextmanager
    async def hangs(_: Start) -> AsyncIterator[VM]:
        assert hooks.cancel is not None
        hooks.cancel.set()
        try:
            await anyio.sleep_forever()
            yield vm
        finally:
            ended.append(True)

    with pytest.raises(Interrupted, match="'c1' is complete, without a store") as caught:
        await vm.checkpoint("c1", mode="background", launcher=hangs, hooks=hooks)
    assert (caught.value.changed, await vm.jobs.interrupted(), ended) == (Changed.YES, (), [True])
    assert await seen(vm) == ("background", "/images/base.c1.memory")
    with pytest.raises(Interrupted, match="stopped as requested"):
        await vm.make_store("c1", launcher=hangs, hooks=hooks)
    await vm.make_store("c1", launcher=launching(fake), hooks=Hooks(cancel=anyio.Event()))
    assert (await seen(vm))[0] == "in-place"


async def test_background_checkpoint_whose_caller_stops_it_too_late_starts_no_helper() -> None:
    fake = fake_of(old=True)
    vm = vm_of(fake)
    hooks = Hooks(cancel=anyio.Event())
    begun: list[FakeTarget] = []

    def stops(step: Step) -> None:
        if step.command == "seal-memory":
            assert hooks.cancel is not None
            hooks.cancel.set()

    fake.before = stops
    vm.launcher = launching(fake, begun.append)
    with pytest.raises(Interrupted, match="'c1' is complete, without a store"):
        await vm.checkpoint("c1", mode="background", hooks=hooks)
    assert begun == []
    assert await seen(vm) == ("background", "/images/base.c1.memory")


async def test_checkpoint_with_a_store_has_its_bytes_and_the_time_of_both_operations() -> None:
    fake = fake_of()
    vm = vm_of(fake)
    taken = Done("checkpoint", {}, elapsed_s=1000.0, bytes=5000)
    await vm.checkpoint("c1", mode="background")

    done = await with_store(vm, taken, "c1", launching(fake), None)
    assert (done.bytes, 1000 < done.elapsed_s < 1100) == (4 << 20, True)  # the fake store's


async def test_make_store_first_removes_what_a_killed_client_left() -> None:
    fake = fake_of()
    vm = vm_of(fake)
    await vm.checkpoint("c1", mode="background")
    plan = await vm.plan(MakeStore("c1"))
    for step in plan.steps[:2]:
        fake.files.perform(step)
    (left,) = await vm.jobs.interrupted()
    assert left.op == "store"
    await vm.make_store("c1", launcher=launching(fake))
    assert await vm.jobs.interrupted() == ()
    assert [file for file in fake.files.names if "partial" in file] == []


async def test_make_store_finishes_what_a_killed_client_had_completed() -> None:
    fake = fake_of()
    vm = vm_of(fake)
    await vm.checkpoint("c1", mode="background")
    plan = await vm.plan(MakeStore("c1"))
    for step in plan.steps:
        if step.on == "host" and step.command not in {"keep-store", "finish-record"}:
            fake.files.perform(step)
    assert plan.record is not None
    assert plan.record.state is not None
    file, tag = plan.record.state.file, plan.record.state.tag
    fake.files.memories[file] = MemoryFact(file, 1, tags=(tag,))
    done = await vm.make_store("c1", launcher=launching(fake, raises))
    assert (done.op, done.notes) == ("store", ("the store of 'c1' is complete", IN_PLACE))
    assert await seen(vm) == ("in-place", file)


async def test_make_store_says_that_the_checkpoint_was_deleted_meanwhile() -> None:
    fake = fake_of()
    vm = vm_of(fake)
    await vm.checkpoint("c1", mode="background")

    def deletes(helper: FakeTarget) -> None:
        helper.before = lambda step: fake.files.records.clear() if step.command == "finish-record" else None

    with pytest.raises(NotFound, match="deleted while its store was made"):
        await vm.make_store("c1", launcher=launching(fake, deletes))


async def test_checkpoint_of_another_mode_takes_no_launcher() -> None:
    with pytest.raises(BadArgument, match="it is only for the mode 'background', not for 'stop'"):
        await vm_of(fake_of()).checkpoint("c1", launcher=launching(fake_of()))
