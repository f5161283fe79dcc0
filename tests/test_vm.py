"""A revert into a new QEMU: prepared, started, loaded, and removed when that fails."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest
from msgspec.structs import replace

from qmpsnap.errors import LinkLost, MachineDiffers, MigrationFailed, NotFound, QmpsnapError, Unsupported
from qmpsnap.run.target import guest_of
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.testing.fake_images import FakeImages
from qmpsnap.testing.fake_machine import a_machine
from tests.run.operations import vm_of
from tests.run.states import COMMON, MACHINE, fake_of, ready_on, waiting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from qmpsnap.model.start import Start
    from qmpsnap.vm import VM, Launcher

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def old() -> FakeTarget:
    """A machine with a checkpoint c1, whose guest runs on."""
    fake = fake_of()
    await vm_of(fake).checkpoint("c1")
    return fake


def new_on(old: FakeTarget, start: Start) -> FakeTarget:
    assert start.incoming
    drawn = ready_on(dict(start.disks))
    return FakeTarget(drawn, files=old.files, commands=COMMON, machine=waiting(a_machine(drawn)))


def launching(old: FakeTarget, events: list[str], *, change: Callable[[FakeTarget], None]) -> Launcher:
    @asynccontextmanager
    async def launch(start: Start) -> AsyncIterator[VM]:
        fake = new_on(old, start)
        change(fake)
        events.append("started")
        try:
            yield vm_of(fake)
        finally:
            events.append("ended")

    return launch


def nothing(_: FakeTarget) -> None:
    """Change nothing."""


async def test_reverted_gives_the_guest_as_it_was_in_a_new_qemu(old: FakeTarget) -> None:
    events: list[str] = []
    before = (old.state, old.guest.now)
    async with vm_of(old).reverted("c1", launching(old, events, change=nothing)) as vm:
        chains = (await vm.graph()).chains()
        assert set(old.files.names) >= {files[0] for files in chains.values()}
        assert (await guest_of(vm._target).machine(await vm.graph())).running
        assert events == ["started"]
    assert (events, (old.state, old.guest.now)) == (["started", "ended"], before)
    assert {files[0] for files in chains.values()} <= set(old.files.names)  # they are kept


async def test_reverted_keeps_the_overlays_when_the_block_raises(old: FakeTarget) -> None:
    before = set(old.files.names)
    with pytest.raises(ZeroDivisionError):
        async with vm_of(old).reverted("c1", launching(old, [], change=nothing)):
            raise ZeroDivisionError
    assert len(set(old.files.names) - before) == 2


async def test_reverted_removes_the_overlays_when_the_launcher_raises(old: FakeTarget) -> None:
    before = old.files.names

    def launch(start: Start) -> AbstractAsyncContextManager[VM]:
        assert {str(file) for file in start.disks.values()} <= set(old.files.names)
        raise FileNotFoundError("no such QEMU")

    with pytest.raises(FileNotFoundError, match="no such QEMU"):
        async with vm_of(old).reverted("c1", launch):
            raise AssertionError
    assert old.files.names == before


def loses_the_load(fake: FakeTarget) -> None:
    fake.fail("migrate-incoming", LinkLost("QEMU ended"), happened=True)


def fails_to_load(fake: FakeTarget) -> None:
    fake.fail("await-migration", MigrationFailed("no", error="no"))


def is_another(fake: FakeTarget) -> None:
    fake.guest.now = replace(fake.guest.now, fingerprint=replace(fake.guest.now.fingerprint, memory=7))


@pytest.mark.parametrize(
    ("change", "error"),
    [(loses_the_load, LinkLost), (fails_to_load, MigrationFailed), (is_another, MachineDiffers)],
)
async def test_reverted_removes_the_overlays_when_the_memory_cannot_be_loaded(
    old: FakeTarget, change: Callable[[FakeTarget], None], error: type[QmpsnapError]
) -> None:
    events: list[str] = []
    before = old.files.names
    old.before = lambda step: events.append("removed") if step.command == "remove-orphan" else None
    with pytest.raises(error):
        async with vm_of(old).reverted("c1", launching(old, events, change=change)):
            raise AssertionError
    assert old.files.names == before
    assert events == ["started", "ended", "removed", "removed"]


@pytest.mark.parametrize("how", ["anyio", "asyncio"])
async def test_reverted_removes_the_overlays_when_it_is_cancelled_while_qemu_starts(
    old: FakeTarget, how: str
) -> None:
    before = old.files.names
    begun = anyio.Event()

    @asynccontextmanager
    async def launch(start: Start) -> AsyncIterator[VM]:
        begun.set()
        await anyio.sleep_forever()
        yield vm_of(new_on(old, start))

    async def go() -> None:
        async with vm_of(old).reverted("c1", launch):
            raise AssertionError

    if how == "anyio":
        async with anyio.create_task_group() as group:
            group.start_soon(go)
            await begun.wait()
            group.cancel_scope.cancel()
    else:
        task = asyncio.create_task(go())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert old.files.names == before


async def test_reverted_tells_a_launcher_that_starts_from_other_images_which_they_are(
    old: FakeTarget,
) -> None:
    before = old.files.names

    @asynccontextmanager
    async def launch(_: Start) -> AsyncIterator[VM]:
        others = graph(chain("z*"))
        yield vm_of(FakeTarget(others, commands=COMMON, machine=waiting(a_machine(others))))

    with pytest.raises(MachineDiffers, match="did not use the images that it was given") as caught:
        async with vm_of(old).reverted("c1", launch):
            raise AssertionError
    first, second = caught.value.differences
    assert first.startswith("its disk vda reads ")
    assert second.startswith("its disk vdb reads nothing, not ")
    assert old.files.names == before


async def test_reverted_makes_nothing_of_a_checkpoint_that_is_not_there(old: FakeTarget) -> None:
    before = old.files.names
    with pytest.raises(NotFound):
        async with vm_of(old).reverted("none", launching(old, [], change=nothing)):
            raise AssertionError
    assert old.files.names == before


async def test_prepare_tells_what_to_start_from_and_what_to_load(old: FakeTarget) -> None:
    made = await vm_of(old).revert("c1", into="new")
    assert set(made.prepared) == {"vda", "vdb"}
    assert set(made.prepared.values()) <= set(old.files.names)
    assert made.memory in old.files.names
    again = await vm_of(old).revert("c1", into="new")
    assert not set(made.prepared.values()) & set(again.prepared.values())


async def test_incoming_loads_what_was_prepared_once(old: FakeTarget) -> None:
    made = await vm_of(old).revert("c1", into="new")
    drawn = ready_on(dict(made.prepared))
    fake = FakeTarget(drawn, files=old.files, commands=COMMON, machine=waiting(a_machine(drawn)))
    await vm_of(fake).revert("c1", into="incoming")
    assert fake.guest.now.running
    assert [step for step in fake.performed if step.command == "migrate-incoming"]
    for file in made.prepared.values():
        fake.files.touch(file)
    fake.guest.now = waiting(fake.guest.now)
    with pytest.raises(MachineDiffers, match="already has data"):
        await vm_of(fake).revert("c1", into="incoming")


async def test_save_and_restore_take_a_relative_name_from_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fake = fake_of()
    await vm_of(fake).save("m")
    assert str(tmp_path / "m") in fake.files.names
    assert not fake.guest.now.running
    fake.guest.now = waiting(fake.guest.now)
    await vm_of(fake).restore("m")
    assert fake.guest.now.running


def launch_none(_: Start) -> AbstractAsyncContextManager[VM]:
    raise AssertionError("nothing is to be started")


@pytest.mark.parametrize(
    "call",
    [
        lambda vm: vm.status(),
        lambda vm: vm.cont(),
        lambda vm: vm.stop(),
        lambda vm: vm.checkpoint("c1"),
        lambda vm: vm.checkpoint("c1", mode="internal"),
        lambda vm: vm.save("/images/m"),
        lambda vm: vm.restore("/images/m"),
        lambda vm: vm.fork(2, launcher=launch_none).__aenter__(),
    ],
)
async def test_what_needs_a_guest_is_refused_without_one(call: Callable[[VM], Awaitable[object]]) -> None:
    fake = FakeImages(MACHINE)
    with pytest.raises(Unsupported, match="fake has no guest") as caught:
        await call(vm_of(fake))
    assert (caught.value.feature, bool(caught.value.hint)) == ("a guest", True)
    assert (fake.performed, fake.sent) == ([], [])
