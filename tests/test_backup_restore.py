"""Backups that are listed, verified and restored; a script has copied them in qemu-img's place."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

import qmpsnap
from qmpsnap.errors import BadArgument, InvalidTarget
from qmpsnap.run import backups
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget
from tests.copies import files
from tests.run.operations import vm_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MACHINE = graph(vda="base <- s1*", vdb="data.raw*")


async def test_backups_are_verified_and_restored_by_their_number(
    tmp_path: Path, tool_that: Callable[[str], None]
) -> None:
    del tool_that
    vm, place = vm_of(FakeTarget(MACHINE)), tmp_path / "b"
    first, second = await vm.backup(place), await vm.backup(place, disks=["vdb"])
    assert await qmpsnap.verify_backup(place, at=1) == first.backup
    assert await qmpsnap.verify_backup(place) == second.backup
    restored = await qmpsnap.restore_backup(place, tmp_path / "to", at=1)
    assert restored == {disk: f"{tmp_path}/to/{disk}.qcow2" for disk in ("vda", "vdb")}
    assert files(tmp_path / "to") == ["vda.qcow2", "vdb.qcow2"]
    for wrong in (0, "1", True, 1.5):
        with pytest.raises(BadArgument, match="at is"):
            await qmpsnap.verify_backup(place, at=wrong)  # type: ignore[arg-type]


async def test_damaged_backup_does_not_hide_the_others(
    tmp_path: Path, tool_that: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    del tool_that
    vm, place = vm_of(FakeTarget(MACHINE)), tmp_path / "b"
    first, second = await vm.backup(place), await vm.backup(place)
    manifest = place / first.backup.id / "manifest.json"
    manifest.write_text("{")
    assert await qmpsnap.list_backups(place) == (second.backup,)
    assert str(manifest) in caplog.text
    assert await qmpsnap.verify_backup(place) == second.backup
    assert set(await qmpsnap.restore_backup(place, tmp_path / "to")) == {"vda", "vdb"}


async def test_refused_restore_leaves_no_directory_that_it_has_created(
    tmp_path: Path, tool_that: Callable[[str], None]
) -> None:
    del tool_that
    vm, place = vm_of(FakeTarget(MACHINE)), tmp_path / "b"
    done = await vm.backup(place, disks=["vda"])
    image = place / done.backup.id / "vda.qcow2"
    image.write_bytes(image.read_bytes() + b"\1")
    (tmp_path / "mine").mkdir()
    for name in ("new", "mine"):
        with pytest.raises(InvalidTarget, match="is damaged"):
            await qmpsnap.restore_backup(place, tmp_path / name)
    assert not (tmp_path / "new").exists()
    assert [*(tmp_path / "mine").iterdir()] == []


async def test_restore_that_is_cancelled_as_it_begins_leaves_no_directory_that_it_has_created(
    tmp_path: Path, tool_that: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    del tool_that
    vm, place = vm_of(FakeTarget(MACHINE)), tmp_path / "b"
    await vm.backup(place, disks=["vda"])
    make = backups.make_directory

    def cancel() -> None:
        task.cancel()
        cancelled.set()

    def made(directory: str) -> bool:
        loop.call_soon_threadsafe(cancel)
        cancelled.wait()
        return make(directory)

    loop, cancelled = asyncio.get_running_loop(), threading.Event()
    monkeypatch.setattr(backups, "make_directory", made)
    (tmp_path / "mine").mkdir()
    for name in ("new", "mine"):
        cancelled.clear()
        task = asyncio.create_task(qmpsnap.restore_backup(place, tmp_path / name))
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "mine").is_dir()
