from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace

from qmpsnap.errors import (
    Changed,
    CommandFailed,
    GraphMismatch,
    Interrupted,
    InvalidTarget,
    NotFound,
    Unsupported,
)
from qmpsnap.model.files import DirFact
from qmpsnap.own_checkpoint import own, planned
from qmpsnap.plan.intent import Checkpoint, Mode
from qmpsnap.testing.drawing import chain, graph
from tests.each import each
from tests.plan.scenes import encrypted
from tests.run.operations import vm_of
from tests.run.states import fake_of

if TYPE_CHECKING:
    from pathlib import Path

    from qmpsnap.helper import Source
    from qmpsnap.model.step import Step
    from qmpsnap.testing.fake import FakeTarget
    from qmpsnap.vm import VM


def cancelling_at(command: str, fake: FakeTarget, scope: anyio.CancelScope) -> None:
    """Cancel the scope before the first step with this command."""

    def cancels(step: Step) -> None:
        if step.command == command:
            scope.cancel()

    fake.before = cancels


async def take(vm: VM, name: str) -> None:
    """Take one of its own, and end the block."""
    async with own(vm, name) as checkpoint:
        await checkpoint.take()


BACKGROUND = [
    "create-overlay",
    "stop",
    "transaction",
    "migrate",
    "await-migration",
    "seal-memory",
    "keep-moment",
]
IN_PLACE = ["create-store", "snapshot-save", "transaction", "seal-store"]


@each(
    ("command", "running", "old"),
    [
        *((command, True, old) for command in BACKGROUND for old in (True, False)),
        *((command, False, True) for command in IN_PLACE),
    ],
)
async def test_checkpoint_whose_taking_is_cancelled_is_deleted_again(
    command: str, *, running: bool, old: bool
) -> None:
    fake = fake_of(running=running, old=old)
    vm = vm_of(fake)
    files, chains = fake.files.names, (await vm.graph()).chains()
    with anyio.CancelScope() as scope:
        cancelling_at(command, fake, scope)
        await take(vm, "t1")
    assert scope.cancelled_caught
    assert ((await vm.graph()).chains(), fake.files.names) == (chains, files)
    assert ((await vm.moments()).moments, await vm.jobs.interrupted()) == ((), ())
    assert (await vm.status()).running is running


async def test_checkpoint_that_cannot_be_deleted_after_a_cancellation_is_named() -> None:
    fake = fake_of(old=True)
    vm = vm_of(fake)
    refused = CommandFailed("no", command="block-commit", arguments={}, qmp_class="GenericError", desc="no")
    fake.fail("block-commit", refused)
    scope = anyio.CancelScope()
    cancelling_at("seal-memory", fake, scope)
    with pytest.raises(Interrupted, match="the checkpoint 't1', which had been taken") as caught, scope:
        await take(vm, "t1")
    assert (caught.value.changed, caught.value.hint) == (Changed.YES, "qmpsnap delete t1")
    assert caught.value.left == ("the checkpoint 't1': qmpsnap delete t1",)
    assert [moment.name for moment in (await vm.moments()).moments] == ["t1"]
    await vm.delete("t1")


async def test_checkpoint_that_fails_after_its_overlays_were_put_on_leaves_none() -> None:
    fake = fake_of()
    vm = vm_of(fake)
    chains = (await vm.graph()).chains()
    fake.fail("seal-memory", InvalidTarget("no room", file="/images/base.t1.memory"))
    with pytest.raises(InvalidTarget) as caught:
        await take(vm, "t1")
    assert (caught.value.changed, caught.value.left) == (Changed.NO, ())
    assert (await vm.graph()).chains() == chains


def guest_in(place: Path, *, running: bool = True) -> FakeTarget:
    """A machine whose layers are files of the host."""
    for name in ("base.qcow2", "s1.qcow2"):
        (place / name).touch()
    return fake_of(graph(chain("base <- s1*", directory=str(place))), running=running)


def steps_of(fake: FakeTarget) -> list[str]:
    """The steps as they begin."""
    order: list[str] = []
    fake.before = lambda step: order.append(step.command)
    return order


@each(("running", "mode", "early"), [(True, "background", True), (False, "in-place", False)])
async def test_work_begins_while_the_memory_of_a_running_guest_is_written(
    tmp_path: Path, mode: Mode, *, running: bool, early: bool
) -> None:
    fake = guest_in(tmp_path, running=running)
    now = fake.guest.now
    fake.guest.now = replace(now, fingerprint=replace(now.fingerprint, ram="mem"))
    vm, order = vm_of(fake), steps_of(fake)
    chains = (await vm.graph()).chains()

    async def work(source: Source) -> tuple[str, str]:
        order.append("work")
        await source.begun()
        order.append("begun")
        state = await source.state()
        order.append("loads")
        assert (source.stream, source.memory_bytes) == (early, state.fingerprint.memory)
        assert source.block == "mem"
        return source.views[0].files[0], state.mode

    async with own(vm, "t1") as checkpoint:
        assert await checkpoint.take_while(work) == (str(tmp_path / "s1.qcow2"), mode)
        assert (await vm.graph()).chains() != chains
    kept = order.index("keep-moment")
    paused = order.index("stop") if running else kept
    assert (order.index("work") < paused, order.index("begun") < kept) == (early, early)
    assert order.index("begun") > order.index("transaction")
    assert order.index("loads") > kept
    assert ((await vm.graph()).chains(), (await vm.moments()).moments) == (chains, ())


async def test_work_begins_again_when_the_guest_turns_out_to_be_saved_in_another_way(tmp_path: Path) -> None:
    """QEMU says that it cannot follow the writes to the memory only when it is told to."""
    fake = guest_in(tmp_path)
    vm, order, begun = vm_of(fake), steps_of(fake), list[bool]()
    fake.fail("migrate-set-capabilities", Unsupported("no userfaultfd", feature="background-snapshot"))

    async def work(source: Source) -> str:
        begun.append(source.stream)
        try:
            await source.begun()
        finally:
            order.append("over" if source.stream else "begun")
        return (await source.state()).mode

    async with own(vm, "t1") as checkpoint:
        assert await checkpoint.take_while(work) == "in-place"
    assert begun == [True, False]
    assert order.index("over") < order.index("transaction") < order.index("begun")


async def test_checkpoint_of_a_machine_that_another_client_changes_meanwhile_says_to_try_again() -> None:
    fake = fake_of(running=True)
    vm = vm_of(fake)
    async with own(vm, "c1") as checkpoint:
        await vm_of(fake).snapshot("another")
        with pytest.raises(GraphMismatch, match="have changed since") as changed:
            await checkpoint.take()
    assert changed.value.changed is Changed.NO
    assert changed.value.hint == "another client has changed the machine at the same time: try again"
    assert [moment.name for moment in (await vm.moments()).moments] == ["another"]


async def test_work_has_ended_before_a_checkpoint_that_fails_is_deleted(tmp_path: Path) -> None:
    fake = guest_in(tmp_path)
    vm, order = vm_of(fake), steps_of(fake)
    chains = (await vm.graph()).chains()
    fake.fail("seal-memory", InvalidTarget("no room", file="/images/base.t1.memory"))

    async def work(source: Source) -> None:
        try:
            await source.state()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            order.append("ended")

    with pytest.raises(InvalidTarget, match="no room"):
        async with own(vm, "t1") as checkpoint:
            await checkpoint.take_while(work)
    assert order.index("seal-memory") < order.index("ended") < order.index("block-commit")
    assert (await vm.graph()).chains() == chains


async def test_checkpoint_is_deleted_when_the_work_on_it_fails(tmp_path: Path) -> None:
    vm = vm_of(guest_in(tmp_path))
    chains = (await vm.graph()).chains()

    async def work(source: Source) -> None:
        raise NotFound(f"no launcher for {source.name}")

    with pytest.raises(NotFound, match="no launcher for t1"):
        async with own(vm, "t1") as checkpoint:
            await checkpoint.take_while(work)
    assert ((await vm.graph()).chains(), (await vm.moments()).moments) == (chains, ())


async def test_checkpoint_that_is_kept_stays() -> None:
    vm = vm_of(fake_of())
    async with own(vm, "t1") as checkpoint:
        await checkpoint.take()
        checkpoint.keep()
    assert [moment.name for moment in (await vm.moments()).moments] == ["t1"]


@each(("running", "mode"), [(True, "background"), (False, "in-place")])
async def test_guest_that_runs_keeps_running_and_one_that_is_paused_is_saved_in_place(
    mode: Mode, *, running: bool
) -> None:
    vm = vm_of(fake_of(running=running, old=False))
    assert (await planned(vm, "t1")).intent == Checkpoint("t1", mode)


async def test_file_that_cannot_take_the_memory_is_replaced_by_the_usual_one() -> None:
    fake = fake_of(running=True, old=False)
    fake.files.directories["/full"] = DirFact("/full", exists=True, writable=True, free_bytes=1)
    assert (await planned(vm_of(fake), "t1", memory="/full/stream")).intent == Checkpoint("t1", "background")
    assert (await planned(vm_of(fake), "t1", memory="/t/stream")).intent == Checkpoint(
        "t1", "background", "/t/stream"
    )


async def test_checkpoint_without_room_is_refused_with_a_way_that_the_caller_has() -> None:
    fake = fake_of(running=True, old=False)
    place = posixpath.dirname((await fake.graph()).disks["vda"].active.file)
    fake.files.directories[place] = DirFact(place, exists=True, writable=True, free_bytes=1 << 20)
    with pytest.raises(InvalidTarget, match="bytes free") as caught:
        await planned(vm_of(fake), "t1")
    assert "(checkpoint NAME --memory FILE), and use that" in caught.value.hint


@each("running", [True, False])
async def test_checkpoint_of_an_encrypted_disk_is_refused_with_a_way_that_the_caller_has(
    *, running: bool
) -> None:
    fake = fake_of(encrypted("base <- s1*")[0], running=running)
    with pytest.raises(Unsupported, match="would be stored unencrypted") as caught:
        await planned(vm_of(fake), "t1")
    assert caught.value.hint == (
        "an encrypted disk cannot be forked, nor be part of a template; "
        "for a revert alone, take a checkpoint with --plain"
    )
