"""Backups of a machine in memory, whose disks a script copies in qemu-img's place."""

from __future__ import annotations

import resource
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest

import qmpsnap
from qmpsnap.backup import _mark
from qmpsnap.errors import (
    CommandFailed,
    Incomplete,
    Interrupted,
    InvalidTarget,
    StillNeeded,
    Unsupported,
)
from qmpsnap.plan.intent import Snapshot
from qmpsnap.run.outcome import Hooks
from qmpsnap.run.view_lock import Locks
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget, refused
from qmpsnap.testing.fake_images import FakeImages
from tests.copies import COPIES, files
from tests.each import each
from tests.plan.scenes import encrypted
from tests.run.operations import vm_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from qmpsnap.model.graph import Graph

MACHINE = graph(vda="base <- s1*", vdb="data.raw*")
CHAINS = MACHINE.chains()
LEFT = "backup-20240501T120000Z-0a1b2c3d"


async def test_backup_copies_and_compares_each_disk_and_merges_back(
    tmp_path: Path, tool_that: Callable[[str], None]
) -> None:
    del tool_that
    fake, place = FakeTarget(MACHINE), tmp_path / "b"
    moved: list[Mapping[str, str]] = []
    done = await vm_of(fake).backup(place, hooks=Hooks(on_pivot=moved.append))
    assert (done.op, done.chains, done.active, done.notes) == ("backup", CHAINS, {}, ())
    assert [sorted(one) for one in moved] == [["vda", "vdb"], ["vda"], ["vdb"]]
    assert (tmp_path / "told").read_text().split() == ["convert", "compare", "convert", "compare"]
    name = done.backup.id
    assert files(place) == [f"{name}/{file}" for file in ("manifest.json", "vda.qcow2", "vdb.qcow2")]
    assert done.files == {disk: f"{place}/{name}/{disk}.qcow2" for disk in ("vda", "vdb")}
    assert done.backup.disks["vda"].chain == CHAINS["vda"]
    assert (done.bytes, fake.files.records) == (10, [])
    assert await qmpsnap.list_backups(place) == (done.backup,)
    assert done.to_json()["directory"] == f"{place}/{name}"


async def test_backup_that_cannot_copy_merges_back_and_leaves_nothing(
    tmp_path: Path, tool_that: Callable[[str], None]
) -> None:
    fake = FakeTarget(MACHINE)
    for script, text in ((f"{COPIES}; exit 1", "it failed"), (f"{COPIES}; [ $1 = convert ]", "they differ")):
        tool_that(script)
        with pytest.raises(CommandFailed, match=text) as caught:
            await vm_of(fake).backup(tmp_path / "b")
        assert (caught.value.changed.value, caught.value.left) == ("no", ())
        assert (fake.state.chains(), fake.files.records) == (CHAINS, [])
        assert not (tmp_path / "b").exists()


async def test_backup_names_what_it_could_not_merge_back_after_a_failure(
    tmp_path: Path, tool_that: Callable[[str], None]
) -> None:
    tool_that("exit 1")
    fake = FakeTarget(MACHINE)
    fake.fail("block-commit", refused("no"))
    with pytest.raises(CommandFailed) as caught:
        await vm_of(fake).backup(tmp_path / "b", disks=["vda"])
    overlay = fake.state.disks["vda"].active.file
    hint = "the next backup merges the overlay back; to do it now: qmpsnap commit vda"
    assert (caught.value.changed.value, caught.value.left) == ("yes", (f"{overlay}: {hint}",))


async def test_backup_is_complete_when_an_overlay_cannot_be_merged_back(
    tmp_path: Path, tool_that: Callable[[str], None]
) -> None:
    del tool_that
    fake, place = FakeTarget(MACHINE), tmp_path / "b"
    fake.fail("block-commit", refused("no"))
    with pytest.raises(CommandFailed) as caught:
        await vm_of(fake).backup(place)
    (record,) = await qmpsnap.list_backups(place)
    assert f"the backup is complete: {place}/{record.id}" in caught.value.hint
    assert caught.value.changed.value == "yes"
    assert fake.state.chains()["vdb"] == CHAINS["vdb"]  # the other one was merged all the same
    again = await vm_of(fake).backup(place)
    assert again.chains == CHAINS
    assert again.active == {"vda": CHAINS["vda"][0]}  # the overlay that it began on is gone
    assert again.notes == (
        f"merged the overlay of an interrupted backup back into {CHAINS['vda'][0]} (backup-{record.id})",
    )


async def test_backup_that_is_stopped_merges_back(tmp_path: Path, tool_that: Callable[[str], None]) -> None:
    tool_that("exec sleep 60")
    fake, stop = FakeTarget(MACHINE), anyio.Event()
    moved: dict[str, str] = {}
    async with anyio.create_task_group() as group:

        async def later() -> None:
            while not (tmp_path / "told").exists():  # noqa: ASYNC110 - a script says so by a file
                await anyio.sleep(0.01)
            stop.set()

        group.start_soon(later)
        with pytest.raises(Interrupted, match="nothing of it is left"):
            await vm_of(fake).backup(tmp_path / "b", hooks=Hooks(cancel=stop, on_pivot=moved.update))
    assert moved == {disk: chain[0] for disk, chain in CHAINS.items()}  # and not the overlays
    assert (fake.state.chains(), fake.files.records) == (CHAINS, [])
    assert not (tmp_path / "b").exists()


async def test_backup_that_cannot_be_merged_for_a_new_clone_says_what_changed(
    tmp_path: Path, tool_that: Callable[[str], None]
) -> None:
    del tool_that
    fake = FakeTarget(MACHINE)
    clone = partial(fake.files.put, "/images/clone.qcow2", backing="/images/data.raw")
    with pytest.raises(Incomplete, match=r"the backup is complete, .* overlay stays: still needed") as caught:
        await vm_of(fake).backup(tmp_path / "b", disks=["vdb"], hooks=Hooks(on_pivot=lambda _: clone()))
    overlay = fake.state.disks["vdb"].active.file
    assert (caught.value.changed.value, caught.value.exit_code) == ("yes", 7)
    assert [line.partition(":")[0] for line in caught.value.left] == [overlay]


async def test_backup_of_a_layer_that_backs_another_image_is_refused_before_anything_is_made(
    tmp_path: Path, tool_that: Callable[[str], None]
) -> None:
    del tool_that
    fake = FakeTarget(MACHINE)
    vm = vm_of(fake)
    await vm.graph()
    fake.files.put("/images/clone.qcow2", backing="/images/data.raw")
    for disks in ((), ("vdb",)):
        with pytest.raises(
            StillNeeded, match=r"still needed by /images/clone.qcow2: backed by /images/data.raw"
        ):
            await vm.backup(tmp_path / "b", disks=disks)
        with pytest.raises(StillNeeded):
            await vm.plan_backup(tmp_path / "b", disks=disks)
    assert fake.performed == []
    assert not (tmp_path / "b").exists()
    await vm.snapshot("stays", disks=["vdb"])
    assert set((await vm.backup(tmp_path / "b")).files) == {"vda", "vdb"}


async def test_backup_that_is_cancelled_while_it_merges_back_merges_all(
    tmp_path: Path, tool_that: Callable[[str], None]
) -> None:
    del tool_that
    fake, place = FakeTarget(MACHINE), tmp_path / "b"
    moved: list[Mapping[str, str]] = []
    with anyio.CancelScope() as scope:

        def follow(active: Mapping[str, str]) -> None:
            moved.append(active)
            if len(moved) == 2:  # after the snapshot, the first merge
                scope.cancel()

        await vm_of(fake).backup(place, hooks=Hooks(on_pivot=follow))
    assert scope.cancelled_caught
    assert (fake.state.chains(), fake.files.records) == (CHAINS, [])
    (record,) = await qmpsnap.list_backups(place)
    assert set(record.disks) == {"vda", "vdb"}


@each(("limit", "merged"), [(30.0, {"vda", "vdb"}), (0.0, {"vda"})])
async def test_backup_that_is_to_stop_while_it_merges_back_merges_all_that_it_can_in_time(
    tmp_path: Path,
    tool_that: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    limit: float,
    merged: set[str],
) -> None:
    del tool_that
    monkeypatch.setattr("qmpsnap.backup._MERGE_LIMIT", limit)
    fake, place, stop = FakeTarget(MACHINE), tmp_path / f"b{limit}", anyio.Event()
    moved: list[Mapping[str, str]] = []

    async def follow(active: Mapping[str, str]) -> None:
        moved.append(active)
        if len(moved) == 2:  # after the snapshot, the first merge
            stop.set()
            await anyio.sleep(0.1)

    backup = vm_of(fake).backup(place, hooks=Hooks(on_pivot=follow, cancel=stop))
    if len(merged) == 2:
        assert set((await backup).files) == {"vda", "vdb"}
        assert fake.files.records == []
    else:
        with pytest.raises(Interrupted) as caught:
            await backup
        assert "the backup is complete" in caught.value.hint
    chains = fake.state.chains()
    assert {disk for disk, chain in CHAINS.items() if chains[disk] == chain} == merged
    (record,) = await qmpsnap.list_backups(place)
    assert set(record.disks) == {"vda", "vdb"}


async def test_backup_that_is_cancelled_during_its_snapshot_merges_back(
    tmp_path: Path, tool_that: Callable[[str], None]
) -> None:
    del tool_that
    fake = FakeTarget(MACHINE)
    with anyio.CancelScope() as scope:
        await vm_of(fake).backup(tmp_path / "b", hooks=Hooks(on_pivot=lambda _: scope.cancel()))
    assert scope.cancelled_caught
    assert (fake.state.chains(), fake.files.records) == (CHAINS, [])
    assert not (tmp_path / "b").exists()


async def test_backup_reads_the_graph_twice_before_its_snapshot(
    tmp_path: Path, tool_that: Callable[[str], None]
) -> None:
    """Once for what earlier clients have left, and once for the plan."""
    del tool_that
    fake = FakeTarget(MACHINE)
    vm, read, look = vm_of(fake), [], fake.graph

    async def graph() -> Graph:
        if not fake.performed:
            read.append("graph")
        return await look()

    fake.graph = graph  # type: ignore[method-assign]
    await vm.backup(tmp_path / "b")
    assert len(read) == 2


async def test_backup_of_an_older_layer_is_refused_with_the_machine_off_before_anything_is_made(
    tmp_path: Path, tool_that: Callable[[str], None]
) -> None:
    del tool_that
    fake = FakeImages(MACHINE)
    overlay = f"/images/data.{LEFT}.qcow2"
    fake.files.put(overlay, backing="/images/data.raw")
    vm = vm_of(fake)
    for disks in ((), ("vdb",)):
        with pytest.raises(StillNeeded, match=f"still needed by {overlay}") as caught:
            await vm.backup(tmp_path / "b", disks=disks)
        assert caught.value.hint.startswith(f"name the newest layer: -i vdb={overlay}")
        with pytest.raises(StillNeeded):
            await vm.plan_backup(tmp_path / "b", disks=disks)
    assert fake.performed == []
    assert not (tmp_path / "b").exists()
    done = await vm.backup(tmp_path / "b", disks=["vda"])
    assert done.chains == {"vda": CHAINS["vda"]}


async def test_backup_goes_on_although_an_old_overlay_is_needed(
    tmp_path: Path, tool_that: Callable[[str], None]
) -> None:
    del tool_that
    fake = FakeTarget(MACHINE)
    vm = vm_of(fake)
    await vm.run(await vm.plan(Snapshot(LEFT, ("vdb",))))
    fake.files.put("/images/clone.qcow2", backing="/images/data.raw")
    with pytest.raises(StillNeeded):
        await vm.commit("vdb")
    done = await vm.backup(tmp_path / "b", disks=["vda"])
    (note,) = done.notes
    assert note.startswith("/images/data.backup-")
    assert ", the overlay of an interrupted backup, stays: " in note


async def test_backup_is_refused_before_anything_is_sent(
    tmp_path: Path, tool_that: Callable[[str], None]
) -> None:
    del tool_that
    of, seen = encrypted("base <- s1*")
    fake = FakeTarget(of, files=seen)
    with pytest.raises(Unsupported):
        await vm_of(fake).backup(tmp_path / "b")
    with pytest.raises(Unsupported):
        await vm_of(fake).plan_backup(tmp_path / "b")
    with pytest.raises(InvalidTarget, match="there is no directory"):
        await vm_of(fake := FakeTarget(MACHINE)).backup(tmp_path / "none" / "b")
    assert fake.performed == []
    assert not (tmp_path / "b").exists()


def test_layer_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    """As when its storage fails; here because no descriptor is left."""
    file = tmp_path / "base.qcow2"
    file.touch()
    locks, limits = Locks("m"), resource.getrlimit(resource.RLIMIT_NOFILE)
    _mark(locks, [str(file)])
    locks.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(InvalidTarget, match="cannot read"):
            _mark(locks, [str(file)])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not locks


async def test_plan_of_a_backup_says_what_follows_the_snapshot(tmp_path: Path) -> None:
    fake = FakeTarget(MACHINE)
    plan = await vm_of(fake).plan_backup(tmp_path, disks=["vda"])
    assert (plan.op, plan.disks, fake.performed) == ("snapshot", ("vda",), [])
    copied, merged = plan.notes[-2:]
    assert copied.startswith(f"then vda is copied to {tmp_path}/20")
    assert copied.endswith("/vda.qcow2, and compared")
    assert merged == "then each overlay is committed and removed: qmpsnap commit DISK --folded remove"


async def test_file_is_no_directory_of_backups(tmp_path: Path) -> None:
    (file := tmp_path / "vda.qcow2").touch()
    fake = FakeTarget(MACHINE)
    with pytest.raises(InvalidTarget, match=f"'{file}' is not a directory"):
        await vm_of(fake).backup(file)
    assert fake.performed == []
